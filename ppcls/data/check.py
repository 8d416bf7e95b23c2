"""Check datasets before training: unreadable and damaged images, duplicates, leaks and conflicting labels."""

import hashlib
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np

from ppcls.data.dataset import Dataset
from ppcls.data.decode import UNREADABLE, decode, find_jpeg_damage, reason_of
from ppcls.data.each_image import each_image
from ppcls.data.label_sets import LabelSets

MOST_TEXTS = 10_000  # of each kind of finding; further ones are counted
MOST_MEMBERS = 100  # that a group's text names

Size = tuple[int, int]  # height and width


@dataclass
class Texts:
    """The first MOST_TEXTS of some texts, and the number of all of them."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, text: str) -> None:
        self.extend(Texts(1, [text]))

    def extend(self, other: "Texts") -> None:
        self.count += other.count
        self.first += other.first[: MOST_TEXTS - len(self.first)]


@dataclass
class Inspection:
    """Result for a dataset, in 16 bytes of memory for each image.

    digests: uint64 [N, 2], of the images' bytes; 0 for an unreadable one. short_sides: the number of images
    with each short side. smallest, largest: sizes of the images of least and most pixels.
    """

    dataset: Dataset
    digests: np.ndarray
    unreadable: Texts = field(default_factory=Texts)
    damaged: Texts = field(default_factory=Texts)
    short_sides: Counter[int] = field(default_factory=Counter)
    smallest: Size | None = None
    largest: Size | None = None

    @property
    def median_short_side(self) -> int | None:
        """The median of the images' short sides; of an even number the mean of the two middle ones."""
        sides, count = sorted(self.short_sides), self.short_sides.total()
        if not count:
            return None
        ends = np.cumsum([self.short_sides[side] for side in sides])
        middle = np.searchsorted(ends, [(count - 1) // 2, count // 2], "right")
        return sum(sides[place] for place in middle) // 2

    def add_size(self, size: Size) -> None:
        """Count a readable image."""
        pixels = size[0] * size[1]
        self.short_sides[min(size)] += 1
        if self.smallest is None or pixels < self.smallest[0] * self.smallest[1]:
            self.smallest = size
        if self.largest is None or pixels > self.largest[0] * self.largest[1]:
            self.largest = size


class _Inspected(NamedTuple):
    """Result for one image: the `digest` of its bytes and its size; or the `error`. damage: what a second
    decoder says of pixels that are read all the same."""

    digest: bytes
    size: Size
    error: str | None = None
    damage: str | None = None


def inspect_images(
    dataset: Dataset, num_workers: int, progress: Callable[[int], object] = lambda count: None
) -> Inspection:
    """Read and decode every image with `num_workers` threads. `progress` is called with 1 after each one."""
    found = Inspection(dataset, np.zeros((len(dataset), 2), np.uint64))
    with warnings.catch_warnings():
        warnings.filterwarnings("always", module="PIL")  # for each image, not only for the first
        for index, image in enumerate(each_image(dataset, partial(_inspect, dataset), num_workers)):
            if image.error is None:
                found.digests[index] = np.frombuffer(image.digest, np.uint64)
                found.add_size(image.size)
            else:
                found.unreadable.add(f"{dataset.where(index)}: {image.error}")
            if image.damage is not None:
                found.damaged.add(f"{dataset.where(index)}: {image.damage}")
            progress(1)
    return found


def _inspect(dataset: Dataset, index: int) -> _Inspected:
    try:
        data = dataset.read(index)
        height, width = decode(data, dataset.where(index)).shape[:2]
        damage = find_jpeg_damage(data)
    except UNREADABLE as error:
        return _Inspected(b"", (0, 0), reason_of(error))
    return _Inspected(hashlib.blake2b(data, digest_size=16).digest(), (height, width), damage=damage)


@dataclass(frozen=True)
class Findings:
    """Texts, one for each class folder without an image, each unreadable or damaged image, and each group of
    images with the same bytes."""

    empty: Texts = field(default_factory=Texts)
    unreadable: Texts = field(default_factory=Texts)
    damaged: Texts = field(default_factory=Texts)  # read, but with corrupt pixels
    conflicts: Texts = field(default_factory=Texts)  # same bytes, different labels
    leaks: Texts = field(default_factory=Texts)  # same bytes in two datasets
    duplicates: Texts = field(default_factory=Texts)  # same bytes twice in one dataset

    def __len__(self) -> int:
        kinds = (self.empty, self.unreadable, self.damaged, self.conflicts, self.leaks, self.duplicates)
        return sum(texts.count for texts in kinds)


def find_problems(inspections: Sequence[Inspection]) -> Findings:
    """Find class folders without an image, unreadable and damaged images, and groups of images with the same
    bytes: with different labels, in two datasets, or twice in one. A group is listed under each kind that it
    belongs to."""
    findings = Findings()
    datasets = [inspection.dataset for inspection in inspections]
    sets = [dataset.all_labels for dataset in datasets]
    for inspection, own in zip(inspections, sets, strict=True):
        findings.unreadable.extend(inspection.unreadable)
        findings.damaged.extend(inspection.damaged)
        if own is not None and inspection.dataset.class_names is not None:
            used = set(np.unique(own.values).tolist())
            for label, folder in enumerate(inspection.dataset.class_names.folders):
                if label not in used:
                    findings.empty.add(folder)
    starts = np.cumsum([0, *map(len, datasets)])
    for group in _equal_groups(np.concatenate([inspection.digests for inspection in inspections])):
        numbers = np.searchsorted(starts, group, "right") - 1
        own, indices = numbers.tolist(), (group - starts[numbers]).tolist()
        labels = {_label(datasets[n], sets[n], i) for n, i in zip(own, indices, strict=True)} - {None}
        used = set(own)
        comparable = len({datasets[number].class_names is None for number in used}) == 1
        kinds = []
        if len(labels) > 1 and comparable:  # a list's numbers are not compared with folders' names
            kinds.append(findings.conflicts)
        if len(used) > 1:
            kinds.append(findings.leaks)
        if len(group) > len(used):
            kinds.append(findings.duplicates)
        names = ""
        if any(len(texts.first) < MOST_TEXTS for texts in kinds):
            shown = zip(own[:MOST_MEMBERS], indices, strict=False)
            names = "; ".join(_describe(datasets[number], sets[number], index) for number, index in shown)
            more = len(group) - MOST_MEMBERS
            names += f"; and {more} more" if more > 0 else ""
        for texts in kinds:
            texts.add(names)
    return findings


def _equal_groups(digests: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the positions, ascending, of two and more equal rows of uint64 [N, 2] that are not 0. The group
    with the first of all comes first."""
    order = np.lexsort(digests.T)
    ordered = digests[order]
    is_equal = (ordered[1:] == ordered[:-1]).all(axis=1) & ordered[1:].any(axis=1)
    edges = np.flatnonzero(np.diff(is_equal, prepend=False, append=False))
    begins, ends = edges[::2], edges[1::2] + 1
    for group in np.argsort(order[begins]):
        yield order[begins[group] : ends[group]]


def _label(dataset: Dataset, sets: LabelSets | None, index: int) -> str | None:
    """Return the names of an image's labels, in their order; None without labels."""
    if sets is None:
        return None
    names = dataset.class_names
    return ", ".join(str(label) if names is None else names.names[label] for label in sets[index])


def _describe(dataset: Dataset, sets: LabelSets | None, index: int) -> str:
    label = _label(dataset, sets, index)
    return dataset.where(index) if label is None else f"{dataset.where(index)} as {label}"
