"""Which images there are, and their labels: from a list file, or from one folder a class."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ppcls.data.class_names import ClassNames, read_class_names
from ppcls.errors import ConfigError, DataError, suggest

IMAGE_SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
}


@dataclass(frozen=True)
class Dataset:
    """Image files in a fixed order. `labels` is int64 [N], or None where they have none; where an image can
    have several, int64 [N, M], sorted, a shorter row filled up with its last label.

    lines: int64 [N], the line of `list_file` that each image stands on.
    class_names: the names that came with the data, or were given for it.
    """

    paths: Sequence[str]
    labels: np.ndarray | None = None
    list_file: str | None = None
    lines: np.ndarray | None = None
    class_names: ClassNames | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def where(self, index: int) -> str:
        """The image as an error message names it."""
        if self.lines is None:
            return self.paths[index]
        return f"{self.paths[index]} ({self.list_file}, line {self.lines[index]})"


def open_dataset(
    root: str | None,
    list_file: str | None,
    *,
    num_classes: int,
    class_names: str | ClassNames | None,
    option: str,
) -> Dataset:
    """The images of `data.{option}_root` and `data.{option}_list`, labels checked against `num_classes`.

    With a list file its paths lie under `root`; without one `root` holds a folder for each class.
    class_names: what `data.class_names` says, or names that are known already. Class folders are matched
    with them by name, or, where none has a class's name, by the number that is its name; without class names
    the folders' sorted names are the classes.
    Raises DataError and ConfigError, with what to put where.
    """
    require_source(root, list_file, option)
    if isinstance(class_names, str):
        class_names = read_class_names(class_names, num_classes)
    if list_file is not None:
        return _read_list(Path(root or "."), Path(list_file), num_classes, class_names, option)
    return _read_folders(Path(root or "."), num_classes, class_names, option)


def require_source(root: str | None, list_file: str | None, option: str) -> None:
    """Raises DataError or ConfigError, with what to put where, unless there is something to open."""
    if list_file is None and root is None:
        raise ConfigError(
            f"There is no data: data.{option}_root and data.{option}_list are both empty. Give a list file "
            f"(-o data.{option}_list=FILE) or a folder with one folder a class (-o data.{option}_root=DIR)."
        )
    if list_file is not None and not Path(list_file).is_file():
        raise DataError(
            f"There is no list file {list_file} (data.{option}_list). Expected: a text file of lines "
            f"'path label', the images' paths under data.{option}_root ({root}). dataset/README.md says how "
            f"ImageNet-1k is laid out; other data: -o data.{option}_list=FILE -o data.{option}_root=DIR, or "
            f"one folder a class: -o data.{option}_list=null -o data.{option}_root=DIR."
        )
    if list_file is None and root is not None and not Path(root).is_dir():
        raise DataError(
            f"There is no folder {root} (data.{option}_root). Expected: one folder a class, with its images."
        )


def _read_list(
    root: Path, list_file: Path, num_classes: int, class_names: ClassNames | None, option: str
) -> Dataset:
    paths, labels, lines = [], [], []
    for number, path, label in read_list_lines(list_file):
        if not 0 <= label < num_classes:
            raise DataError(
                f"{list_file}, line {number}: label {label} is outside 0 to {num_classes - 1}. "
                f"model.num_classes is {num_classes}; labels count from 0."
            )
        paths.append(str(root / path))
        labels.append(label)
        lines.append(number)
    if not paths:
        raise DataError(f"{list_file} (data.{option}_list) names no image. Expected: lines 'path label'.")
    return Dataset(paths, np.array(labels, np.int64), str(list_file), np.array(lines, np.int64), class_names)


def read_list_lines(list_file: Path) -> Iterator[tuple[int, str, int]]:
    """Line number, path and label of each line that is not blank. The label is what follows the last
    space or tab, so that paths may have spaces; backslashes count as slashes."""
    try:
        text = list_file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{list_file} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{list_file} is no UTF-8 text: {error}.") from error
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


def _read_folders(root: Path, num_classes: int, class_names: ClassNames | None, option: str) -> Dataset:
    folders = list_class_folders(root)
    if class_names is None:
        if len(folders) != num_classes:
            raise ConfigError(
                f"{root} (data.{option}_root) holds {len(folders)} class folders, but model.num_classes is "
                f"{num_classes}. Set -o model.num_classes={len(folders)}, or name the classes in a file: "
                "-o data.class_names=FILE."
            )
        class_names = ClassNames.of(folders)
    label_of = {folder: label for label, folder in enumerate(class_names.folders)}
    numbers = {str(label): label for label in range(len(class_names))}
    if not label_of.keys() & set(folders) and numbers.keys() >= set(folders):
        label_of = numbers  # as ImageNet-V2 has them: in the folders' alphabetical order 10 comes before 2
    paths: list[str] = []
    labels: list[int] = []
    for folder in folders:
        if folder not in label_of:
            names = list(label_of)
            hint = suggest(folder, names) if len(names) <= 20 else f"they go from {names[0]} to {names[-1]}."
            raise DataError(
                f"{root / folder}: none of the {len(names)} classes has this name; {hint} They come from the "
                "weights, the training data or data.class_names."
            )
        images = list_images(root / folder)
        paths.extend(images)
        labels.extend([label_of[folder]] * len(images))
    if not paths:
        raise DataError(f"{root} (data.{option}_root) holds no image in its {len(folders)} class folders.")
    return Dataset(paths, np.array(labels, np.int64), class_names=class_names)


def list_class_folders(root: Path) -> list[str]:
    """The names of the folders in `root`, but for hidden ones, sorted: the classes in the labels' order."""
    return sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def list_images(folder: Path) -> list[str]:
    """The image files below a folder, by their names' endings, sorted. Hidden files and folders are left out:
    they hold thumbnails and editors' copies."""
    found: list[str] = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found.extend(
            os.path.join(parent, name)
            for name in files
            if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith(".")
        )
    return sorted(found)
