"""Images that are there twice: files with the same bytes, and evaluation images among the training images."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial

import numpy as np

from ppcls import distributed
from ppcls.commands import command_line
from ppcls.config import DataConfig
from ppcls.data.dataset import Dataset
from ppcls.data.files import Files
from ppcls.data.shards import Shards
from ppcls.errors import DataError, first_few
from ppcls.progress import progress_bar

MOST_COMPARED = 20_000  # images whose contents are compared at a start of training
_HEAD = 16 * 1024  # bytes that are compared before whole files are
_CHUNK = 1024  # files handed to the threads at a time

Group = list[int]
Key = Callable[[int], object]


def group_equal(
    paths: Sequence[str], is_kept: Callable[[Group], bool] = lambda group: len(group) > 1
) -> list[Group]:
    """Find files with the same bytes. Returns groups of indices of `paths`, ascending.

    Only files of equal size are opened, and only those that begin alike are read to the end. A file that
    is empty or cannot be read equals no other. is_kept: whether a group is of interest. A bar appears after
    two seconds.
    """

    def digest(limit: int, index: int) -> bytes | None:
        return _digest(lambda: _read_file(paths[index], limit))

    keys = (lambda index: _size(paths[index]), partial(digest, _HEAD), partial(digest, -1))
    return _divide([list(range(len(paths)))], keys, is_kept)


def _divide(groups: list[Group], keys: Sequence[Key], is_kept: Callable[[Group], bool]) -> list[Group]:
    """Divide groups of indices by each key in turn. An index whose key is None is left out."""
    with ThreadPoolExecutor(distributed.cores()) as pool:
        for key in keys:
            parts: defaultdict[tuple[int, object], Group] = defaultdict(list)
            members = [(number, index) for number, group in enumerate(groups) for index in group]
            with progress_bar(len(members), "compare files", unit="file", delay=2) as bar:
                for start in range(0, len(members), _CHUNK):
                    chunk = members[start : start + _CHUNK]
                    values = pool.map(key, [index for _, index in chunk])
                    for (number, index), value in zip(chunk, values, strict=True):
                        if value is not None:
                            parts[number, value].append(index)
                    bar.update(len(chunk))
            groups = [part for part in parts.values() if is_kept(part)]
    return groups


def _size(path: str) -> int | None:
    try:
        return os.stat(path).st_size or None
    except OSError:
        return None


def _read_file(path: str, limit: int) -> bytes:
    with open(path, "rb") as file:
        return file.read(limit)


def _digest(read: Callable[[], bytes]) -> bytes | None:
    """Return a digest of bytes; None if they cannot be read."""
    try:
        return hashlib.blake2b(read(), digest_size=16).digest()
    except OSError:
        return None


def check_overlap(data: DataConfig, train_set: Dataset, eval_set: Dataset, *, may_share: bool) -> list[str]:
    """Look for images that are training and evaluation data at once.

    Files are compared by their paths, links resolved, and images in shards by their shard and place. The
    contents of files and of local shards are compared too, where at most 20,000 images must be read. Other
    sources are not compared. Returns notes. Raises DataError for evaluation images that are the training
    set's, unless `may_share`.
    """
    sources = [data.train_list or data.train_root, data.eval_list or data.eval_root]
    shared = find_shared_images(train_set, eval_set)
    if shared:
        names = first_few([eval_set.where(index) for index in shared], 3)
        text = f"{len(shared)} of {len(eval_set)} evaluation images are training images too ({names})."
        if may_share:
            return [f"{text} Their accuracy says nothing about other images"]
        cure = "Remove their lines from one of the lists, or give other data."
        if isinstance(train_set.source, Shards):
            cure = "Give other shards."
        elif data.train_list is None and data.eval_list is None:
            cure = f"Divide the folder into two lists: {command_line('data', 'split', sources[0])}."
        raise DataError(
            f"{text} Their accuracy would say nothing about other images. Expected: different images to "
            f"train and to evaluate. Received: {sources[0]} and {sources[1]}. {cure} To evaluate on training "
            "images on purpose, such as to see a network overfit: -o data.allow_overlap=true."
        )
    pairs = find_equal_contents(train_set, eval_set)
    if not pairs:
        return []
    texts = [f"{eval_set.where(evaluated)} = {train_set.where(trained)}" for trained, evaluated in pairs]
    root = ["--root", data.eval_root or "."] if data.eval_list else []
    return [
        f"{len(pairs)} of {len(eval_set)} evaluation images have the bytes of a training image "
        f"({first_few(texts, 3)}). Their accuracy says nothing about other images. All of them: "
        f"{command_line('data', 'check', *sources, *root)}"
    ]


def find_shared_images(train_set: Dataset, eval_set: Dataset) -> list[int]:
    """Return the indices of the evaluation images that are training images too: the same file, links
    resolved, or the same place in the same shard."""
    if isinstance(train_set.source, Shards) and isinstance(eval_set.source, Shards):
        number: dict[str, int] = {}
        trained = train_set.source.places(number)
        return np.flatnonzero(np.isin(eval_set.source.places(number), trained)).tolist()
    paths = set(_resolve(_paths(train_set)))
    return [index for index, path in enumerate(_resolve(_paths(eval_set))) if path in paths]


def find_equal_contents(train_set: Dataset, eval_set: Dataset) -> list[tuple[int, int]]:
    """Return the evaluation images with the bytes of a training image: the indices of both, that of the
    training image first. Only images whose size is in both sets are read. Returns none if these are more
    than MOST_COMPARED, as are files whose sizes are not known yet."""
    sizes = (_sizes(train_set), _sizes(eval_set))
    common = np.intersect1d(sizes[0], sizes[1])
    common = common[common > 0]
    candidates = [np.flatnonzero(np.isin(own, common)) for own in sizes]
    if sum(map(len, candidates)) > MOST_COMPARED:
        return []
    boundary = len(train_set)
    groups: defaultdict[int, Group] = defaultdict(list)
    for own, chosen, start in zip(sizes, candidates, (0, boundary), strict=True):
        for index in chosen.tolist():
            groups[int(own[index])].append(start + index)

    def digest(limit: int | None, index: int) -> bytes | None:
        dataset, place = (train_set, index) if index < boundary else (eval_set, index - boundary)
        return _digest(lambda: _read(dataset, place, limit))

    found = _divide(
        list(groups.values()),
        (partial(digest, _HEAD), partial(digest, None)),
        lambda group: group[0] < boundary <= group[-1],
    )
    pairs = [(group[0], index - boundary) for group in found for index in group if index >= boundary]
    return sorted(pairs, key=lambda pair: pair[1])


def _read(dataset: Dataset, index: int, limit: int | None) -> bytes:
    if isinstance(dataset.source, Files):
        return _read_file(dataset.source.paths[index], -1 if limit is None else limit)
    return dataset.read(index)[:limit]


def _sizes(dataset: Dataset) -> np.ndarray:
    """Return the bytes of each image, int64 [N], 0 for a file that cannot be read. Returns none for more than
    MOST_COMPARED files, for shards at a URL, and for other sources."""
    source = dataset.source
    if isinstance(source, Shards) and not source.is_remote:
        return source.sizes
    paths = _paths(dataset)
    if not paths or len(paths) > MOST_COMPARED:
        return np.empty(0, np.int64)
    with ThreadPoolExecutor(distributed.cores()) as pool:
        return np.array([size or 0 for size in pool.map(_size, paths)], np.int64)


def _paths(dataset: Dataset) -> Sequence[str]:
    return dataset.source.paths if isinstance(dataset.source, Files) else ()


def _resolve(paths: Sequence[str]) -> Iterator[str]:
    """Yield each path with links resolved. Quick for a million: each folder is resolved and listed once, and
    of the files only links are."""

    @cache
    def look(folder: str) -> tuple[str, set[str]]:
        links = set()
        try:
            with os.scandir(folder or ".") as entries:
                links = {entry.name for entry in entries if entry.is_symlink()}
        except OSError:
            pass
        return os.path.join(os.path.realpath(folder), ""), links

    for path in paths:
        folder, name = os.path.split(path)
        prefix, links = look(folder)
        yield os.path.realpath(path) if name in links else prefix + name
