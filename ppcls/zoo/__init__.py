"""The pages of docs/models: published figures, what is counted here, and what was measured."""
