"""Weights of the classes in the training loss."""

from pathlib import Path

import numpy as np

from ppcls.data.label_sets import LabelSets
from ppcls.data.text import read_lines
from ppcls.errors import DataError

OPTION = "train.class_weights: "


def resolve_class_weights(
    source: str, labels: np.ndarray | LabelSets, num_classes: int, factors: np.ndarray | None
) -> np.ndarray:
    """Return the weights that `train.class_weights` requests, float64 [C]. Their mean over the images that an
    epoch uses is 1, so that the loss keeps its scale.

    source: "balanced" or a file, see `read_class_weights`. "balanced" gives each class the same part of the
    loss: N / (C n) for a class of n of N images, C being the number of classes that have images, as
    scikit-learn's compute_class_weight. factors: from `repeat_factors`; classes count as often as they are
    used. An image of k labels counts as 1/k image of each of its classes.
    A class without an image has weight 0 with "balanced"; a weight from a file then has no effect.
    Raises DataError for a file that is missing or has a wrong line.
    """
    sets = LabelSets.of_labels(labels)
    if not sets.is_single:
        factors = ((1 if factors is None else factors) / sets.sizes)[sets.images]
    shares = np.bincount(sets.values, factors, num_classes) / len(sets)
    if source == "balanced":
        weights = np.divide(1, shares, out=np.zeros(num_classes), where=shares > 0)
    else:
        weights = read_class_weights(Path(source), num_classes)
    return weights / (shares @ weights)


def read_class_weights(path: Path, num_classes: int) -> np.ndarray:
    """Read the classes' weights, float64 [C]: one on each line, in the order of the labels.

    Raises DataError, with the line.
    """
    if not path.is_file():
        raise DataError(
            f"{OPTION}there is no file {path}. Expected: balanced, null, or a text file with the weight of "
            "one class on each line."
        )
    lines = [(number, line.strip()) for number, line in enumerate(read_lines(path, OPTION), 1)]
    weights = [_weight(path, number, text) for number, text in lines if text]
    if len(weights) != num_classes:
        raise DataError(
            f"{OPTION}{path} has {len(weights)} weights, but model.num_classes is {num_classes}. Expected: "
            "one weight on each line, in the order of the labels."
        )
    return np.array(weights)


def _weight(path: Path, number: int, text: str) -> float:
    """Return a line's weight. Raises DataError unless it is a finite number above 0."""
    try:
        weight = float(text)
    except ValueError:
        weight = 0.0
    if not 0 < weight < float("inf"):
        raise DataError(
            f"{OPTION}{path}, line {number}: a weight must be a finite number above 0. Received: {text!r}"
        )
    return weight
