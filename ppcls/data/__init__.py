"""Images from disk to batches, for training, evaluation and inference alike. Imports no Paddle."""
