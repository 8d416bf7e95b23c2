"""Images that are copies of others by their look: compressed, resized or slightly cropped ones."""

import hashlib
from array import array
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import islice
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from ppcls.data.dataset import Dataset
from ppcls.data.decode import UNREADABLE, decode, reason_of
from ppcls.data.each_image import CHUNK, each_image
from ppcls.errors import ConfigError

HASH_SIDE = 32  # pixels; the perceptual hash shrinks an image to this square
HASH_ROWS = 16  # so that a hash has 256 bits
COPY_BITS = 56  # hashes of copies differ in at most as many: docs/usage.md has the measurement
_FLAT = 4.0  # levels; an image whose pixels deviate by less has noise as its hash
_BLOCK = 4096  # hashes that are compared at a time


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
