"""Names of the classes, in the order of the labels."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ppcls.data.text import read_lines
from ppcls.errors import ConfigError, DataError
from ppcls.progress import note

CLASS_NAMES = "class_names.txt"  # beside the lists that `ppcls data split` writes
IMAGENET1K = Path(__file__).with_name("imagenet1k_labels.txt")


@dataclass(frozen=True)
class ClassNames:
    """Names of the classes: `names` are shown to people, `folders` are the names of class folders."""

    names: tuple[str, ...]
    folders: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    @staticmethod
    def of(folders: Sequence[str]) -> "ClassNames":
        """Return classes whose names are their folders' names."""
        return ClassNames(tuple(folders), tuple(folders))

    @staticmethod
    def of_pairs(pairs: Iterable[tuple[str, str]]) -> "ClassNames":
        """Return the names from pairs of a class folder's name and the name shown."""
        folders, names = zip(*pairs, strict=True)
        return ClassNames(names=tuple(names), folders=tuple(folders))

    def to_pairs(self) -> list[tuple[str, str]]:
        """Return pairs of a class folder's name and the name shown, as files of weights hold them."""
        return list(zip(self.folders, self.names, strict=True))


def read_class_names(source: str, num_classes: int | None, option: str = "data.class_names") -> ClassNames:
    """Read the value of an option: "imagenet1k", or a text file with one class on each line, in label order.

    A line is the name; or the class folder's name, a tab and the name; or, in any order, the label and the
    name, as PaddleClas's lists have them. Raises ConfigError if the count differs from `num_classes` (None:
    any count), DataError for a file that is missing, has an empty line, or has a class twice.
    """
    path, option = IMAGENET1K if source == "imagenet1k" else Path(source), f"{option}: "
    if not path.is_file():
        raise DataError(
            f"{option}there is no file {path}. Expected: a text file with one class on each line, in the "
            'order of the labels, or "imagenet1k".'
        )
    lines = [line.strip() for line in read_lines(path, option)]
    while lines and not lines[-1]:
        lines.pop()
    for number, line in enumerate(lines, 1):
        if not line:
            raise DataError(f"{option}{path}, line {number} is empty. Each class needs a name.")
    if num_classes not in (None, len(lines)):
        raise ConfigError(
            f"{option}{path} names {len(lines)} classes, but model.num_classes is {num_classes}. Set "
            f"-o model.num_classes={len(lines)}; or give other names, or data.class_names=null for those of "
            "the class folders or the weights."
        )
    by_label = _read_labels(lines, f"{option}{path}")
    if by_label is not None:
        note(f"{option}{path}: the numbers at the beginning of its lines are taken as the labels")
        return ClassNames.of_pairs(by_label)
    pairs = [line.split("\t", 1) if "\t" in line else [line, line] for line in lines]
    names = ClassNames.of_pairs((folder.strip(), name.strip()) for folder, name in pairs)
    folder, count = Counter(names.folders).most_common(1)[0]
    if count > 1:
        raise DataError(
            f"{option}{path} has the class {folder!r} twice. If two classes have the same name, "
            "give each line the name of its class folder as well: folder<TAB>name."
        )
    return names


def _read_labels(lines: Sequence[str], file: str) -> list[tuple[str, str]] | None:
    """Return pairs of label and name in the labels' order if each line is a label and a name; None if not.

    Raises DataError for numbers that are not the labels, and for those that may be labels or folders.
    """
    rows = [line.split(None, 1) for line in lines]
    if not all(
        len(row) == 2 and row[0].isdecimal() and row[0].isascii() and len(row[0]) < 10 for row in rows
    ):
        return None
    labels, in_order = [int(number) for number, _ in rows], list(range(len(rows)))
    is_tabbed = all("\t" in line for line in lines)  # then the numbers may be names of folders
    if is_tabbed and (labels == in_order or sorted(labels) != in_order):
        return None
    if sorted(labels) != in_order:
        wrong = next(label for label in labels if labels.count(label) > 1 or label >= len(rows))
        raise DataError(
            f"{file}: each line begins with a number, but these are not the labels 0 to {len(rows) - 1}, "
            f"each once. Received: {wrong}. Correct them; or, if they belong to the names, write "
            "folder<TAB>name."
        )
    if is_tabbed and lines == sorted(lines):
        raise DataError(
            f"{file}: its lines are in alphabetical order, so their numbers may be labels or folders. If "
            "they are labels, sort the lines by number. If not, give the folders other names, such as with "
            "zeros before the numbers."
        )
    return [(number, name) for number, name in sorted(rows, key=lambda row: int(row[0]))]
