"""Look at a dataset before training on it: split class folders into lists, find what is wrong with files."""

import hashlib
import os
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ppcls.data.class_names import ClassNames
from ppcls.data.dataset import Dataset, list_class_folders, list_images, read_list_lines
from ppcls.data.decode import decode
from ppcls.data.loader import random_state
from ppcls.errors import DataError

TRAIN_LIST, EVAL_LIST, CLASS_NAMES = "train_list.txt", "val_list.txt", "class_names.txt"
_CHUNK = 1024  # files handed to the threads at a time


@dataclass(frozen=True)
class Split:
    """`train` and `evaluation` are (path below the folder, label), `class_names` the folders' names."""

    train: list[tuple[str, int]]
    evaluation: list[tuple[str, int]]
    class_names: list[str]


def split_folder(folder: Path, eval_share: float, seed: int) -> Split:
    """Divide a folder of class folders: of each class `eval_share` of its images, drawn at random from
    (seed, label), for evaluation, of two or more at least one, and never all.

    Raises DataError for a folder without classes, a class without images, and names no list can hold.
    """
    if not 0 < eval_share < 1:
        raise DataError(f"The share for evaluation must lie between 0 and 1. Received: {eval_share}")
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}. Expected: one folder a class, with its images.")
    dataset = _open_folder(folder)
    if dataset.class_names is None or dataset.labels is None:
        beside = next(path for path in dataset.paths if os.path.dirname(path) == str(folder))
        raise DataError(
            f"{beside} lies beside the class folders, and would be left out. Expected: one folder a class, "
            "with its images. Move it into one of them, or elsewhere."
        )
    split = Split([], [], list(dataset.class_names.folders))
    for label, name in enumerate(split.class_names):
        members = np.flatnonzero(dataset.labels == label)
        if not len(members):
            raise DataError(f"The class folder {folder / name} holds no image. Fill it or take it away.")
        count = min(max(round(eval_share * len(members)), 1), len(members) - 1)
        drawn = set(random_state(seed, label).permutation(members)[:count].tolist())
        for index in members.tolist():
            path = _listable(folder, dataset.paths[index])
            (split.evaluation if index in drawn else split.train).append((path, label))
    if not split.evaluation:
        raise DataError(f"Each class of {folder} has one image only: nothing is left for evaluation.")
    return split


def _listable(folder: Path, path: str) -> str:
    """The path below the folder. Raises DataError for names that a list can't hold: its lines are stripped,
    and their backslashes are slashes."""
    name = Path(path).relative_to(folder).as_posix()
    if name != name.strip() or any(mark in name for mark in "\\\n\r\t"):
        raise DataError(
            f"{path!r} can't stand in a list: its class folder begins with a space, or its path holds a "
            "backslash, tab or line break. Rename it."
        )
    try:
        name.encode()
    except UnicodeEncodeError:
        raise DataError(f"{path!r} is no UTF-8 name. Rename it.") from None
    return name


def write_split(split: Split, output: Path, *, overwrite: bool) -> None:
    """Write the three files into `output`. Raises DataError where one is there already, unless told to
    overwrite it, and where `output` can't be written."""
    contents = {
        TRAIN_LIST: [f"{path} {label}" for path, label in split.train],
        EVAL_LIST: [f"{path} {label}" for path, label in split.evaluation],
        CLASS_NAMES: split.class_names,
    }
    present = [str(output / name) for name in contents if (output / name).exists()]
    if present and not overwrite:
        raise DataError(f"{', '.join(present)}: there already. --force replaces it.")
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name, lines in contents.items():
            (output / name).write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    except OSError as error:
        raise DataError(f"{output} can't be written: {error.strerror}.") from error


def open_source(path: Path, root: Path | None = None) -> Dataset:
    """A list file (its paths below `root`, or else its own folder), a folder of class folders, or a folder
    of images without labels. Raises DataError."""
    if path.is_dir():
        return _open_folder(path)
    if not path.is_file():
        raise DataError(f"There is no list file or folder {path}.")
    numbers, paths, labels = [], [], []
    for number, name, label in read_list_lines(path):
        numbers.append(number)
        paths.append(str((root or path.parent) / name))
        labels.append(label)
    if not paths:
        raise DataError(f"{path} names no image. Expected: lines 'path label'.")
    if not any(os.path.exists(name) for name in paths):
        raise DataError(
            f"None of the {len(paths)} files of {path} is there; the first would be {paths[0]}. "
            "Say below which folder they lie: --root DIR."
        )
    return Dataset(paths, np.array(labels, np.int64), str(path), np.array(numbers, np.int64))


def _open_folder(folder: Path) -> Dataset:
    paths = list_images(folder)
    if not paths:
        raise DataError(f"{folder} holds no image.")
    if any(os.path.dirname(path) == str(folder) for path in paths):  # so its folders are no classes
        return Dataset(paths)
    names = list_class_folders(folder)
    label_of = {name: label for label, name in enumerate(names)}
    labels = [label_of[Path(path).relative_to(folder).parts[0]] for path in paths]
    return Dataset(paths, np.array(labels, np.int64), class_names=ClassNames.of(names))


class Inspected(NamedTuple):
    """One file: `digest` of its bytes and the picture's height and width, or the `error` in place of both."""

    digest: bytes
    size: tuple[int, int]
    error: str | None = None


def inspect_files(
    dataset: Dataset, num_workers: int, progress: Callable[[int], object] = lambda count: None
) -> list[Inspected]:
    """Read and decode every file with that many threads; `progress` hears of each one that is done."""
    found = []
    with ThreadPoolExecutor(num_workers) as pool:
        for start in range(0, len(dataset), _CHUNK):
            for inspected in pool.map(_inspect, dataset.paths[start : start + _CHUNK]):
                found.append(inspected)
                progress(1)
    return found


def _inspect(path: str) -> Inspected:
    try:
        with open(path, "rb") as file:
            data = file.read()
        height, width = decode(data).shape[:2]
    except DataError as error:
        return Inspected(b"", (0, 0), str(error))
    except OSError as error:
        return Inspected(b"", (0, 0), error.strerror or str(error))
    return Inspected(hashlib.blake2b(data, digest_size=16).digest(), (height, width))


@dataclass(frozen=True)
class Summary:
    """What a source holds. counts: images of each class, by its name or label; empty without labels."""

    images: int
    unreadable: int
    counts: dict[str, int]
    smallest: tuple[int, int] | None
    largest: tuple[int, int] | None
    median_short_side: int | None


@dataclass(frozen=True)
class Findings:
    """Texts, one for each file or group of files that has something wrong with it."""

    unreadable: list[str] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)  # same bytes, different labels
    leaks: list[str] = field(default_factory=list)  # same bytes in two sources
    duplicates: list[str] = field(default_factory=list)  # same bytes twice in one source

    def __len__(self) -> int:
        return sum(map(len, (self.unreadable, self.conflicts, self.leaks, self.duplicates)))


def summarize(dataset: Dataset, inspected: Sequence[Inspected]) -> Summary:
    sizes = [item.size for item in inspected if item.error is None]
    counts: Counter[str] = Counter()
    if dataset.labels is not None:
        total = max(int(dataset.labels.max()) + 1, len(dataset.class_names or ()))
        for label, count in enumerate(np.bincount(dataset.labels, minlength=total).tolist()):
            counts[_class(dataset, label)] = count
    return Summary(
        images=len(dataset),
        unreadable=len(inspected) - len(sizes),
        counts=dict(counts),
        smallest=min(sizes, key=lambda size: size[0] * size[1], default=None),
        largest=max(sizes, key=lambda size: size[0] * size[1], default=None),
        median_short_side=int(statistics.median(map(min, sizes))) if sizes else None,
    )


def find_problems(sources: Sequence[tuple[Dataset, Sequence[Inspected]]]) -> Findings:
    """Unreadable files, and groups of files with the same bytes: with different labels, in two sources, or
    twice in one. A group is named under each of these that it fits."""
    findings = Findings()
    groups: defaultdict[bytes, list[tuple[int, int]]] = defaultdict(list)
    for number, (dataset, inspected) in enumerate(sources):
        for index, item in enumerate(inspected):
            if item.error is None:
                groups[item.digest].append((number, index))
            else:
                findings.unreadable.append(f"{dataset.where(index)}: {item.error}")
    for members in groups.values():
        if len(members) == 1:
            continue
        labels = {_label(sources[number][0], index) for number, index in members} - {None}
        comparable = len({sources[number][0].class_names is None for number, _ in members}) == 1
        names = "; ".join(_describe(sources[number][0], index) for number, index in members)
        if len(labels) > 1 and comparable:  # not a list's numbers with folders' names
            findings.conflicts.append(names)
        numbers = {number for number, _ in members}
        if len(numbers) > 1:
            findings.leaks.append(names)
        if len(members) > len(numbers):
            findings.duplicates.append(names)
    return findings


def _class(dataset: Dataset, label: int) -> str:
    return str(label) if dataset.class_names is None else dataset.class_names.names[label]


def _label(dataset: Dataset, index: int) -> str | None:
    return None if dataset.labels is None else _class(dataset, int(dataset.labels[index]))


def _describe(dataset: Dataset, index: int) -> str:
    label = _label(dataset, index)
    return dataset.where(index) if label is None else f"{dataset.where(index)} as {label}"
