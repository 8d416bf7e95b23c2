"""Datasets: images from a source, with their labels; opened from a list file, class folders, or shards."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol
from unicodedata import normalize

import numpy as np

from ppcls.commands import command_line
from ppcls.config import DataConfig
from ppcls.data.class_names import CLASS_NAMES, ClassNames, read_class_names
from ppcls.data.files import (
    Files,
    find_images,
    join_paths,
    list_class_folders,
    list_class_images,
    list_direct_images,
    list_images,
    read_list_lines,
    require_some,
)
from ppcls.data.remote import DiskCache
from ppcls.data.shard_index import is_url
from ppcls.data.shards import Shards, find_index, open_shards
from ppcls.errors import ConfigError, DataError, suggest
from ppcls.files import cache_dir

Split = Literal["train", "eval"]


class Source(Protocol):
    """Encoded images in a fixed order. `ppcls.data.files.Files` is one; another kind is a class in a file of
    its own beside it. Several threads call these methods at the same time."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes:
        """Return an image's bytes, as an image file has them. Raises OSError, as open() does."""

    def name(self, index: int) -> str:
        """Return what tables and reports call the image, such as its path."""

    def where(self, index: int) -> str:
        """Return what error messages call the image: its name, and for a list its line."""

    def identity(self, root: str | None) -> bytes:
        """Return bytes that say which images these are, and in which order. They must stay the same when
        the data moves; `root` is the folder that it is in now."""

    def select(self, indices: Sequence[int]) -> "Source":
        """Return a source of these images, in this order."""

    def shuffle(self, indices: np.ndarray, random: np.random.RandomState, parts: int = 1) -> np.ndarray:
        """Return indices int64 [N] in random order; i + k * len(self) stands for a further use of image i.
        A source that reads neighbours together keeps them together, for each of `parts` processes, which
        takes every image p + k * parts."""

    def prefetch(self, indices: Sequence[int]) -> None:
        """Begin to fetch images that will be read soon. A source that is quick does nothing."""


@dataclass(frozen=True)
class Dataset:
    """Images of a source and their labels.

    labels: int64 [N]; None without labels. Where an image can have several labels: int64 [N, M], sorted, a
    shorter row padded with its last label. class_names: the names that the data has, or was given.
    """

    source: Source
    labels: np.ndarray | None = None
    class_names: ClassNames | None = None

    @staticmethod
    def of_files(
        paths: Sequence[str], labels: np.ndarray | None = None, class_names: ClassNames | None = None
    ) -> "Dataset":
        """Return a dataset of image files."""
        return Dataset(Files(paths), labels, class_names)

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: int) -> bytes:
        """Return an image's encoded bytes. Raises OSError where they cannot be read."""
        return self.source.read(index)

    def name(self, index: int) -> str:
        """Return what tables and reports call the image: a file's path."""
        return self.source.name(index)

    def where(self, index: int) -> str:
        """Return what error messages call the image: a file's path, and for a list its line."""
        return self.source.where(index)

    def digest(self, root: str | None) -> str:
        """Return 16 hex digits of the SHA-256 of the images' names below `root` and of the labels. It stays
        the same when the data moves. States of runs keep it: it must never change."""
        digest = hashlib.sha256(self.source.identity(root))
        digest.update(b"" if self.labels is None else self.labels.tobytes())
        return digest.hexdigest()[:16]

    def prefetch(self, indices: Sequence[int]) -> None:
        """Begin to fetch images that will be read soon."""
        self.source.prefetch(indices)

    def select(self, indices: Sequence[int]) -> "Dataset":
        """Return a dataset of these images, in this order."""
        labels = None if self.labels is None else self.labels[indices]
        return replace(self, source=self.source.select(indices), labels=labels)


def require_split(data: DataConfig, split: Split) -> None:
    """Raise DataError or ConfigError, with what to do, if there is nothing to open. Quick: reads no image."""
    root, list_file = _places(data, split)
    if list_file is None and root is None:
        raise ConfigError(
            f"There is no data: data.{split}_root and data.{split}_list are both empty. Give a list file "
            f"(-o data.{split}_list=FILE) or a folder with one folder for each class "
            f"(-o data.{split}_root=DIR)."
        )
    if list_file is not None and not Path(list_file).is_file():
        raise DataError(
            f"There is no list file {list_file} (data.{split}_list), seen from {Path.cwd()}. Expected: a "
            f"text file of lines 'path label', with paths below data.{split}_root ({root}). For a folder of "
            f"class folders {command_line('data', 'split', 'FOLDER')} writes lists, and prints how to train "
            "on them. dataset/README.md describes the layout of ImageNet-1k. For other lists: "
            f"-o data.{split}_list=FILE -o data.{split}_root=DIR, or with one folder for each class: "
            f"-o data.{split}_list=null -o data.{split}_root=DIR."
        )
    if list_file is None and root is not None and (is_url(root) or "{" in root or root.endswith(".tar")):
        raise DataError(
            f"{root} (data.{split}_root) are shards without an index. Make one: "
            f"{command_line('data', 'index', root)}. Then give it: -o data.{split}_list=INDEX."
        )
    if list_file is None and root is not None and not (Path(root).is_dir() or find_index(root)):
        raise DataError(
            f"There is no folder {root} (data.{split}_root). Expected: one folder for each class, with its "
            "images."
        )


def open_split(
    data: DataConfig, split: Split, *, num_classes: int, class_names: str | ClassNames | None
) -> Dataset:
    """Open the images of `data.{split}_root` and `data.{split}_list`, with labels below `num_classes`.

    With a list file, its paths are below the root. Without one, the root holds a folder for each class. In
    place of either there may be shards: their index, or the folder that holds it.
    class_names: the value of `data.class_names`, or names that are known already. Class folders are matched
    with them by name. If no folder has a class's name, the folders' names may be the labels' numbers.
    Without class names the classes are the folders' names, sorted.
    Raises DataError and ConfigError, with what to do.
    """
    require_split(data, split)
    root, list_file = _places(data, split)
    if isinstance(class_names, str):
        class_names = read_class_names(class_names, num_classes)
    index = find_index(list_file or root)
    if index is not None:
        source = open_shards(index, root if list_file else None, _cache_of(data))
        return _with_labels(source, num_classes, class_names)
    if list_file is not None:
        if class_names is not None:
            _require_same_numbers(Path(list_file).with_name(CLASS_NAMES), class_names)
        dataset = _open_list(Path(list_file), Path(root or "."), num_classes)
        return replace(dataset, class_names=class_names)
    folder, option = Path(root or "."), f"data.{split}_root"
    folders = list_class_folders(folder, class_names.folders if class_names else ())
    if class_names is None:
        _require_count(folders, num_classes, f"{folder} ({option}) holds", "class folders")
        class_names = ClassNames.of(folders)
    dataset = _open_class_folders(folder, _labels_of(folders, class_names, folder), class_names)
    if not len(dataset):
        raise DataError(f"{folder} ({option}) holds no image in its {len(folders)} class folders.")
    return dataset


def _require_same_numbers(names_file: Path, class_names: ClassNames) -> None:
    """Raise DataError if the names beside a list, as `ppcls data split` writes them, number the classes
    otherwise than the network does. Further classes behind its own change no number."""
    if not names_file.is_file():
        return
    beside = read_class_names(str(names_file), None).folders
    for label, (own, other) in enumerate(zip(class_names.folders, beside, strict=False)):
        if own != other:
            raise DataError(
                f"{names_file}: class {label} is {other}, but {own} in the network, so the list's labels "
                "mean other classes. Was the folder split anew since the training? Give the lists of that "
                "time, or train again."
            )


def _require_count(classes: Sequence[str], num_classes: int, subject: str, kind: str) -> None:
    """Raise ConfigError if the data have another number of classes than the network."""
    if len(classes) != num_classes:
        cure = f"Set -o model.num_classes={len(classes)}, or name the classes: -o data.class_names=FILE."
        if len(classes) < 2:
            cure = "A network needs two classes: put images of what is not this class into a second folder."
        raise ConfigError(f"{subject} {len(classes)} {kind}, but model.num_classes is {num_classes}. {cure}")


def _cache_of(data: DataConfig) -> DiskCache | None:
    """Return the cache that data.cache_gb requests."""
    return None if data.cache_gb is None else DiskCache(cache_dir() / "shards", int(data.cache_gb * 1e9))


def _with_labels(source: Shards, num_classes: int, class_names: ClassNames | None) -> Dataset:
    """Return the dataset of shards, with labels below `num_classes`. If the index names classes, they are
    matched with `class_names` as class folders are."""
    index = source.index
    labels, own = index.columns.get("labels"), index.class_names
    if labels is None:
        raise DataError(
            f"The shards of {index.path} have no labels. Add a .cls to each sample, and index them again."
        )
    if own is not None and class_names is not None and own.folders != class_names.folders:
        label_of = _labels_of(own.folders, class_names, index.path)
        labels = np.array([label_of[folder] for folder in own.folders], np.int64)[labels]
    elif own is not None and class_names is None:
        _require_count(own.folders, num_classes, f"{index.path} names", "classes")
        class_names = own
    if labels.max() >= num_classes:
        first = int((labels >= num_classes).argmax())
        raise DataError(
            f"{source.where(first)}: label {labels[first]} is outside 0 to {num_classes - 1}. "
            f"model.num_classes is {num_classes}; labels count from 0."
        )
    return Dataset(source, labels, class_names)


def open_path(path: Path, root: Path | None = None) -> Dataset:
    """Open a list file, shards by their index or folder, a folder of class folders, or a folder of images
    without labels, as it is.

    root: the folder of a list's paths; None: the list's own folder. Raises DataError.
    """
    index = find_index(path)
    if index is not None:
        source = open_shards(index, None if root is None else str(root))
        return Dataset(source, source.index.columns.get("labels"), source.index.class_names)
    if path.is_dir():
        if list_direct_images(path):  # then folders beside the images are not classes
            return Dataset.of_files(list_images(path))
        folders = list_class_folders(path)
        label_of = {folder: label for label, folder in enumerate(folders)}
        dataset = _open_class_folders(path, label_of, ClassNames.of(folders))
        if not len(dataset):
            raise DataError(f"{path} holds no image.")
        return dataset
    if not path.is_file():
        raise DataError(f"There is no list file or folder {path}.")
    root = path.parent if root is None else root
    dataset = _open_list(path, root)
    require_images(dataset, root, "--root ")
    return dataset


def open_images(pattern: str) -> Dataset:
    """Open shards by their index or folder, or the files that a path, a folder or a glob pattern names.
    Raises DataError where there are none."""
    index = find_index(pattern)
    return Dataset.of_files(find_images(pattern)) if index is None else open_path(index)


def require_images(dataset: Dataset, root: str | Path | None, cure: str) -> None:
    """Raise DataError if the files of a list do not exist, since its root is wrong. cure: how a user gives
    another root."""
    if isinstance(dataset.source, Files):
        require_some(dataset.source, Path(root or "."), cure)


def describe_classes(dataset: Dataset, num_classes: int = 0) -> str:
    """Return a line on the images of each class: how many classes have some, the fewest and the most, and
    which classes have none. num_classes: of the network, where there is one."""
    labels, names = dataset.labels, dataset.class_names
    if labels is None:
        return f"{len(dataset)} images without labels"
    counts = np.bincount(labels, minlength=max(num_classes, len(names or ())))
    used, unused = np.flatnonzero(counts), np.flatnonzero(counts == 0)
    shown = [names.names[label] if names else str(label) for label in range(len(counts))]
    fewest, most = used[counts[used].argmin()], used[counts[used].argmax()]
    line = (
        f"classes: {len(used)}{f' of {len(counts)}' if len(unused) else ''}; fewest images: "
        f"{counts[fewest]} ({shown[fewest]}), most: {counts[most]} ({shown[most]})"
    )
    if len(unused):
        more = ", ..." if len(unused) > 5 else ""
        line += f"; {len(unused)} without an image: {', '.join(shown[label] for label in unused[:5])}{more}"
    if used[-1] + 1 < num_classes:
        line += (
            f". The largest label is {used[-1]}: if there are no more classes, -o model.num_classes="
            f"{used[-1] + 1} -o data.class_names=FILE"
        )
    return line


def _places(data: DataConfig, split: Split) -> tuple[str | None, str | None]:
    """Return the split's root and list file."""
    if split == "train":
        return data.train_root, data.train_list
    return data.eval_root, data.eval_list


def _open_list(list_file: Path, root: Path, num_classes: int | None = None) -> Dataset:
    names, numbers, values = [], [], []
    for number, path, label in read_list_lines(list_file):
        names.append(path)
        numbers.append(number)
        values.append(label)
    if not names:
        raise DataError(f"{list_file} names no image. Expected: lines 'path label'.")
    lines, labels = np.array(numbers, np.int64), np.array(values, np.int64)
    if num_classes is not None and labels.max() >= num_classes:
        first = int((labels >= num_classes).argmax())
        raise DataError(
            f"{list_file}, line {lines[first]}: label {labels[first]} is outside 0 to "
            f"{num_classes - 1}. model.num_classes is {num_classes}; labels count from 0."
        )
    return Dataset(Files(join_paths(root, names), str(list_file), lines), labels)


def _open_class_folders(root: Path, label_of: Mapping[str, int], class_names: ClassNames) -> Dataset:
    paths: list[str] = []
    labels: list[int] = []
    for folder, images in list_class_images(root, label_of).items():
        paths.extend(images)
        labels.extend([label_of[folder]] * len(images))
    return Dataset.of_files(paths, np.array(labels, np.int64), class_names)


def _labels_of(folders: Sequence[str], class_names: ClassNames, root: Path) -> dict[str, int]:
    """Return each folder's label. Raises DataError for a folder that is not a class."""
    label_of = {folder: label for label, folder in enumerate(class_names.folders)}
    numbers = {str(label): label for label in range(len(class_names))}
    if not label_of.keys() & set(folders) and numbers.keys() >= set(folders):
        label_of = numbers  # as in ImageNet-V2, whose folder 10 comes before 2 in alphabetical order
    for folder in folders:
        if folder not in label_of:
            names = list(label_of)
            hint = suggest(folder, names) if len(names) <= 20 else f"they go from {names[0]} to {names[-1]}."
            if normalize("NFC", folder) in {normalize("NFC", name) for name in names}:
                hint = "one has it in another Unicode form: macOS decomposes letters with accents. Rename it."
            raise DataError(
                f"{root / folder}: none of the {len(names)} classes has this name; {hint} The names come "
                "from the weights, the training data or data.class_names."
            )
    return {folder: label_of[folder] for folder in folders}
