"""Check datasets before training: unreadable and damaged images, duplicates, leaks and conflicting labels."""

import hashlib
import statistics
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np

from ppcls.data.dataset import Dataset
from ppcls.data.decode import decode, find_jpeg_damage
from ppcls.data.each_image import each_image
from ppcls.errors import DataError


class Inspected(NamedTuple):
    """Result for one image: the `digest` of its bytes and its height and width; or the `error`.
    damage: what a second decoder says of pixels that are read all the same."""

    digest: bytes
    size: tuple[int, int]
    error: str | None = None
    damage: str | None = None


def inspect_images(
    dataset: Dataset, num_workers: int, progress: Callable[[int], object] = lambda count: None
) -> list[Inspected]:
    """Read and decode every image with `num_workers` threads. `progress` is called with 1 after each one."""
    found = []
    with warnings.catch_warnings():
        warnings.filterwarnings("always", module="PIL")  # for each image, not only for the first
        for inspected in each_image(dataset, partial(_inspect, dataset), num_workers):
            found.append(inspected)
            progress(1)
    return found


def _inspect(dataset: Dataset, index: int) -> Inspected:
    try:
        data = dataset.read(index)
        height, width = decode(data, dataset.where(index)).shape[:2]
        damage = find_jpeg_damage(data)
    except DataError as error:
        return Inspected(b"", (0, 0), str(error))
    except OSError as error:
        return Inspected(b"", (0, 0), error.strerror or str(error))
    except MemoryError:
        return Inspected(b"", (0, 0), "out of memory while the file is read")
    return Inspected(hashlib.blake2b(data, digest_size=16).digest(), (height, width), damage=damage)


@dataclass(frozen=True)
class Summary:
    """Summary of a dataset. counts: images of each class, by its name or label; empty without labels.
    smallest, largest: height and width of the images of least and most pixels."""

    images: int
    unreadable: int
    counts: dict[str, int]
    smallest: tuple[int, int] | None
    largest: tuple[int, int] | None
    median_short_side: int | None


@dataclass(frozen=True)
class Findings:
    """Texts, one for each class folder without an image, each unreadable or damaged image, and each group of
    images with the same bytes."""

    empty: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)  # read, but with corrupt pixels
    conflicts: list[str] = field(default_factory=list)  # same bytes, different labels
    leaks: list[str] = field(default_factory=list)  # same bytes in two datasets
    duplicates: list[str] = field(default_factory=list)  # same bytes twice in one dataset

    def __len__(self) -> int:
        kinds = (self.empty, self.unreadable, self.damaged, self.conflicts, self.leaks, self.duplicates)
        return sum(map(len, kinds))


def summarize(dataset: Dataset, inspected: Sequence[Inspected]) -> Summary:
    """Count a dataset's images, classes and sizes."""
    sizes = [item.size for item in inspected if item.error is None]
    counts: Counter[str] = Counter()
    sets = dataset.all_labels
    if sets is not None:
        total = max(int(sets.values.max()) + 1, len(dataset.class_names or ()))
        for label, count in enumerate(np.bincount(sets.values, minlength=total).tolist()):
            counts[_class_name(dataset, label)] = count
    return Summary(
        images=len(dataset),
        unreadable=len(inspected) - len(sizes),
        counts=dict(counts),
        smallest=min(sizes, key=lambda size: size[0] * size[1], default=None),
        largest=max(sizes, key=lambda size: size[0] * size[1], default=None),
        median_short_side=int(statistics.median(map(min, sizes))) if sizes else None,
    )


def find_problems(inspections: Sequence[tuple[Dataset, Sequence[Inspected]]]) -> Findings:
    """Find class folders without an image, unreadable and damaged images, and groups of images with the same
    bytes: with different labels, in two datasets, or twice in one. A group is listed under each kind that it
    belongs to."""
    findings = Findings()
    groups: defaultdict[bytes, list[tuple[int, int]]] = defaultdict(list)
    for number, (dataset, inspected) in enumerate(inspections):
        sets = dataset.all_labels
        if sets is not None and dataset.class_names is not None:
            used = set(sets.values.tolist())
            folders = enumerate(dataset.class_names.folders)
            findings.empty.extend(folder for label, folder in folders if label not in used)
        for index, item in enumerate(inspected):
            if item.error is None:
                groups[item.digest].append((number, index))
            else:
                findings.unreadable.append(f"{dataset.where(index)}: {item.error}")
            if item.damage is not None:
                findings.damaged.append(f"{dataset.where(index)}: {item.damage}")
    for members in groups.values():
        if len(members) == 1:
            continue
        labels = {_label(inspections[number][0], index) for number, index in members} - {None}
        comparable = len({inspections[number][0].class_names is None for number, _ in members}) == 1
        names = "; ".join(_describe(inspections[number][0], index) for number, index in members)
        if len(labels) > 1 and comparable:  # a list's numbers are not compared with folders' names
            findings.conflicts.append(names)
        numbers = {number for number, _ in members}
        if len(numbers) > 1:
            findings.leaks.append(names)
        if len(members) > len(numbers):
            findings.duplicates.append(names)
    return findings


def _class_name(dataset: Dataset, label: int) -> str:
    return str(label) if dataset.class_names is None else dataset.class_names.names[label]


def _label(dataset: Dataset, index: int) -> str | None:
    """Return the names of an image's labels, in their order; None without labels."""
    sets = dataset.all_labels
    return None if sets is None else ", ".join(_class_name(dataset, label) for label in sets[index])


def _describe(dataset: Dataset, index: int) -> str:
    label = _label(dataset, index)
    return dataset.where(index) if label is None else f"{dataset.where(index)} as {label}"
