"""Split a folder of class folders into lists for training and evaluation."""

from dataclasses import dataclass
from pathlib import Path

from ppcls.data.files import list_class_folders, list_class_images, list_direct_images
from ppcls.data.seeding import random_state
from ppcls.errors import DataError

TRAIN_LIST, EVAL_LIST, CLASS_NAMES = "train_list.txt", "val_list.txt", "class_names.txt"


@dataclass(frozen=True)
class SplitLists:
    """Images of each list as (path below the folder, label), and the class folders' names."""

    train: list[tuple[str, int]]
    evaluation: list[tuple[str, int]]
    class_names: list[str]


def split_folder(folder: Path, eval_share: float, seed: int) -> SplitLists:
    """Divide the images of each class folder at random, drawn from (seed, label): `eval_share` of them for
    evaluation, at least one of two or more, and never all.

    Raises DataError for a folder without classes, a class without images, and names that a list cannot hold.
    """
    if not 0 < eval_share < 1:
        raise DataError(f"The share for evaluation must be between 0 and 1. Received: {eval_share}")
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}. Expected: one folder for each class, with its images.")
    beside = list_direct_images(folder)
    if beside:
        raise DataError(
            f"{beside[0]} is beside the class folders, and would be left out. Expected: one folder for each "
            "class, with its images. Move it into one of them, or out of this folder."
        )
    split = SplitLists([], [], list_class_folders(folder))
    if not split.class_names:
        raise DataError(f"{folder} holds no image. Expected: one folder for each class, with its images.")
    for label, (name, images) in enumerate(list_class_images(folder, split.class_names).items()):
        if not images:
            raise DataError(f"The class folder {folder / name} holds no image. Fill it or remove it.")
        count = min(max(round(eval_share * len(images)), 1), len(images) - 1)
        drawn = set(random_state(seed, label).permutation(len(images))[:count].tolist())
        for index, image in enumerate(images):
            part = split.evaluation if index in drawn else split.train
            part.append((_listable(folder, image), label))
    if not split.evaluation:
        raise DataError(f"Each class of {folder} has only one image: nothing is left for evaluation.")
    return split


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


def write_split(split: SplitLists, output: Path, *, overwrite: bool) -> None:
    """Write the three files into `output`. Raises DataError if one exists, unless `overwrite` is set, and if
    `output` cannot be written."""
    contents = {
        TRAIN_LIST: [f"{path} {label}" for path, label in split.train],
        EVAL_LIST: [f"{path} {label}" for path, label in split.evaluation],
        CLASS_NAMES: split.class_names,
    }
    present = [str(output / name) for name in contents if (output / name).exists()]
    if present and not overwrite:
        raise DataError(f"Already there: {', '.join(present)}. --force replaces all three files.")
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name, lines in contents.items():
            (output / name).write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    except OSError as error:
        raise DataError(f"{output} cannot be written: {error.strerror}.") from error
