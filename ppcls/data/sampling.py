"""Unequal classes: how often an epoch uses each image, and a hint where that may help."""

from collections.abc import Mapping

import numpy as np

from ppcls.config import Config
from ppcls.data.dataset import Source
from ppcls.data.label_sets import LabelSets
from ppcls.data.seeding import SAMPLING, random_state

# A class of n images is used in proportion to n ** (1 - power).
POWERS: Mapping[str, float] = {"natural": 0.0, "sqrt": 0.5, "balanced": 1.0}
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
    sets = LabelSets.of_labels(labels)
    counts = np.bincount(sets.values)
    factors = (counts.max() / np.maximum(counts, 1)) ** POWERS[sampling]
    factors = np.maximum.reduceat(factors[sets.values], sets.starts[:-1])
    return factors / factors.mean()


def draw_epoch(
    factors: np.ndarray, source: Source, uses: int, seed: int, epoch: int, world_size: int = 1
) -> np.ndarray:
    """Return the uses of images in an epoch, int64 [uses], shuffled.

    factors: from `repeat_factors`, float64 [N]. source: shuffles the uses, for so many processes.

    A number below N is the first use of the image with this index. Number i + k N is a further use of image
    i, its augmentation another one. With N uses, an image with factor r is used floor(r) or ceil(r) times,
    r times on average: systematic sampling from the images in random order.
    """
    count = len(factors)
    random = random_state(seed, epoch, 0, SAMPLING)
    images = random.permutation(count)
    ends = np.floor(np.cumsum(factors[images]) * (uses / count) + random.uniform()).astype(np.int64)
    ends[-1] = uses  # whatever the sum's rounding
    times = np.diff(ends, prepend=0)
    number_of_use = np.arange(uses) - np.repeat(ends - times, times)
    return source.shuffle(np.repeat(images, times) + count * number_of_use, random, world_size)


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
