"""The lists of a split as files, and what a new split changes in them."""

import posixpath
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from unicodedata import normalize

from ppcls.data.class_names import read_class_names
from ppcls.data.files import read_list_lines
from ppcls.errors import DataError, first_few
from ppcls.files import write_text

TRAIN_LIST, EVAL_LIST, CLASS_NAMES = "train_list.txt", "val_list.txt", "class_names.txt"

_MOST_CLASSES = 20  # whose added images are shown one by one

Line = tuple[str, int]  # an image's path below the folder, and its label


@dataclass(frozen=True)
class SplitLists:
    """Lines of each list, and of the file of class names.

    moved: images that were in another class folder when the lists were written before, with their paths of
    then. twins: number of images with the same bytes as an earlier one. leaks: images of the evaluation list
    that are in the training list too, themselves or by their bytes, as standing lists have it.
    """

    train: list[Line]
    evaluation: list[Line]
    class_names: list[str]
    moved: dict[str, str] = field(default_factory=dict)
    twins: int = 0
    leaks: list[str] = field(default_factory=list)


def read_split(output: Path) -> SplitLists | None:
    """Read the lists that stand in a folder; None if there are none. Raises DataError for a part of them, and
    for lists and class names that do not belong together."""
    files = [output / name for name in (TRAIN_LIST, EVAL_LIST, CLASS_NAMES)]
    present = [str(path) for path in files if path.exists()]
    if not present:
        return None
    if len(present) < len(files):
        missing = [str(path) for path in files if not path.exists()]
        raise DataError(
            f"{', '.join(present)} cannot be extended without {', '.join(missing)}. Restore what is missing; "
            "or draw all anew: --force."
        )
    train, evaluation = ([(path, label) for _, path, label in read_list_lines(file)] for file in files[:2])
    pairs = read_class_names(str(files[2]), None).to_pairs()
    largest = max((label for _, label in train + evaluation), default=-1)
    if largest >= len(pairs):
        raise DataError(
            f"{files[2]} names {len(pairs)} classes, but the lists beside it have the label {largest}. Add "
            "what is missing; or draw all anew: --force."
        )
    names = [name if name == folder else f"{folder}\t{name}" for folder, name in pairs]
    return SplitLists(train, evaluation, names)


def list_key(path: str) -> str:
    """Return what two spellings of a path have in common: "./" is left out, and letters are composed."""
    return normalize("NFC", posixpath.normpath(path))


def are_equal(before: SplitLists, after: SplitLists) -> bool:
    """Return whether the files would have the same lines, in whatever order."""
    return before.class_names == after.class_names and all(
        Counter(one) == Counter(other)
        for one, other in ((before.train, after.train), (before.evaluation, after.evaluation))
    )


def write_split(split: SplitLists, output: Path) -> None:
    """Write the three files. Raises DataError if `output` cannot be written."""
    contents = {
        TRAIN_LIST: [f"{path} {label}" for path, label in split.train],
        EVAL_LIST: [f"{path} {label}" for path, label in split.evaluation],
        CLASS_NAMES: split.class_names,
    }
    try:
        for name, lines in contents.items():
            write_text(output / name, "\n".join(lines) + "\n")
    except OSError as error:
        raise DataError(f"{output} cannot be written: {error.strerror}.") from error


def describe_drawing(before: SplitLists, after: SplitLists) -> str:
    """Return a line on the lists that a new drawing replaced."""
    trained = {list_key(path) for path, _ in before.train}
    evaluated = {list_key(path) for path, _ in after.evaluation}
    return (
        f"drawn anew: {len(trained & evaluated)} of {len(evaluated)} evaluation images were training images "
        "before. Models trained on the earlier lists have seen them, so their accuracy is flattered"
    )


def describe_changes(before: SplitLists, after: SplitLists) -> list[str]:
    """Return lines on the images that were kept, added to each class, and dropped; and on new numbers."""
    old = {list_key(path): path for path, _ in before.train + before.evaluation}
    parts = [{list_key(path): path for path, _ in part} for part in (after.train, after.evaluation)]
    came_from = {list_key(path): list_key(source) for path, source in after.moved.items()}
    new, known = parts[0] | parts[1], old.keys() | came_from.keys()
    gone = old.keys() - new.keys() - set(came_from.values())
    dropped = [path for key, path in old.items() if key in gone]
    added = [
        Counter(path.partition("/")[0] for key, path in part.items() if key not in known) for part in parts
    ]
    lines = [f"kept: {len(old.keys() & new.keys())} images, each in its list"]
    if came_from:
        lines.append(f"taken as moved from another class folder: {len(came_from)} images, each in its list")
    if count := sum(map(Counter.total, added)):
        lines.append(f"added: {count} images, {added[0].total()} to train and {added[1].total()} to evaluate")
        names = sorted(added[0] | added[1])
        lines += [f"  {name}: {added[0][name]} and {added[1][name]}" for name in names[:_MOST_CLASSES]]
        lines += ["  ..."] if len(names) > _MOST_CLASSES else []
    if dropped:
        lines.append(f"dropped: {len(dropped)} images that are gone: {first_few(dropped)}")
    created = [name for name in after.class_names if name not in before.class_names]
    if created:
        first = len(after.class_names) - len(created)
        lines.append(f"new classes: {first_few(created)}, with labels from {first} on")
    removed = [name for name in before.class_names if name not in after.class_names]
    if removed:
        lines.append(
            f"classes that are gone: {first_few(removed)}. The classes behind them have new labels: models "
            "of before do not fit these lists"
        )
    return lines
