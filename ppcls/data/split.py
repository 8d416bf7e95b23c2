"""Split a folder of class folders into lists for training and evaluation, and extend lists that stand."""

import contextlib
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ppcls.data.files import list_class_folders, list_class_images, list_direct_images
from ppcls.data.overlap import group_equal
from ppcls.data.seeding import random_state
from ppcls.data.split_lists import (
    Line,
    SplitLists,
    are_equal,
    describe_changes,
    describe_drawing,
    list_key,
    read_split,
    write_split,
)
from ppcls.errors import DataError, first_few

EVAL_SHARE = 0.1


@dataclass
class _Known:
    """What standing lists say of the images that are there now.

    train, evaluation: the lines of each image, by its path. in_evaluation: for each group of equal images
    that has a side, whether it is evaluation. moved: as in SplitLists.
    """

    train: dict[str, list[Line]] = field(default_factory=lambda: defaultdict(list))
    evaluation: dict[str, list[Line]] = field(default_factory=lambda: defaultdict(list))
    in_evaluation: dict[int, bool] = field(default_factory=dict)
    moved: dict[str, str] = field(default_factory=dict)


def split_folder(
    folder: Path, eval_share: float | None, seed: int, standing: SplitLists | None = None
) -> SplitLists:
    """Divide the images of each class folder at random: `eval_share` of them for evaluation, at least one of
    two or more, and never all. Images with the same bytes come into one list.

    standing: the lists of before. Their images stay where they are, with their labels. Images that are gone
    are left out. One that was moved to another class folder keeps its list and gets that folder's label.
    The others are drawn from (seed, label). eval_share: None for 0.1, or for the share that each class has in
    the standing lists.

    Raises DataError for a folder without classes, a class without images, names that a list cannot hold, and
    standing lists of other images.
    """
    if eval_share is not None and not 0 < eval_share < 1:
        raise DataError(f"The share for evaluation must be between 0 and 1. Received: {eval_share}")
    images = _find_images(folder)
    group_of = _group_images(folder, images)
    known, label_of, names = _Known(), {name: label for label, name in enumerate(images)}, list(images)
    if standing:
        known = _recognize(folder, group_of, standing)
        label_of, names = _number_classes(images, known, standing)
    overall = _share_of(standing) if standing else EVAL_SHARE
    for name, label in label_of.items():
        groups = list(dict.fromkeys(group_of[path] for path in images[name]))
        share = eval_share or _share_of_class(groups, known.in_evaluation, overall)
        known.in_evaluation |= _draw(groups, known.in_evaluation, share, random_state(seed, label))
    twins = len(group_of) - len(set(group_of.values()))
    split = SplitLists([], [], names, known.moved, twins)
    for name, label in label_of.items():
        for path in images[name]:
            split.train.extend(known.train.get(path, ()))
            split.evaluation.extend(known.evaluation.get(path, ()))
            if path not in known.train and path not in known.evaluation:
                part = split.evaluation if known.in_evaluation[group_of[path]] else split.train
                part.append((path, label))
    trained = {group_of[path] for path, _ in split.train}
    split.leaks.extend(path for path in dict(split.evaluation) if group_of[path] in trained)
    if not split.evaluation:
        raise DataError(f"Each class of {folder} has only one image: nothing is left for evaluation.")
    return split


def _find_images(folder: Path) -> dict[str, list[str]]:
    """Return the paths of each class folder's images, below the folder."""
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}. Expected: one folder for each class, with its images.")
    beside = list_direct_images(folder)
    if beside:
        raise DataError(
            f"{beside[0]} is beside the class folders, and would be left out. Expected: one folder for each "
            "class, with its images. Move it into one of them, or out of this folder."
        )
    images = list_class_images(folder, list_class_folders(folder))
    if not images:
        raise DataError(f"{folder} holds no image. Expected: one folder for each class, with its images.")
    for name, paths in images.items():
        if not paths:
            raise DataError(f"The class folder {folder / name} holds no image. Fill it or remove it.")
    return {name: [_listable(folder, path) for path in paths] for name, paths in images.items()}


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


def _group_images(folder: Path, images: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Return a number for each image's path. Images with the same bytes have the same number."""
    paths = [path for of_class in images.values() for path in of_class]
    numbers = list(range(len(paths)))
    for group in group_equal([os.path.join(folder, path) for path in paths]):
        for index in group:
            numbers[index] = group[0]
    return dict(zip(paths, numbers, strict=True))


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


def _share_of_class(groups: Sequence[int], in_evaluation: Mapping[int, bool], overall: float) -> float:
    """Return the share for evaluation of a class's groups that have a side; `overall` if this is the same to
    an image, since small classes are rounded."""
    known = [in_evaluation[group] for group in groups if group in in_evaluation]
    return overall if abs(sum(known) - overall * len(known)) <= 1 else sum(known) / len(known)


# Lists that stand


def _share_of(standing: SplitLists) -> float:
    """Return the share for evaluation of lists that stand."""
    evaluated, trained = ({path for path, _ in part} for part in (standing.evaluation, standing.train))
    return len(evaluated) / len(trained | evaluated) if trained and evaluated else EVAL_SHARE


def _recognize(folder: Path, group_of: Mapping[str, int], standing: SplitLists) -> _Known:
    """Find the images of standing lists among those that are there now."""
    known = _Known()
    present = {list_key(path): path for path in group_of}
    gone: defaultdict[str, dict[str, bool]] = defaultdict(dict)  # by the path below the class folder
    for part, lines in ((known.evaluation, standing.evaluation), (known.train, standing.train)):
        is_evaluation = part is known.evaluation
        for listed, label in lines:
            path = present.get(list_key(listed))
            if path is not None:
                part[path].append((path, label))
                known.in_evaluation[group_of[path]] = is_evaluation  # training, if both
            else:
                gone[list_key(listed).partition("/")[2]][listed] = is_evaluation
    for path, group in group_of.items():
        before = gone.get(list_key(path).partition("/")[2])
        if before and path not in known.train and path not in known.evaluation:
            known.moved[path] = next(iter(before))
            known.in_evaluation.setdefault(group, all(before.values()))
    _require_same_images(folder, known, [listed for paths in gone.values() for listed in paths])
    return known


def _require_same_images(folder: Path, known: _Known, gone: Sequence[str]) -> None:
    """Raise DataError for standing lists of another folder, or of images that no class folder has."""
    strays = [listed for listed in gone if (folder / listed).exists()]
    if strays:
        raise DataError(
            f"The lists hold {len(strays)} files that are there, but are not images of a class folder of "
            f"{folder}: {first_few(strays)}. Remove these lines; or draw all anew: --force."
        )
    if gone and not (known.train or known.evaluation or known.moved):
        raise DataError(
            f"None of the {len(gone)} images of the lists is in {folder}; the first would be "
            f"{folder / gone[0]}. Were the lists written for another folder? Write others elsewhere, "
            "--output DIR; or draw all anew: --force."
        )


def _number_classes(
    images: Mapping[str, Sequence[str]], known: _Known, standing: SplitLists
) -> tuple[dict[str, int], list[str]]:
    """Return each class folder's label, in ascending order, and the class names.

    A class keeps its number, and a new one gets the next: sorted anew, all labels behind it would change.
    The numbers of classes without images are closed up, in the lines of `known` too.
    """
    votes: defaultdict[str, Counter[int]] = defaultdict(Counter)
    for path, label in standing.train + standing.evaluation:
        votes[path.partition("/")[0]][label] += 1
    old = {line.partition("\t")[0]: label for label, line in enumerate(standing.class_names)}
    old |= {name: labels.most_common(1)[0][0] for name, labels in votes.items()}
    parts = (known.train, known.evaluation)
    used = {label for part in parts for lines in part.values() for _, label in lines}
    used |= {old[name] for name in images if name in old}
    number = {label: new for new, label in enumerate(sorted(used))}
    for part in parts:
        for lines in part.values():
            lines[:] = [(path, number[label]) for path, label in lines]
    names = [standing.class_names[label] for label in sorted(used)]
    label_of = {name: number[old[name]] for name in images if name in old}
    for name in images:
        if name not in old:
            label_of[name] = len(names)
            names.append(name)
    return dict(sorted(label_of.items(), key=lambda item: item[1])), names


class Update(NamedTuple):
    """Lists, whether they were written, and lines that say what changed and what is odd."""

    split: SplitLists
    is_written: bool
    lines: list[str]


def update_split(folder: Path, output: Path, eval_share: float | None, seed: int, *, anew: bool) -> Update:
    """Write the lists of a folder into `output`: its first, those that stand extended, or all drawn `anew`.

    Lists that need no change are not written. Raises DataError as `split_folder` and `read_split` do, and if
    `output` cannot be written.
    """
    if anew:
        before = None
        with contextlib.suppress(DataError):
            before = read_split(output)
        split = split_folder(folder, eval_share, seed)
        lines = [] if before is None else [describe_drawing(before, split)]
    else:
        before = read_split(output)
        split = split_folder(folder, eval_share, seed, before)
        lines = [] if before is None else describe_changes(before, split)
    if split.twins:
        place = "" if split.leaks else ", and in its list"
        lines.append(f"same bytes as another image{place}: {split.twins}")
    if split.leaks:
        lines.append(
            f"{len(split.leaks)} images of the evaluation list are in the training list too, by path or by "
            f"bytes: {first_few(split.leaks)}. Images of standing lists are not moved: remove these from one"
        )
    is_changed = before is None or not are_equal(before, split)
    if is_changed:
        write_split(split, output)
    return Update(split, is_changed, lines)
