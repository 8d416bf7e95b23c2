"""Accuracy and loss from sums over samples, divided once."""

import numpy as np

MIN_CLASSES_FOR_TOP5 = 5


def sample_losses(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Cross-entropy of each sample: float [N, C] and int64 [N] to float64 [N]."""
    logits = logits.astype(np.float64)
    largest = logits.max(axis=1)
    log_total = np.log(np.exp(logits - largest[:, None]).sum(axis=1)) + largest
    return log_total - logits[np.arange(len(labels)), labels]


def label_ranks(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many classes come before the true one, int64 [N]; of equal logits the lower class comes first."""
    own = logits[np.arange(len(labels)), labels][:, None]
    is_lower_class = np.arange(logits.shape[1]) < labels[:, None]
    return ((logits > own) | ((logits == own) & is_lower_class)).sum(axis=1)


def batch_sums(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """float64 [4]: samples, correct at top-1, correct within top-5, summed loss."""
    ranks = label_ranks(logits, labels)
    return np.array(
        [len(labels), (ranks < 1).sum(), (ranks < 5).sum(), sample_losses(logits, labels).sum()], np.float64
    )
