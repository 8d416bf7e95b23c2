"""Equal images: files with the same bytes, and images that are training and evaluation data at once."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial

from ppcls import distributed
from ppcls.commands import command_line
from ppcls.config import DataConfig
from ppcls.data.dataset import Dataset
from ppcls.data.files import Files
from ppcls.errors import DataError, first_few
from ppcls.progress import progress_bar

MOST_COMPARED = 20_000  # images whose contents are compared at a start of training
_HEAD = 16 * 1024  # bytes that are compared before whole files are
_CHUNK = 1024  # files handed to the threads at a time

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
        for key in (_size, partial(_digest, limit=_HEAD), partial(_digest, limit=-1)):
            parts: defaultdict[tuple[int, object], Group] = defaultdict(list)
            members = [(number, index) for number, group in enumerate(groups) for index in group]
            with progress_bar(len(members), "compare files", unit="file", delay=2) as bar:
                for start in range(0, len(members), _CHUNK):
                    chunk = members[start : start + _CHUNK]
                    values = pool.map(key, [paths[index] for _, index in chunk])
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


def _digest(path: str, limit: int) -> bytes | None:
    """Return a digest of a file's first `limit` bytes, -1 for all; None if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.blake2b(file.read(limit), digest_size=16).digest()
    except OSError:
        return None


def check_overlap(data: DataConfig, train_set: Dataset, eval_set: Dataset, *, may_share: bool) -> list[str]:
    """Look for images that are training and evaluation data at once.

    Files are compared by their paths, links resolved, and by their contents if there are at most 20,000.
    Other sources than files are not compared. Returns notes. Raises DataError for evaluation images whose
    file is a training image, unless `may_share`.
    """
    sources = [data.train_list or data.train_root, data.eval_list or data.eval_root]
    shared = find_shared_files(train_set, eval_set)
    if shared:
        names = first_few([eval_set.where(index) for index in shared], 3)
        text = f"{len(shared)} of {len(eval_set)} evaluation images are training images too ({names})."
        if may_share:
            return [f"{text} Their accuracy says nothing about other images"]
        cure = "Remove their lines from one of the lists, or give other data."
        if data.train_list is None and data.eval_list is None:
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


def find_shared_files(train_set: Dataset, eval_set: Dataset) -> list[int]:
    """Return the indices of the evaluation images whose file, links resolved, is a training image too."""
    trained = set(_resolve(_paths(train_set)))
    return [index for index, path in enumerate(_resolve(_paths(eval_set))) if path in trained]


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
