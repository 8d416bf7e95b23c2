"""Predictions: the likeliest classes of an image from a network's outputs."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ppcls.config import Activation
from ppcls.errors import PpclsError


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of one image, the likeliest first; or the reason why it has none. Of a network
    with a sigmoid for each class: all classes that it takes the image for, perhaps none.

    file: None for an array. labels: the classes' names, or their numbers as text if they have none.
    embedding: float32 [D], if it was requested. is_sure: whether the first probability reaches the threshold
    of the export's calibration; None without one.
    """

    file: str | None
    class_ids: tuple[int, ...] = ()
    labels: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    error: str | None = None
    embedding: np.ndarray | None = field(default=None, repr=False, compare=False)
    is_sure: bool | None = None


def best_classes(
    file: str | None,
    probabilities: np.ndarray,
    names: Sequence[str] | None,
    topk: int | None,
    threshold: float = 0.0,
) -> Prediction:
    """Return the likeliest of one image's [C] probabilities, of those that are at least `threshold`; of equal
    ones the lower class comes first. topk: None for all."""
    order = np.argsort(-probabilities, kind="stable")[:topk]
    best = order[probabilities[order] >= threshold].tolist()
    return Prediction(
        file,
        class_ids=tuple(best),
        labels=tuple(str(i) if names is None else names[i] for i in best),
        probabilities=tuple(float(probabilities[i]) for i in best),
    )


def require_finite(outputs: np.ndarray) -> None:
    """Raise PpclsError for outputs of a network that are not finite."""
    if not np.isfinite(outputs).all():
        raise PpclsError(
            "The network returned values that are not finite: its weights are damaged or diverged."
        )


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return probabilities float64 [N, C] of logits [N, C]."""
    exponentials = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Return the sigmoid of each logit, float64."""
    return np.exp(-np.logaddexp(0, -logits.astype(np.float64)))


def probabilities_of(logits: np.ndarray, activation: Activation) -> np.ndarray:
    """Return probabilities float64 [N, C] of logits [N, C]."""
    return softmax(logits) if activation == "softmax" else sigmoid(logits)


def logits_of(probabilities: np.ndarray, activation: Activation) -> np.ndarray:
    """Return logits that give the probabilities again. Those below float32's smallest become it, and of a
    sigmoid those above its largest below 1."""
    limits = np.finfo(np.float32)
    logs = np.log(np.maximum(probabilities, limits.tiny))
    if activation == "softmax":
        return logs
    return logs - np.log1p(-np.minimum(probabilities, 1 - limits.epsneg))
