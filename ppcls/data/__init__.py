"""Read images into batches, for training, evaluation and inference. Imports no Paddle."""
