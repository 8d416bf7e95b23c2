"""Unequal classes: how often an epoch uses each image, and a hint where that may help."""

from collections.abc import Mapping

import numpy as np

from ppcls.config import Config
from ppcls.data.label_sets import LabelSets
from ppcls.data.seeding import SAMPLING, random_state
from ppcls.data.source import Source

# A class of n images is used in proportion to n ** (1 - power).
POWERS: Mapping[str, float] = {"natural": 0.0, "sqrt": 0.5, "balanced": 1.0}
_BLOCK = 1 << 16  # images that are drawn at a time
UNEQUAL = 5  # ratio of the largest class to the smallest from which on training is hinted at the options


def repeat_factors(labels: np.ndarray | LabelSets, sampling: str) -> np.ndarray | None:
    """Return how often an epoch uses each image on average, float64 [N] with sum N; None for "natural", where
    it uses each image once.

    labels: int64 [N], or the sets of images with several. The factor of a class with share f of the images is
    (t / f) ** power, t being the share of the largest class; the power is 1 for "balanced", 1/2 for "sqrt".
    An image has the largest factor among its classes. This is repeat factor
    sampling, https://arxiv.org/abs/1908.03195, with t as said, and all factors divided by their mean, so that
    an epoch keeps its length.
    """
    if sampling == "natural":
        return None
    if isinstance(labels, np.ndarray) and labels.ndim == 1:
        factors = _class_factors(labels, sampling)[labels]
    else:
        sets = LabelSets.of_labels(labels)
        of_class, factors = _class_factors(sets.values, sampling), np.empty(len(sets))
        for start in range(0, len(sets), _BLOCK):
            ends = sets.starts[start : start + _BLOCK + 1]
            values = sets.values[ends[0] : ends[-1]]
            factors[start : start + _BLOCK] = np.maximum.reduceat(of_class[values], ends[:-1] - ends[0])
    factors /= factors.mean()
    return factors


def _class_factors(labels: np.ndarray, sampling: str) -> np.ndarray:
    counts = np.bincount(labels)
    return (counts.max() / np.maximum(counts, 1)) ** POWERS[sampling]


def draw_epoch(
    factors: np.ndarray, source: Source, uses: int, seed: int, epoch: int, world_size: int = 1
) -> np.ndarray:
    """Return the uses of images in an epoch, int64 [uses], shuffled.

    factors: from `repeat_factors`, float64 [N]. source: shuffles the uses, for so many processes.

    A number below N is the first use of the image with this index. Number i + k N is a further use of image
    i, its augmentation another one. With N uses, an image with factor r is used floor(r) or ceil(r) times,
    r times on average: systematic sampling from the images in random order. Its memory is 12 bytes an image
    beside the factors; 8 of them stay.
    """
    count = len(factors)
    random = random_state(seed, epoch, 0, SAMPLING)
    images = np.arange(count, dtype=np.uint32 if count < 1 << 32 else np.int64)
    random.shuffle(images)
    offset, total, filled = random.uniform(), 0.0, 0
    drawn = np.empty(uses, np.int64)
    for start in range(0, count, _BLOCK):
        block = images[start : start + _BLOCK]
        sums = factors[block]
        sums[0] += total
        sums.cumsum(out=sums)
        total = sums[-1]
        ends = np.floor(sums * (uses / count) + offset).astype(np.int64)
        if start + _BLOCK >= count:
            ends[-1] = uses  # whatever the sum's rounding
        times = np.diff(ends, prepend=filled)
        number_of_use = np.arange(filled, ends[-1]) - np.repeat(ends - times, times)
        drawn[filled : ends[-1]] = np.repeat(block, times) + count * number_of_use
        filled = int(ends[-1])
    del images
    return source.shuffle(drawn, random, world_size)


def imbalance_hint(config: Config, labels: np.ndarray | LabelSets | None) -> str | None:
    """Return a line that names the options for unequal classes; None where the classes are about equal, or
    one of the options is on."""
    if labels is None or config.data.sampling != "natural" or config.train.class_weights is not None:
        return None
    counts = np.bincount(LabelSets.of_labels(labels).values)
    counts = counts[counts > 0]
    ratio = counts.max() / counts.min()
    if ratio <= UNEQUAL:
        return None
    return (
        f"the largest class has {ratio:.0f} times as many images as the smallest. If small classes matter as "
        "much as large ones: -o data.sampling=balanced or sqrt, or -o train.class_weights=balanced; and "
        "-o train.best_by=balanced_accuracy"
    )
