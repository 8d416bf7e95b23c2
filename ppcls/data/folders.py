"""Images in folders: walk them, and list the images of classes, of a folder or of a glob pattern."""

import os
import re
import stat
from collections import Counter, defaultdict, deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from glob import glob
from pathlib import Path

from ppcls.data.files import other_form_hint
from ppcls.errors import DataError
from ppcls.progress import note

IMAGE_SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".bmp", ".dib", ".tif", ".tiff", ".webp"),
    *(".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".icb", ".vda", ".vst", ".avif", ".avifs"),
    *(".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
}
# How an image file begins, for a file without an ending.
_IMAGE_START = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n|GIF8[79]a|BM.{4}\0{4}|II[*+]\0|MM\0[*+]|RIFF.{4}WEBP|P[1-6]\s|"
    rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51|.{4}ftypavi[fs]",
    re.DOTALL,
)
# Folders that are not classes: those that other programs leave, and the parts of a dataset.
_LEFTOVERS = {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
_TRAIN_PARTS, _EVAL_PARTS = {"train", "training"}, {"val", "valid", "validation", "eval", "test", "testing"}


@dataclass(frozen=True)
class Walk:
    """Result of a walk. images: their paths, sorted. left_out: numbers of the other files, by ending.
    folders: the identity of each real folder, with the path that was taken to it."""

    images: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    folders: dict[object, str] = field(default_factory=dict)


def walk(top: Path) -> Walk:
    """Find the images in a folder and in all folders below it.

    Links to folders are followed, after all that is there without them; each real folder is entered once.
    Hidden files and folders are left out and not counted: they are thumbnails and backups of editors.
    Raises DataError for a folder that cannot be read, and for a link that leads above `top`.
    """
    above = {_identity(parent) for parent in top.resolve().parents}
    if top.is_symlink():
        home = top.parent.resolve()
        above |= {_identity(parent) for parent in (home, *home.parents)}
    found = Walk()
    pending = deque([str(top)])
    while pending:
        for parent, folders, files in os.walk(pending.popleft(), onerror=_refuse_folder):
            identity = _identity(parent)
            if identity in above:
                raise DataError(
                    f"{parent} is a link that leads back above {top}, to {os.path.realpath(parent)}: it "
                    "would bring in the files of other folders. Remove it."
                )
            if identity in found.folders:
                folders.clear()
                continue
            found.folders[identity] = parent
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            paths = (os.path.join(parent, name) for name in folders)
            pending.extend(path for path in paths if os.path.islink(path))
            _sort_out(parent, files, found)
    found.images.sort()
    return found


def _refuse_folder(error: OSError) -> None:
    raise DataError(f"The folder {error.filename} cannot be read: {error.strerror}.") from error


def _identity(folder: str | Path) -> object:
    """Return what two paths to the same folder have in common."""
    status = os.stat(folder)
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(folder)


def _sort_out(parent: str, names: Iterable[str], found: Walk) -> None:
    for name in names:
        path, ending = os.path.join(parent, name), os.path.splitext(name)[1].lower()
        if name.startswith("."):
            continue
        if ending in IMAGE_SUFFIXES or (ending in ("", ".") and _begins_as_image(path)):
            found.images.append(path)
        else:
            found.left_out[ending if ending.strip(".") else "without an ending"] += 1


def _begins_as_image(path: str) -> bool:
    """Return whether a file's first bytes are an image's. A file that cannot be read counts as one, so that
    it is missed."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return False
        with open(path, "rb") as file:
            return _IMAGE_START.match(file.read(32)) is not None
    except OSError:
        return True


def note_left_out(folder: str | Path, left_out: Counter[str]) -> None:
    """Print how many files of a folder were left out, by their endings."""
    count = sum(left_out.values())
    if count:
        kinds = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
        parts = [f"{number} {kind}" for kind, number in kinds[:10]]
        if len(kinds) > 10:
            parts.append(f"{sum(number for _, number in kinds[10:])} of {len(kinds) - 10} other endings")
        note(f"{folder}: {count} {'file' if count == 1 else 'files'} left out: {', '.join(parts)}")


def list_images(folder: Path) -> list[str]:
    """Return the images in a folder and in all folders below it, sorted (see `walk`), and print how many
    files were left out."""
    found = walk(folder)
    note_left_out(folder, found.left_out)
    return found.images


def list_direct_images(folder: Path) -> list[str]:
    """Return the image files in the folder itself, sorted."""
    found = Walk()
    _sort_out(str(folder), (entry.name for entry in _entries(folder) if not entry.is_dir()), found)
    return sorted(found.images)


def _entries(folder: Path) -> list[Path]:
    """Return what a folder holds and is not hidden. Raises DataError for a class that is a broken link."""
    entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    for entry in entries:
        if entry.is_symlink() and not entry.suffix and not entry.exists():
            raise DataError(f"{entry} is a link to {os.readlink(entry)}, which does not exist. Remove it.")
    return entries


def list_class_folders(root: Path, known: Collection[str] = ()) -> list[str]:
    """Return the names of the folders in `root`, sorted: the classes in the order of the labels. Hidden
    folders are left out.

    known: names that are classes for certain. Raises DataError for other folders that are not classes: what
    another program left there, or the parts of a dataset.
    """
    names = sorted(entry.name for entry in _entries(root) if entry.is_dir())
    unknown = [name for name in names if name not in known]
    for name in unknown:
        if name in _LEFTOVERS:
            raise DataError(f"{root / name} is not a class: another program left this folder. Remove it.")
    parts = [[name for name in unknown if name.lower() in kind] for kind in (_TRAIN_PARTS, _EVAL_PARTS)]
    if all(parts):
        train, evaluation = root / parts[0][0], root / parts[1][0]
        raise DataError(
            f"{root} holds the folders {train.name} and {evaluation.name}: the parts of a dataset, not its "
            f"classes. Give one part: {train} to train (data.train_root), {evaluation} to evaluate "
            "(data.eval_root)."
        )
    return names


def list_class_images(root: Path, folders: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return the images in class folders of `root` by their paths, each with its classes, and print how many
    files were left out. A file that links bring into several class folders is one image of several classes,
    under its first path.

    Raises DataError for a folder that links bring into two classes, and as `walk` does.
    """
    images: dict[str, list[str]] = {}
    left_out = Counter({"beside the class folders": len(list_direct_images(root))})
    class_of: dict[object, tuple[str, str]] = {}
    for name in folders:
        found = walk(root / name)
        for identity, path in found.folders.items():
            other, other_path = class_of.setdefault(identity, (name, path))
            if other != name:
                raise DataError(
                    f"The classes {other!r} and {name!r} share a folder: {other_path} and {path} are the "
                    "same. Remove one of the links. If all of its images have both classes, link the images "
                    "and not the folder."
                )
        images[name] = found.images
        left_out += found.left_out
    note_left_out(root, left_out)
    return _join_linked(images)


def _join_linked(images: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """Return the classes of each image, from the paths in each class folder."""
    classes: dict[str, tuple[str, ...]] = {}
    path_of: dict[int, str] = {}  # first one of the file with this number on its disk
    more: defaultdict[str, list[str]] = defaultdict(list)  # by the first one, other paths in the same class
    for name, paths in images.items():
        own, number_in = (name,), cache(_numbers_in)
        for path in paths:
            folder, file = os.path.split(path)
            number = number_in(folder).get(file)
            first = path if number is None else path_of.setdefault(number, path)
            if first is path or not os.path.samefile(first, path):
                classes[path] = own
            elif classes[first] == own:
                classes[path] = own
                more[first].append(path)
            else:
                joined = tuple(dict.fromkeys((*classes[first], name)))
                classes |= dict.fromkeys((first, *more[first]), joined)
    return classes


def _numbers_in(folder: str) -> dict[str, int]:
    """Return the number on its disk of each file in a folder, links resolved. The listing has the others."""
    numbers = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                numbers[entry.name] = entry.stat().st_ino if entry.is_symlink() else entry.inode()
            except OSError:  # a link that leads nowhere
                continue
    return numbers


def find_images(pattern: str) -> list[str]:
    """Return the files that a file's path, a folder (with all folders below it) or a glob pattern names,
    sorted. Raises DataError where there are none."""
    if not pattern:
        raise DataError("Expected: a file, a folder or a glob pattern. Received: an empty text.")
    path = Path(pattern)
    if path.is_file():
        return [pattern]
    if path.is_dir():
        images = list_images(path)
        if not images:
            raise DataError(f"The folder {path} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}).")
        return images
    # Links may lead a pattern with ** to the same file by several paths: the shortest one is kept.
    matches = sorted(set(glob(pattern, recursive=True)), key=lambda name: (len(name), name))
    files: dict[object, str] = {}
    for name in filter(os.path.isfile, matches):
        files.setdefault((_identity(os.path.dirname(name) or "."), os.path.basename(name)), name)
    folders = [name for name in matches if os.path.isdir(name)]
    if folders and "**" not in pattern:
        note(f"{pattern}: {len(folders)} folders match too, and are not searched: '**' searches them")
    if not files:
        raise DataError(f"There is no image, folder or match for {pattern!r}{other_form_hint(pattern)}.")
    return sorted(files.values())
