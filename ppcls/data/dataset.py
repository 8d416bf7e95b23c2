"""Datasets: images from a source, with their labels."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ppcls.data.class_names import ClassNames
from ppcls.data.files import Files
from ppcls.data.label_sets import LabelSets
from ppcls.data.source import Source
from ppcls.errors import counted


@dataclass(frozen=True)
class Dataset:
    """Images of a source and their labels.

    labels: int64 [N]; None without labels. Where any of several labels is right, as in ImageNet ReaL: int64
    [N, M], sorted, a shorter row padded with its last label. class_names: the names that the data has, or was
    given. label_sets: the labels where an image has several, all of them right; `labels` is then None.
    """

    source: Source
    labels: np.ndarray | None = None
    class_names: ClassNames | None = None
    label_sets: LabelSets | None = None

    @staticmethod
    def of_sets(source: Source, sets: LabelSets, class_names: ClassNames | None = None) -> "Dataset":
        """Return a dataset of images with these labels. They are in `labels` if each image has one."""
        if sets.is_single:
            return Dataset(source, sets.values, class_names)
        return Dataset(source, None, class_names, sets)

    @staticmethod
    def of_files(
        paths: Sequence[str], labels: np.ndarray | None = None, class_names: ClassNames | None = None
    ) -> "Dataset":
        """Return a dataset of image files."""
        return Dataset(Files(paths), labels, class_names)

    @property
    def all_labels(self) -> LabelSets | None:
        """The labels of each image as a set, whether it has one or several; None without labels. Of single
        labels it is made anew at each call, and takes 8 bytes an image."""
        return self.label_sets if self.labels is None else LabelSets.of_labels(self.labels)

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: int) -> bytes:
        """Return an image's encoded bytes. Raises OSError where they cannot be read."""
        return self.source.read(index)

    def name(self, index: int) -> str:
        """Return what tables and reports call the image: a file's path."""
        return self.source.name(index)

    def where(self, index: int) -> str:
        """Return what error messages call the image: a file's path, and for a list its line."""
        return self.source.where(index)

    def digest(self, root: str | None) -> str:
        """Return 16 hex digits of the SHA-256 of the images' names below `root` and of the labels. It stays
        the same when the data moves. States of runs keep it: it must never change."""
        digest = hashlib.sha256(self.source.identity(root))
        digest.update(b"" if self.labels is None else self.labels.tobytes())
        if self.label_sets is not None:
            digest.update(self.label_sets.values.tobytes() + self.label_sets.starts.tobytes())
        return digest.hexdigest()[:16]

    def prefetch(self, indices: Sequence[int]) -> None:
        """Begin to fetch images that will be read soon."""
        self.source.prefetch(indices)

    def select(self, indices: Sequence[int]) -> "Dataset":
        """Return a dataset of these images, in this order."""
        labels = None if self.labels is None else self.labels[indices]
        sets = None if self.label_sets is None else self.label_sets.select(indices)
        return replace(self, source=self.source.select(indices), labels=labels, label_sets=sets)


def describe_classes(dataset: Dataset, num_classes: int = 0) -> str:
    """Return a line on the images of each class: how many classes have some, the fewest and the most, and
    which classes have none. num_classes: of the network, where there is one."""
    sets, names = dataset.all_labels, dataset.class_names
    if sets is None:
        return f"{counted(len(dataset), 'image')} without labels"
    used, counts = np.unique(sets.values, return_counts=True)  # a label may be large by mistake
    total = max(num_classes, len(names or ()), int(used[-1]) + 1)
    unused, first_unused = total - len(used), np.setdiff1d(np.arange(min(total, len(used) + 5)), used)[:5]

    def shown(label: int) -> str:
        return names.names[label] if names else str(label)

    fewest, most = counts.argmin(), counts.argmax()
    line = (
        f"classes: {len(used)}{f' of {total}' if unused else ''}; fewest images: "
        f"{counts[fewest]} ({shown(used[fewest])}), most: {counts[most]} ({shown(used[most])})"
    )
    if unused:
        more = ", ..." if unused > 5 else ""
        line += f"; {unused} without an image: {', '.join(map(shown, first_unused))}{more}"
    if not sets.is_single:
        several = int((sets.sizes > 1).sum())
        mean = len(sets.values) / len(sets)
        line += f"; images with several labels: {several}, {mean:.2f} labels an image on average"
    if used[-1] + 1 < num_classes:
        line += (
            f". The largest label is {used[-1]}: if there are no more classes, -o model.num_classes="
            f"{used[-1] + 1} -o data.class_names=FILE"
        )
    return line
