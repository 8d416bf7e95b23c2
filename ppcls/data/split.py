"""Split a folder of class folders into lists for training and evaluation, and extend lists that stand."""

import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from posixpath import normpath

import numpy as np

from ppcls.data.class_names import CLASS_NAMES, read_class_names
from ppcls.data.folders import list_class_folders, list_class_images, list_direct_images
from ppcls.data.list_file import read_list_lines
from ppcls.data.overlap import group_equal
from ppcls.data.seeding import random_state
from ppcls.errors import DataError, counted, first_few
from ppcls.files import write_text

TRAIN_LIST, EVAL_LIST = "train_list.txt", "val_list.txt"
EVAL_SHARE = 0.1

Line = tuple[str, tuple[int, ...]]  # an image's path below the folder, and its labels


@dataclass(frozen=True)
class SplitLists:
    """Lines of each list, and of the file of class names. notes: what changed, and what is odd."""

    train: list[Line]
    evaluation: list[Line]
    class_names: list[str]
    notes: list[str] = field(default_factory=list, compare=False)


def update_split(
    folder: Path, output: Path, eval_share: float | None, seed: int, *, anew: bool
) -> tuple[SplitLists, bool]:
    """Write the lists of a folder into `output`: its first, those that stand extended, or all drawn `anew`.
    Return them, and whether they were written: those that need no change are not.

    Raises DataError as `split_folder` and `read_split` do, and if `output` cannot be written.
    """
    before = None if anew else read_split(output)
    split = split_folder(folder, eval_share, seed, before)
    if anew:
        with suppress(DataError):  # there may be no list, or a damaged one
            trained = {path for path, _ in _read_lines(output / TRAIN_LIST)}
            count = len(trained.intersection(path for path, _ in split.evaluation))
            split.notes.append(
                f"drawn anew: {count} of {len(split.evaluation)} evaluation images were training images "
                "before. Models trained on the earlier lists have seen them, so their accuracy is flattered"
            )
    if split != before:
        write_split(split, output)
    return split, split != before


def split_folder(
    folder: Path, eval_share: float | None, seed: int, standing: SplitLists | None = None
) -> SplitLists:
    """Divide the images of each class folder at random: `eval_share` of them for evaluation, at least one of
    two or more, and never all. Images with the same bytes come into one list.

    standing: the lists of before. Their lines stay as they are while their files are there, and classes keep
    their numbers. The other images are drawn from (seed, label); one that was moved to another class folder
    keeps its list. eval_share: None for that of the standing lists, or 0.1.

    Raises DataError for a folder without classes, a class without images, names that a list cannot hold, and
    standing lists of other images.
    """
    if eval_share is not None and not 0 < eval_share < 1:
        raise DataError(f"The share for evaluation must be between 0 and 1. Received: {eval_share}")
    images, classes_of = _find_images(folder)
    before = standing or SplitLists([], [], [])
    present = {path for paths in images.values() for path in paths}
    train, evaluation = (
        [line for line in part if line[0] in present or (folder / line[0]).is_file()]
        for part in (before.train, before.evaluation)
    )
    # Whether an image, or a group of equal ones, is for evaluation. One in both lists counts as training.
    listed = {path: True for path, _ in evaluation} | {path: False for path, _ in train}
    moved = _find_moved(before, listed, present)
    if standing and not listed and not moved:
        raise DataError(
            f"None of the images of the lists is in {folder}. Were the lists written for another folder? "
            "Write others elsewhere, --output DIR; or draw all anew: --force."
        )
    group_of = _group_images(folder, sorted(present | listed.keys()))
    in_evaluation = {group_of[path]: side for path, side in moved.items()}
    in_evaluation |= {group_of[path]: True for path, _ in evaluation}
    in_evaluation |= {group_of[path]: False for path, _ in train}
    share = eval_share or (sum(listed.values()) / len(listed) if listed else EVAL_SHARE)
    label_of, names = _number_classes(images, before)
    for name, paths in images.items():
        groups = list(dict.fromkeys(group_of[path] for path in paths))
        in_evaluation |= _draw(groups, in_evaluation, share, random_state(seed, label_of[name]))
        for path in paths:
            if path not in listed:
                part = evaluation if in_evaluation[group_of[path]] else train
                part.append((path, tuple(sorted(label_of[other] for other in classes_of[path]))))
    if not evaluation:
        raise DataError(f"Each class of {folder} has only one image: nothing is left for evaluation.")
    split = SplitLists(train, evaluation, names)
    if standing:
        split.notes.extend(_describe_changes(standing, split, moved))
    split.notes.extend(_describe_equal(split, group_of))
    return split


def _find_images(folder: Path) -> tuple[dict[str, list[str]], dict[str, tuple[str, ...]]]:
    """Return the paths of each class folder's images, below the folder, and the classes of each. An image of
    several classes stands with the first of them alone."""
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}. Expected: one folder for each class, with its images.")
    beside = list_direct_images(folder)
    if beside:
        raise DataError(
            f"{beside[0]} is beside the class folders, and would be left out. Expected: one folder for each "
            "class, with its images. Move it into one of them, or out of this folder."
        )
    names = list_class_folders(folder)
    found = list_class_images(folder, names)
    if not names:
        raise DataError(f"{folder} holds no image. Expected: one folder for each class, with its images.")
    used = {name for classes in found.values() for name in classes}
    for name in names:
        if name not in used:
            raise DataError(f"The class folder {folder / name} holds no image. Fill it or remove it.")
    classes_of = {_listable(folder, path): classes for path, classes in found.items()}
    images: dict[str, list[str]] = {name: [] for name in names}
    for path, classes in classes_of.items():
        images[classes[0]].append(path)
    return images, classes_of


def _listable(folder: Path, path: str) -> str:
    """Return the path below the folder. Raises DataError for a name that a list cannot hold: readers strip
    its lines and read backslashes as slashes."""
    name = Path(path).relative_to(folder).as_posix()
    if name != name.strip() or any(mark in name for mark in "\\\n\r\t"):
        raise DataError(
            f"A list cannot hold {path!r}: its class folder begins with a space, or its path has a "
            "backslash, a tab or a line break. Rename it."
        )
    try:
        name.encode()
    except UnicodeEncodeError:
        raise DataError(f"The name {path!r} is not UTF-8. Rename it.") from None
    return name


def _find_moved(before: SplitLists, listed: Mapping[str, bool], present: Iterable[str]) -> dict[str, bool]:
    """Return whether images that were moved to another class folder were for evaluation. An image is known by
    its path below the class folder."""
    gone = {
        path.partition("/")[2]: is_evaluation
        for part, is_evaluation in ((before.evaluation, True), (before.train, False))
        for path, _ in part
        if path not in listed
    }
    below = {path: path.partition("/")[2] for path in present if path not in listed}
    return {path: gone[inner] for path, inner in below.items() if inner in gone}


def _number_classes(images: Mapping[str, object], before: SplitLists) -> tuple[dict[str, int], list[str]]:
    """Return each class folder's label, and the class names.

    A class keeps its number, and a new one gets the next: sorted anew, all labels behind it would change. A
    class has the label that most of its lines have, if it has any, since its name may be one for people.
    """
    label_of = {line.partition("\t")[0]: label for label, line in enumerate(before.class_names)}
    lines = before.train + before.evaluation
    votes = Counter((path.partition("/")[0], labels[0]) for path, labels in lines if len(labels) == 1)
    label_of |= {name: label for (name, label), _ in reversed(votes.most_common())}
    names = list(before.class_names)
    for name in images:
        if name not in label_of:
            label_of[name] = len(names)
            names.append(name)
    return label_of, names


def _group_images(folder: Path, paths: Sequence[str]) -> dict[str, int]:
    """Return a number for each image's path. Images with the same bytes have the same number."""
    group_of = {path: index for index, path in enumerate(paths)}
    for group in group_equal([os.path.join(folder, path) for path in paths]):
        group_of |= {paths[index]: group[0] for index in group}
    return group_of


def _draw(
    groups: Sequence[int], in_evaluation: Mapping[int, bool], share: float, random: np.random.RandomState
) -> dict[int, bool]:
    """Draw the sides of a class's groups that have none: as many for evaluation as its share lacks, with one
    group at least on each side."""
    undecided = [group for group in groups if group not in in_evaluation]
    evaluated = sum(in_evaluation.get(group, False) for group in groups)
    goal = min(max(round(share * len(groups)), 1), len(groups) - 1)
    drawn = set(random.permutation(len(undecided))[: max(goal - evaluated, 0)].tolist())
    return {group: index in drawn for index, group in enumerate(undecided)}


def _describe_changes(before: SplitLists, after: SplitLists, moved: Collection[str]) -> list[str]:
    """Return notes on the images that were kept, moved, added and dropped, and on classes."""
    old = {path for path, _ in before.train + before.evaluation}
    train, evaluation = ({path for path, _ in part} - {*moved} for part in (after.train, after.evaluation))
    kept, places = old & (train | evaluation), {path.partition("/")[2] for path in moved}
    gone = sorted(path for path in old - kept if path.partition("/")[2] not in places)
    train, evaluation = train - old, evaluation - old
    notes = [f"kept: {counted(len(kept), 'image')}, each in its list"]
    if moved:
        notes.append(f"moved from another class folder: {counted(len(moved), 'image')}, each in its list")
    if count := len(train) + len(evaluation):
        total = counted(count, "image")
        notes.append(f"added: {total}, {len(train)} to train and {len(evaluation)} to evaluate")
    if gone:
        notes.append(f"dropped, as gone: {counted(len(gone), 'image')}: {first_few(gone)}")
    first = len(before.class_names)
    if created := after.class_names[first:]:
        notes.append(f"new classes: {first_few(created)}, with labels from {first} on")
    used = {label for _, labels in after.train + after.evaluation for label in labels}
    if empty := [name for label, name in enumerate(after.class_names) if label not in used]:
        notes.append(f"classes without an image, which keep their numbers: {first_few(empty)}")
    return notes


def _describe_equal(split: SplitLists, group_of: Mapping[str, int]) -> list[str]:
    """Return notes on images with the same bytes, and on those that standing lists have on both sides."""
    notes = []
    if count := len(group_of) - len(set(group_of.values())):
        notes.append(f"same bytes as another image: {count}")
    trained = {group_of[path] for path, _ in split.train}
    leaks = [path for path in dict(split.evaluation) if group_of[path] in trained]
    if leaks:
        notes.append(
            f"{len(leaks)} images of the evaluation list are in the training list too, by path or by bytes: "
            f"{first_few(leaks)}. Images of standing lists are not moved: remove these from one"
        )
    return notes


# The files


def read_split(output: Path) -> SplitLists | None:
    """Read the lists that stand in a folder; None if there are none. Raises DataError for a part of them, and
    for lists and class names that do not belong together."""
    train, evaluation, names = files = [output / name for name in (TRAIN_LIST, EVAL_LIST, CLASS_NAMES)]
    missing = [str(path) for path in files if not path.exists()]
    if len(missing) == len(files):
        return None
    if missing:
        raise DataError(
            f"The lists in {output} cannot be extended without {', '.join(missing)}. Restore what is "
            "missing; or draw all anew: --force."
        )
    pairs = read_class_names(str(names), None).to_pairs()
    lines = [name if name == folder else f"{folder}\t{name}" for folder, name in pairs]
    split = SplitLists(_read_lines(train), _read_lines(evaluation), lines)
    largest = max((max(labels) for _, labels in split.train + split.evaluation), default=-1)
    if largest >= len(lines):
        raise DataError(
            f"{names} names {len(lines)} classes, but the lists beside it have the label {largest}. Add what "
            "is missing; or draw all anew: --force."
        )
    return split


def _read_lines(file: Path) -> list[Line]:
    return [(normpath(path), labels) for _, path, labels in read_list_lines(file)]


def _line(path: str, labels: tuple[int, ...]) -> str:
    return f"{path} {','.join(map(str, labels))}"


def write_split(split: SplitLists, output: Path) -> None:
    """Write the three files. Raises DataError if `output` cannot be written."""
    contents = {
        TRAIN_LIST: [_line(*image) for image in split.train],
        EVAL_LIST: [_line(*image) for image in split.evaluation],
        CLASS_NAMES: split.class_names,
    }
    try:
        for name, lines in contents.items():
            write_text(output / name, "\n".join(lines) + "\n")
    except OSError as error:
        raise DataError(f"{output} cannot be written: {error.strerror}.") from error
