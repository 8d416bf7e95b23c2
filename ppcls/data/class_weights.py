"""Weights of the classes in the training loss."""

import math
from pathlib import Path

import numpy as np

from ppcls.data.class_names import ClassNames
from ppcls.data.text import read_lines
from ppcls.errors import DataError, first_few

OPTION = "train.class_weights: "


def resolve_class_weights(
    source: str, labels: np.ndarray, num_classes: int, names: ClassNames | None, factors: np.ndarray | None
) -> np.ndarray:
    """Return the weights that `train.class_weights` requests, float64 [C]. Their mean over the images that an
    epoch uses is 1, so that the loss keeps its scale.

    source: "balanced" or a file, see `read_class_weights`. "balanced" gives each class the same part of the
    loss: N / (C n) for a class of n of N images, C being the number of classes that have images, as
    scikit-learn's compute_class_weight. factors: from `repeat_factors`; classes count as often as they are
    used. A class without an image has weight 0 with "balanced"; a weight from a file then has no effect.
    Raises DataError for a file that is missing or has a wrong line.
    """
    shares = np.bincount(labels, factors, num_classes) / len(labels)
    if source == "balanced":
        weights = np.divide(1, shares, out=np.zeros(num_classes), where=shares > 0)
    else:
        weights = read_class_weights(Path(source), num_classes, names)
    return weights / (shares @ weights)


def read_class_weights(path: Path, num_classes: int, names: ClassNames | None) -> np.ndarray:
    """Read the classes' weights, float64 [C].

    Each line is a weight, in the order of the labels; or in any order a class, a blank and its weight. A
    class is its name, its folder's name or its label. Raises DataError, with the line.
    """
    if not path.is_file():
        raise DataError(
            f"{OPTION}there is no file {path}. Expected: balanced, null, or a text file with the weight of "
            "one class on each line."
        )
    lines = [(number, line.split()) for number, line in enumerate(read_lines(path, OPTION), 1)]
    lines = [(number, words) for number, words in lines if words]
    if all(len(words) == 1 for _, words in lines):
        if len(lines) != num_classes:
            raise DataError(
                f"{OPTION}{path} has {len(lines)} weights, but model.num_classes is {num_classes}. Expected: "
                "one weight on each line, in the order of the labels, or lines 'class weight'."
            )
        return np.array([_weight(path, number, words[0]) for number, words in lines])
    label_of = {str(label): label for label in range(num_classes)}
    for known in (names.names, names.folders) if names else ():
        label_of |= {" ".join(name.split()): label for label, name in enumerate(known)}
    weights: dict[int, float] = {}
    for number, words in lines:
        name = " ".join(words[:-1])
        if name not in label_of:
            raise DataError(
                f"{OPTION}{path}, line {number}: no class has this name or label. Expected: 'class weight', "
                f"with a class such as {list(label_of)[-1]}. Received: {' '.join(words)!r}"
            )
        if label_of[name] in weights:
            raise DataError(f"{OPTION}{path}, line {number}: the class {name!r} is in this file twice.")
        weights[label_of[name]] = _weight(path, number, words[-1])
    missing = [label for label in range(num_classes) if label not in weights]
    if missing:
        shown = [names.names[label] if names else label for label in missing]
        raise DataError(
            f"{OPTION}{path} has no weight for {len(missing)} of {num_classes} classes: {first_few(shown)}. "
            "Give each class a line; 1 leaves it as it is."
        )
    return np.array([weights[label] for label in range(num_classes)])


def _weight(path: Path, number: int, text: str) -> float:
    """Return a line's weight. Raises DataError unless it is a finite number above 0."""
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise DataError(
            f"{OPTION}{path}, line {number}: a weight must be a finite number above 0. Received: {text!r}"
        )
    return weight
