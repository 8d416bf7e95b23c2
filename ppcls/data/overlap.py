"""Images that are there twice: files with the same bytes, evaluation images among the training images, and
copies that were compressed or resized."""

import hashlib
import os
from array import array
from collections import defaultdict
from collections.abc import Callable, Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from itertools import islice
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from ppcls import distributed
from ppcls.commands import command_line
from ppcls.config import DataConfig
from ppcls.data.dataset import Dataset
from ppcls.data.decode import UNREADABLE, decode, reason_of
from ppcls.data.each_image import CHUNK, each_image
from ppcls.data.files import Files
from ppcls.data.shards import Shards
from ppcls.errors import ConfigError, DataError, first_few
from ppcls.progress import progress_bar

MOST_COMPARED = 20_000  # images whose contents are compared at a start of training
HASH_SIDE = 32  # pixels; the perceptual hash shrinks an image to this square
HASH_ROWS = 16  # so that a hash has 256 bits
COPY_BITS = 56  # hashes of copies differ in at most as many: docs/shards.md has the measurement
_FLAT = 4.0  # levels; an image whose pixels deviate by less has noise as its hash
_HEAD = 16 * 1024  # bytes that are compared before whole files are
_CHUNK = 1024  # files handed to the threads at a time
_BLOCK = 4096  # hashes that are compared at a time

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


# Copies by their look


class Match(NamedTuple):
    """Result for one image beside those of an album.

    kind: "bytes" and "pixels": an image has the same; "near": the hash of one differs in `bits` of 256;
    "new": none of these; "plain": none has the same bytes, and the image is too small or too flat for a hash;
    "unreadable", with the `error`. image: the index. place: the dataset of the other image in the album, and
    its index there.
    """

    kind: Literal["bytes", "pixels", "near", "new", "plain", "unreadable"]
    image: int
    place: tuple[int, int] = (-1, -1)
    bits: int = 0
    error: str = ""


class _Print(NamedTuple):
    """The digest of an image's bytes, and its hash bool [256], if it has one; or the `error`."""

    digest: bytes
    hash: np.ndarray | None = None
    error: str = ""


@dataclass(frozen=True)
class Album:
    """Images that others are compared with, in some 500 bytes of memory for each.

    digests: of their bytes, with the dataset and the index. hashes: bool [M, 256], of those that have one;
    places: int64 [M, 2], their datasets and indices.
    """

    datasets: Sequence[Dataset]
    digests: dict[bytes, tuple[int, int]]
    hashes: np.ndarray
    places: np.ndarray
    unreadable: int

    @staticmethod
    def of(
        datasets: Sequence[Dataset], num_workers: int, progress: Callable[[int], object] = lambda count: None
    ) -> "Album":
        """Read and hash the images of datasets with threads. progress: called with 1 after each."""
        digests: dict[bytes, tuple[int, int]] = {}
        rows, places, unreadable = bytearray(), array("q"), 0
        for number, dataset in enumerate(datasets):
            prints = each_image(dataset, partial(_print_of, dataset, {}), num_workers)
            for index, found in enumerate(prints):
                progress(1)
                unreadable += bool(found.error)
                if found.error or found.digest in digests:
                    continue
                digests[found.digest] = number, index
                if found.hash is not None:
                    rows += found.hash.tobytes()
                    places.extend((number, index))
        hashes = np.frombuffer(rows, bool).reshape(-1, HASH_ROWS**2)
        return Album(datasets, digests, hashes, np.asarray(places).reshape(-1, 2), unreadable)

    def nearest(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return for each hash, bool [N, 256], the number of the nearest one and the bits between them."""
        best, bits = np.zeros(len(hashes), np.int64), np.full(len(hashes), HASH_ROWS**2 + 1, np.int64)
        signs = _signs(hashes)
        for start in range(0, len(self.hashes), _BLOCK):
            products = signs @ _signs(self.hashes[start : start + _BLOCK]).T
            number = products.argmax(axis=1)
            apart = (HASH_ROWS**2 - products[np.arange(len(hashes)), number].astype(np.int64)) // 2
            is_nearer = apart < bits
            best[is_nearer], bits[is_nearer] = start + number[is_nearer], apart[is_nearer]
        return best, bits

    def where(self, match: Match) -> str:
        """Return what error messages call the album's image."""
        number, index = match.place
        return self.datasets[number].where(index)


def find_copies(dataset: Dataset, album: Album, most_bits: int, num_workers: int) -> Iterator[Match]:
    """Compare each image of a dataset with the album's, with threads. Yields the results, in order.

    most_bits: hashes of copies differ in at most as many. The memory does not grow with the dataset.
    """
    prints = each_image(dataset, partial(_print_of, dataset, album.digests), num_workers)
    for start in range(0, len(dataset), CHUNK):
        chunk = list(islice(prints, CHUNK))
        hashed = [number for number, found in enumerate(chunk) if found.hash is not None]
        hashes = np.array([chunk[number].hash for number in hashed], bool).reshape(-1, HASH_ROWS**2)
        nearest = dict(zip(hashed, zip(*album.nearest(hashes), strict=True), strict=True))
        for number, found in enumerate(chunk):
            index = start + number
            if found.error:
                yield Match("unreadable", index, error=found.error)
            elif found.digest in album.digests:
                yield Match("bytes", index, album.digests[found.digest])
            elif number not in nearest:
                yield Match("plain", index)
            else:
                best, bits = nearest[number]
                yield _match(dataset, index, album, int(best), int(bits), most_bits)


def _match(dataset: Dataset, index: int, album: Album, best: int, bits: int, most_bits: int) -> Match:
    if bits > most_bits:
        return Match("new", index)
    number, other = album.places[best].tolist()
    is_same = bits == 0 and np.array_equal(
        decode(dataset.read(index)), decode(album.datasets[number].read(other))
    )
    return Match("pixels" if is_same else "near", index, (number, other), bits)


def _signs(hashes: np.ndarray) -> np.ndarray:
    """Return 1 for each bit that is set, -1 for the others, float32: a product of them counts equal bits."""
    return np.where(hashes, np.float32(1), np.float32(-1))


def _print_of(dataset: Dataset, known: Container[bytes], index: int) -> _Print:
    """Return an image's digest and hash. An image whose digest is known is not decoded."""
    try:
        data = dataset.read(index)
        digest = hashlib.blake2b(data, digest_size=16).digest()
        pixels = None if digest in known else decode(data)
    except UNREADABLE as error:
        return _Print(b"", error=reason_of(error))
    if pixels is None or pixels[::4, ::4].std(axis=(0, 1)).max() < _FLAT:
        return _Print(digest)
    return _Print(digest, perceptual_hash(pixels, HASH_ROWS))


def require_hash() -> None:
    """Raise ConfigError if the package of perceptual hashes is missing."""
    if find_spec("imagehash") is None:
        raise ConfigError("Perceptual hashes need the package imagehash: pip install 'ppcls[clean]'.")


def perceptual_hash(pixels: np.ndarray, rows: int) -> np.ndarray | None:
    """Return the perceptual hash bool [rows * rows] of RGB pixels uint8 [H, W, 3]: the signs of the lowest
    frequencies. None for an image below HASH_SIDE pixels, which has no such frequencies."""
    import imagehash

    if min(pixels.shape[:2]) < HASH_SIDE:
        return None
    image = Image.fromarray(pixels)
    return imagehash.phash(image, hash_size=rows, highfreq_factor=HASH_SIDE // rows).hash.ravel()
