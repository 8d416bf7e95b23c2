"""Image files: the source of a dataset that reads them, and functions that list them."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path

import numpy as np

from ppcls.errors import DataError

IMAGE_SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
}


@dataclass(frozen=True)
class Files:
    """Source of images, one file each (`ppcls.data.dataset.Source` says what each method must do).

    An image's name is its path. lines: int64 [N], for each image its line number in `list_file`.
    """

    paths: Sequence[str]
    list_file: str | None = None
    lines: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> bytes:
        with open(self.paths[index], "rb") as file:
            return file.read()

    def name(self, index: int) -> str:
        return self.paths[index]

    def where(self, index: int) -> str:
        if self.lines is None:
            return self.paths[index]
        return f"{self.paths[index]} ({self.list_file}, line {self.lines[index]})"

    def identity(self, root: str | None) -> bytes:
        """Return the paths below `root`, one on each line."""
        prefix = str(Path(root or "."))
        names = "\n".join(path.removeprefix(prefix) for path in self.paths)
        return names.encode(errors="surrogateescape")

    def select(self, indices: Sequence[int]) -> "Files":
        lines = None if self.lines is None else self.lines[indices]
        return Files([self.paths[index] for index in indices], self.list_file, lines)


def is_image(name: str) -> bool:
    """Return whether a file's name ends as an image's does. Hidden files are not images: they are thumbnails
    and backups of editors."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith(".")


def list_images(folder: Path) -> list[str]:
    """Return the image files in a folder and in all folders below it, sorted. Hidden folders are left out."""
    found: list[str] = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found.extend(os.path.join(parent, name) for name in files if is_image(name))
    return sorted(found)


def list_direct_images(folder: Path) -> list[str]:
    """Return the image files in the folder itself, sorted."""
    return sorted(str(path) for path in folder.iterdir() if is_image(path.name) and not path.is_dir())


def list_class_folders(root: Path) -> list[str]:
    """Return the names of the folders in `root`, sorted: the classes in the order of the labels. Hidden
    folders are left out."""
    return sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def find_images(pattern: str) -> list[str]:
    """Return the files that a file's path, a folder (with all folders below it) or a glob pattern names,
    sorted. Raises DataError where there are none."""
    path = Path(pattern)
    if path.is_file():
        return [pattern]
    if path.is_dir():
        found = list_images(path)
        if not found:
            raise DataError(f"The folder {path} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}).")
        return found
    found = sorted({name for name in glob(pattern, recursive=True) if Path(name).is_file()})
    if not found:
        raise DataError(f"There is no image, folder or match for {pattern!r}.")
    return found


def read_list_lines(list_file: Path) -> Iterator[tuple[int, str, int]]:
    """Yield the line number, path and label of each line that is not blank.

    The label is the last word of the line, so that paths may contain spaces. Backslashes count as slashes.
    Raises DataError for a file that cannot be read, and for a line without a path or a label.
    """
    try:
        text = list_file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{list_file} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{list_file} is not UTF-8 text: {error}. Save it as UTF-8.") from error
    for number, line in enumerate(text.split("\n"), 1):
        fields = line.strip().rsplit(None, 1)
        if not fields:
            continue
        label = fields[-1]
        is_label = label.isdecimal() and label.isascii() and len(label) < 10
        if len(fields) == 1 or not is_label or "\0" in line:
            raise DataError(
                f"{list_file}, line {number}: expected 'path label' with a whole number as the label. "
                f"Received: {line.strip()[:200]!r}"
            )
        yield number, fields[0].replace("\\", "/"), int(label)
