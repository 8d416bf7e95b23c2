"""Several labels of each image, in rows of any length."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LabelSets:
    """The labels of N images. All of an image's labels are right, unlike those of `Dataset.labels` [N, M].

    values: int64 [L], the labels of all images one behind another. starts: int64 [N + 1]; image n has
    values[starts[n] : starts[n + 1]], at least one label and none twice. Both may be maps of a file.
    """

    values: np.ndarray
    starts: np.ndarray

    @staticmethod
    def of_sizes(values: Sequence[int] | np.ndarray, sizes: Sequence[int] | np.ndarray) -> "LabelSets":
        """Return the sets of images that have so many labels each."""
        starts = np.zeros(len(sizes) + 1, np.int64)
        np.cumsum(np.asarray(sizes, np.int64), out=starts[1:])
        return LabelSets(np.asarray(values, np.int64), starts)

    @staticmethod
    def of_labels(labels: "np.ndarray | LabelSets") -> "LabelSets":
        """Return the sets of labels int64 [N], or [N, M] as `Dataset.labels` has them."""
        if isinstance(labels, LabelSets):
            return labels
        if labels.ndim == 1:
            return LabelSets(labels, np.arange(len(labels) + 1))
        is_first = np.diff(labels, axis=1, prepend=-1) != 0  # rows are padded with their last label
        return LabelSets.of_sizes(labels[is_first], is_first.sum(axis=1))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> list[int]:
        """Return an image's labels."""
        return self.values[self.starts[index] : self.starts[index + 1]].tolist()

    @property
    def is_single(self) -> bool:
        """Whether each image has one label."""
        return len(self.values) == len(self)

    @property
    def sizes(self) -> np.ndarray:
        """The number of each image's labels, int64 [N]."""
        return np.diff(self.starts)

    @property
    def images(self) -> np.ndarray:
        """The image of each value, int64 [L]."""
        return np.repeat(np.arange(len(self)), self.sizes)

    def select(self, indices: Sequence[int] | np.ndarray) -> "LabelSets":
        """Return the sets of these images, in this order."""
        chosen = np.asarray(indices, np.int64)
        first, sizes = self.starts[chosen], self.starts[chosen + 1] - self.starts[chosen]
        found = LabelSets.of_sizes((), sizes)
        places = np.arange(found.starts[-1]) + np.repeat(first - found.starts[:-1], sizes)
        return LabelSets(self.values[places], found.starts)

    def targets(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the labels int64 [n, M] of these images and their shares of the target float32 [n, M]: 1/k
        for each of k labels. A shorter row is padded with its last label, of share 0."""
        first, sizes = self.starts[indices], (self.starts[indices + 1] - self.starts[indices])[:, None]
        columns = np.arange(sizes.max(initial=1))
        labels = self.values[first[:, None] + np.minimum(columns, sizes - 1)]
        return labels, np.where(columns < sizes, 1 / sizes, 0).astype(np.float32)

    def first_outside(self, num_classes: int) -> tuple[int, int] | None:
        """Return the first image with a label that is not below `num_classes`, and this label."""
        outside = np.flatnonzero(self.values >= num_classes)
        if not len(outside):
            return None
        place = int(outside[0])
        return int(np.searchsorted(self.starts, place, "right")) - 1, int(self.values[place])
