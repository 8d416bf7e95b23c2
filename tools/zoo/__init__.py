"""Text, figures and plots of the model pages in docs/models, for tools/model_zoo.py."""
