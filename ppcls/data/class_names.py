"""Names of the classes, in the order of the labels."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ppcls.errors import ConfigError, DataError

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


def read_class_names(source: str, num_classes: int) -> ClassNames:
    """Read `data.class_names`: "imagenet1k", or a text file with one class on each line, in label order.

    A line is the name; or the class folder's name, a tab and the name. Raises ConfigError if the count
    differs from `num_classes`, DataError for a file that is missing, has an empty line, or has a class twice.
    """
    path = IMAGENET1K if source == "imagenet1k" else Path(source)
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise DataError(
            f"data.class_names: {path} cannot be read ({error.strerror}). Expected: a text file with one "
            'class on each line, in the order of the labels, or "imagenet1k".'
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"data.class_names: {path} is not UTF-8 text ({error}).") from error
    while lines and not lines[-1].strip():
        lines.pop()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise DataError(f"data.class_names: {path}, line {number} is empty. Each class needs a name.")
    if len(lines) != num_classes:
        raise ConfigError(
            f"data.class_names: {path} names {len(lines)} classes, but model.num_classes is {num_classes}."
        )
    pairs = [line.split("\t", 1) if "\t" in line else [line, line] for line in lines]
    folders = tuple(folder.strip() for folder, _ in pairs)
    if len(set(folders)) != len(folders):
        twice = next(folder for folder in folders if folders.count(folder) > 1)
        raise DataError(f"data.class_names: {path} has the class {twice!r} twice.")
    return ClassNames(tuple(name.strip() for _, name in pairs), folders)
