"""Open datasets: from a list file, class folders, shards, or a folder of images without labels."""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal
from unicodedata import normalize

import numpy as np

from ppcls.commands import command_line
from ppcls.config import DataConfig
from ppcls.data.class_names import CLASS_NAMES, ClassNames, read_class_names
from ppcls.data.dataset import Dataset
from ppcls.data.files import Files
from ppcls.data.folders import (
    find_images,
    list_class_folders,
    list_class_images,
    list_direct_images,
    list_images,
)
from ppcls.data.label_sets import LabelSets
from ppcls.data.list_file import join_paths, read_list_lines, require_some
from ppcls.data.remote import DiskCache
from ppcls.data.shard_index import is_url
from ppcls.data.shards import Shards, find_index, open_shards
from ppcls.data.source import Source
from ppcls.errors import ConfigError, DataError, suggest
from ppcls.files import cache_dir

Split = Literal["train", "eval"]


def require_split(data: DataConfig, split: Split) -> None:
    """Raise DataError or ConfigError, with what to do, if there is nothing to open. Quick: reads no image."""
    root, list_file = _places(data, split)
    if list_file is None and root is None:
        raise ConfigError(
            f"There is no data: data.{split}_root and data.{split}_list are both empty. Give a list file "
            f"(-o data.{split}_list=FILE) or a folder with one folder for each class "
            f"(-o data.{split}_root=DIR)."
        )
    if list_file is not None and not Path(list_file).is_file() and find_index(list_file) is None:
        found = ", which is a folder" if Path(list_file).is_dir() else f", seen from {Path.cwd()}"
        raise DataError(
            f"There is no list file {list_file} (data.{split}_list){found}. Expected: a "
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
    sets, own = index.labels, index.class_names
    if sets is None:
        raise DataError(
            f"The shards of {index.path} have no labels. Add a .cls to each sample, and index them again."
        )
    if own is not None and class_names is not None and own.folders != class_names.folders:
        label_of = _labels_of(own.folders, class_names, index.path)
        sets = LabelSets(
            np.array([label_of[folder] for folder in own.folders], np.int64)[sets.values], sets.starts
        )
    elif own is not None and class_names is None:
        _require_count(own.folders, num_classes, f"{index.path} names", "classes")
        class_names = own
    _require_inside(source, sets, num_classes)
    return Dataset.of_sets(source, sets, class_names)


def _require_inside(source: Source, sets: LabelSets, num_classes: int) -> None:
    """Raise DataError, with the image, for a label that the network does not have."""
    outside = sets.first_outside(num_classes)
    if outside is not None:
        image, label = outside
        raise DataError(
            f"{source.where(image)}: label {label} is outside 0 to {num_classes - 1}. model.num_classes is "
            f"{num_classes}; labels count from 0."
        )


def open_path(path: Path, root: Path | None = None, cure: str = "--root ") -> Dataset:
    """Open a list file, shards by their index or folder, a folder of class folders, or a folder of images
    without labels, as it is.

    root: the folder of a list's paths; None: the list's own folder. cure: how a user gives another one.
    Raises DataError.
    """
    index = find_index(path)
    _refuse_tar(str(path), index)
    if index is not None:
        source = open_shards(index, None if root is None else str(root))
        sets, names = source.index.labels, source.index.class_names
        return Dataset(source, None, names) if sets is None else Dataset.of_sets(source, sets, names)
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
    require_images(dataset, root, cure)
    return dataset


def open_images(pattern: str) -> Dataset:
    """Open shards by their index or folder, or the files that a path, a folder or a glob pattern names.
    Raises DataError where there are none."""
    index = find_index(pattern)
    _refuse_tar(pattern, index)
    return Dataset.of_files(find_images(pattern)) if index is None else open_path(index)


def _refuse_tar(place: str, index: str | Path | None) -> None:
    """Raise DataError for a tar, which is not opened without its index."""
    if index is None and place.endswith(".tar") and not Path(place).is_dir():
        raise DataError(
            f"{place}: a shard is opened by its index. If the shard exists, make one: "
            f"{command_line('data', 'index', place)}. Then give the index."
        )


def open_calibration(place: str, data: DataConfig) -> Dataset:
    """Open the pictures that int8 is calibrated on: a list file, a folder with all below it, a glob pattern,
    or shards. The paths of a list are below its own folder; those of data.train_list and data.eval_list below
    their roots. Raises DataError."""
    path = Path(place)
    if not path.is_file():
        return open_images(place)
    root = {data.train_list: data.train_root, data.eval_list: data.eval_root}.get(place)
    cure = f"-o data.eval_list={place} -o data.eval_root="
    return open_path(path, None if root is None else Path(root), cure)


def require_images(dataset: Dataset, root: str | Path | None, cure: str) -> None:
    """Raise DataError if the files of a list do not exist, since its root is wrong. cure: how a user gives
    another root."""
    if isinstance(dataset.source, Files):
        require_some(dataset.source, Path(root or "."), cure)


def _places(data: DataConfig, split: Split) -> tuple[str | None, str | None]:
    """Return the split's root and list file."""
    if split == "train":
        return data.train_root, data.train_list
    return data.eval_root, data.eval_list


def _open_list(list_file: Path, root: Path, num_classes: int | None = None) -> Dataset:
    names: list[str] = []
    numbers, values, sizes = array("q"), array("q"), array("q")
    for number, path, labels in read_list_lines(list_file):
        names.append(path)
        numbers.append(number)
        values.extend(labels)
        sizes.append(len(labels))
    if not names:
        raise DataError(f"{list_file} names no image. Expected: lines 'path label'.")
    files = Files(join_paths(root, names), str(list_file), np.array(numbers, np.int64))
    sets = LabelSets.of_sizes(np.array(values, np.int64), np.array(sizes, np.int64))
    if num_classes is not None:
        _require_inside(files, sets, num_classes)
    return Dataset.of_sets(files, sets)


def _open_class_folders(root: Path, label_of: Mapping[str, int], class_names: ClassNames) -> Dataset:
    classes_of = list_class_images(root, label_of)
    values = [label_of[folder] for folders in classes_of.values() for folder in folders]
    sets = LabelSets.of_sizes(np.array(values, np.int64), [len(folders) for folders in classes_of.values()])
    return Dataset.of_sets(Files(list(classes_of)), sets, class_names)


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
