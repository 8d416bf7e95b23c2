"""Equal images: files with the same bytes, and images that are training and evaluation data at once."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from ppcls import distributed
from ppcls.commands import command_line
from ppcls.config import DataConfig
from ppcls.data.dataset import Dataset
from ppcls.data.files import Files
from ppcls.errors import DataError, first_few
from ppcls.progress import progress_bar

MOST_COMPARED = 20_000  # images whose contents are compared at a start of training
_HEAD = 16 * 1024  # bytes that are compared before whole files are
_CHUNK = 1024 * 1024  # bytes read at a time
_SHARE = 64  # files that a thread is handed at a time

Group = list[int]


def group_equal(
    paths: Sequence[str], is_kept: Callable[[Group], bool] = lambda group: len(group) > 1
) -> list[Group]:
    """Find files with the same bytes. Returns groups of indices of `paths`, ascending.

    Only files of equal size are opened, and only those that begin alike are read to the end. A file that
    is empty or cannot be read equals no other. is_kept: whether a group is of interest. A bar appears after
    two seconds.
    """
    groups: list[Group] = [list(range(len(paths)))]
    with ThreadPoolExecutor(distributed.cores()) as pool:
        for key in (_size, _head, _whole):
            keys = _compute(pool, key, paths, [index for group in groups for index in group])
            groups = [part for group in groups for part in _divide(group, keys) if is_kept(part)]
    return groups


def _compute(
    pool: ThreadPoolExecutor, key: Callable[[str], object], paths: Sequence[str], indices: Group
) -> dict[int, object]:
    """Compute the key of each of these files."""
    keys: dict[int, object] = {}
    shares = [indices[start : start + _SHARE] for start in range(0, len(indices), _SHARE)]

    def compute(share: Group) -> dict[int, object]:
        return {index: key(paths[index]) for index in share}

    with progress_bar(len(indices), "compare files", unit="file", delay=2) as bar:
        for part in pool.map(compute, shares):
            keys |= part
            bar.update(len(part))
    return keys


def _divide(group: Group, keys: dict[int, object]) -> Iterable[Group]:
    parts: defaultdict[object, Group] = defaultdict(list)
    for index in group:
        if keys[index] is not None:
            parts[keys[index]].append(index)
    return parts.values()


def _size(path: str) -> int | None:
    try:
        return os.stat(path).st_size or None
    except OSError:
        return None


def _head(path: str) -> bytes | None:
    return _digest(path, _HEAD)


def _whole(path: str) -> bytes | None:
    return _digest(path, None)


def _digest(path: str, limit: int | None) -> bytes | None:
    """Return a digest of a file's first `limit` bytes, or of all; None if it cannot be read."""
    digest = hashlib.blake2b(digest_size=16)
    try:
        with open(path, "rb", buffering=0) as file:
            while chunk := file.read(limit or _CHUNK):
                digest.update(chunk)
                if limit:
                    break
    except OSError:
        return None
    return digest.digest()


def check_overlap(data: DataConfig, train_set: Dataset, eval_set: Dataset, *, may_share: bool) -> list[str]:
    """Look for images that are training and evaluation data at once.

    Files are compared by their paths, links resolved, and by their contents if there are at most 20,000.
    Other sources than files are not compared. Returns notes. Raises DataError for evaluation images whose
    file is a training image, unless `may_share`.
    """
    shared = find_shared_files(train_set, eval_set)
    if shared:
        names = first_few([eval_set.where(index) for index in shared], 3)
        text = f"{len(shared)} of {len(eval_set)} evaluation images are training images too ({names})."
        if not may_share:
            raise DataError(f"{text} {_cure(data)}")
        return [f"{text} Their accuracy says nothing about other images"]
    pairs = find_equal_contents(train_set, eval_set)
    if not pairs:
        return []
    texts = [f"{eval_set.where(evaluated)} = {train_set.where(trained)}" for trained, evaluated in pairs]
    return [
        f"{len(pairs)} of {len(eval_set)} evaluation images have the bytes of a training image "
        f"({first_few(texts, 3)}). Their accuracy says nothing about other images. All of them: "
        f"{_check_command(data)}"
    ]


def _check_command(data: DataConfig) -> str:
    """Return the command that lists all images with the same bytes."""
    parts = ((data.train_root, data.train_list), (data.eval_root, data.eval_list))
    roots = {root or "." for root, list_file in parts if list_file is not None}
    options = ["--root", *roots] if len(roots) == 1 else []
    return command_line("data", "check", *(list_file or root for root, list_file in parts), *options)


def _cure(data: DataConfig) -> str:
    """Return the end of the error: how training and evaluation data become separate."""
    root = data.train_root or "FOLDER"
    places = ", ".join(
        f"data.{name}={getattr(data, f'{part}_{kind}')}"
        for part in ("train", "eval")
        for kind in ("root", "list")
        if getattr(data, name := f"{part}_{kind}") is not None
    )
    if data.train_list is None and data.eval_list is None:
        cure = f"Divide the folder into two lists: {command_line('data', 'split', root)}."
    else:
        cure = "Remove their lines from one of the lists, or give other data."
    return (
        "Their accuracy would say nothing about other images. Expected: different images to train and to "
        f"evaluate. Received: {places}. {cure} To evaluate on training images on purpose, such as to see a "
        "network overfit: -o data.allow_overlap=true."
    )


def find_shared_files(train_set: Dataset, eval_set: Dataset) -> list[int]:
    """Return the indices of the evaluation images whose file, links resolved, is a training image too."""
    evaluated = list(_resolve(_paths(eval_set)))
    shared = set(evaluated).intersection(_resolve(_paths(train_set)))
    return [index for index, path in enumerate(evaluated) if path in shared] if shared else []


def find_equal_contents(train_set: Dataset, eval_set: Dataset) -> list[tuple[int, int]]:
    """Return the evaluation images with the bytes of a training image: the indices of both, that of the
    training image first. Sets of more than MOST_COMPARED images together are not compared: returns none."""
    trained, evaluated = _paths(train_set), _paths(eval_set)
    if not trained or not evaluated or len(trained) + len(evaluated) > MOST_COMPARED:
        return []
    boundary = len(trained)
    groups = group_equal([*trained, *evaluated], lambda group: group[0] < boundary <= group[-1])
    pairs = [(group[0], index - boundary) for group in groups for index in group if index >= boundary]
    return sorted(pairs, key=lambda pair: pair[1])


def _paths(dataset: Dataset) -> Sequence[str]:
    return dataset.source.paths if isinstance(dataset.source, Files) else ()


def _resolve(paths: Iterable[str]) -> Iterator[str]:
    """Yield each path with links resolved. Quick for a million: each folder is resolved and listed once, and
    of the files only links are."""
    folders: dict[str, tuple[str, set[str]]] = {}
    for path in paths:
        parent, separator, name = path.rpartition(os.sep)
        folder = parent or separator or "."
        if folder not in folders:
            real = os.path.realpath(folder)
            folders[folder] = (os.path.join(real, ""), _links(real))
        prefix, links = folders[folder]
        yield os.path.realpath(path) if name in links else prefix + name


def _links(folder: str) -> set[str]:
    """Return the names of the links in a folder; none if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_symlink()}
    except OSError:
        return set()
