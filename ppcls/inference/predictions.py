"""Predictions: the likeliest classes of an image from a network's outputs."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of one image, the likeliest first; or the reason why it has none.

    file: None for an array. labels: the classes' names, or their numbers as text if they have none.
    embedding: float32 [D], if it was requested.
    """

    file: str | None
    class_ids: tuple[int, ...] = ()
    labels: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    error: str | None = None
    embedding: np.ndarray | None = field(default=None, repr=False, compare=False)


def best_classes(
    file: str | None, probabilities: np.ndarray, names: Sequence[str] | None, topk: int
) -> Prediction:
    """Return the likeliest of one image's [C] probabilities; of equal ones the lower class comes first."""
    best = np.argsort(-probabilities, kind="stable")[:topk].tolist()
    return Prediction(
        file,
        class_ids=tuple(best),
        labels=tuple(str(i) if names is None else names[i] for i in best),
        probabilities=tuple(float(probabilities[i]) for i in best),
    )


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return probabilities float64 [N, C] of logits [N, C]."""
    exponentials = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def log_of(probabilities: np.ndarray) -> np.ndarray:
    """Return logits whose softmax gives the probabilities again. Those below float32's smallest become it."""
    return np.log(np.maximum(probabilities, np.finfo(np.float32).tiny))
