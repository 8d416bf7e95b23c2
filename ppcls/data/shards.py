"""Images in shards: tars that lie on a disk or at a URL, read at their place by an index."""

import os
import threading
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ppcls.data.remote import BLOCK_BYTES, Blocks, DiskCache, RemoteFiles, Unreachable
from ppcls.data.shard_index import INDEX_FILE, Shard, ShardIndex, is_index, is_url, read_index
from ppcls.errors import PpclsError
from ppcls.files import sha256_of
from ppcls.progress import note

_HEADER = 512  # bytes of a tar that stand before a file's own
_SPANS = 1 << 14  # blocks of a remote set whose places are remembered
_OFFSET_BITS = 44  # a shard has fewer bytes than 2 ** 44
_OPEN = 256  # shards that are open at the same time
WINDOW = 16  # blocks of a remote set that are mixed with one another


def find_index(place: str | Path | None) -> Path | None:
    """Return the index that a path stands for: the file itself, or the one in a folder of shards."""
    if place is None or is_url(str(place)):
        return None
    path = Path(place)
    if is_index(path):
        return path
    return path / INDEX_FILE if is_index(path / INDEX_FILE) else None


def open_shards(index: Path, root: str | None = None, cache: DiskCache | None = None) -> "Shards":
    """Open a set of shards. Reads its index alone.

    root: another folder of the shards, if they are not beside the index, or their URL. cache: keeps parts of
    remote shards.
    """
    opened = read_index(index)
    home = str(index.parent)
    first = Shelf(opened.shards, home).place(0)
    if root is not None and (is_url(root) or not (is_url(first) or os.path.exists(first))):
        return Shards(opened, Shelf(opened.shards, root, is_moved=True, cache=cache))
    return Shards(opened, Shelf(opened.shards, home, cache=cache))


@dataclass(frozen=True)
class Shards:
    """Source of images in shards (`ppcls.data.source.Source` says what each method must do).

    An image's name is that in its tar. chosen: int64 [N], the numbers of the images; None for all.
    """

    index: ShardIndex
    shelf: "Shelf"
    chosen: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.index) if self.chosen is None else len(self.chosen)

    def _number(self, index: int) -> int:
        return int(index) if self.chosen is None else self.chosen.item(index)

    @cached_property
    def _starts(self) -> list[int]:
        return self.index.columns["starts"].tolist()

    def _shard(self, number: int) -> int:
        return bisect_right(self._starts, number) - 1

    def read(self, index: int) -> bytes:
        number = self._number(index)
        columns, shard = self.index.columns, self._shard(number)
        offset, size = columns["offset"].item(number), columns["size"].item(number)
        if self.shelf.is_remote(shard):
            first, block = self._block(shard, number)
            data = block[offset - first : offset - first + size]
            is_whole = _stated_size(block[offset - first - _HEADER : offset - first]) == size
        else:
            data, is_whole = self.shelf.read(shard, offset, size), True
        if len(data) != size or not is_whole:
            raise Unreachable(
                f"{self.shelf.place(shard)} has another content than when it was indexed: no image of {size} "
                f"bytes is at {offset}. Index the shards anew: ppcls data index."
            )
        return data

    def name(self, index: int) -> str:
        return self.index.name(self._number(index))

    def where(self, index: int) -> str:
        number = self._number(index)
        return f"{self.index.name(number)} in {self.shelf.place(self._shard(number))}"

    def identity(self, root: str | None) -> bytes:
        """Return the SHA-256 of the index, and of the images chosen."""
        return self.index.sha256 + (b"" if self.chosen is None else self.chosen.tobytes())

    def select(self, indices: Sequence[int]) -> "Shards":
        numbers = np.asarray(indices, np.int64)
        return Shards(self.index, self.shelf, numbers if self.chosen is None else self.chosen[numbers])

    def shuffle(self, indices: np.ndarray, random: np.random.RandomState, parts: int = 1) -> np.ndarray:
        if not self.is_remote:
            random.shuffle(indices)
            return indices
        return self._shuffle_blocks(indices, random, parts)

    def _shuffle_blocks(self, indices: np.ndarray, random: np.random.RandomState, parts: int) -> np.ndarray:
        """Order blocks of neighbours at random, and mix the images of WINDOW blocks with one another. Then
        part p of `parts` processes, which takes every image p + k * parts, finds whole blocks."""
        blocks = self._block_numbers()
        numbers = indices % len(self)  # further uses of an image have larger numbers
        block = blocks[numbers if self.chosen is None else self.chosen[numbers]]
        del blocks, numbers
        is_used = np.zeros(block.max(initial=-1) + 1, bool)
        is_used[block] = True
        window_of = np.zeros(len(is_used), np.int32)
        window_of[is_used] = random.permutation(is_used.sum()) // WINDOW
        window = window_of[block]
        del block
        order = np.lexsort((random.random_sample(len(window)), window))
        if parts > 1:
            whole = len(order) // parts * parts
            order[:whole] = order[:whole].reshape(parts, -1).T.reshape(-1)
        return indices[order]

    def _block_numbers(self) -> np.ndarray:
        """Return the number of each image's block, int32 [N], of all images of the index: see `_span`."""
        block, starts = self.index.columns["offset"] // BLOCK_BYTES, self.index.columns["starts"]
        is_first = np.zeros(len(block), bool)
        is_first[1:] = block[1:] != block[:-1]
        is_first[starts[starts < len(block)]] = True
        return np.cumsum(is_first, dtype=np.int32) - 1

    @property
    def sizes(self) -> np.ndarray:
        """The bytes of each image, int64 [N]."""
        sizes = self.index.columns["size"]
        return sizes if self.chosen is None else sizes[self.chosen]

    @cached_property
    def is_remote(self) -> bool:
        """Whether some of the shards lie at a URL."""
        return any(map(self.shelf.is_remote, range(len(self.index.shards))))

    def places(self, numbers: dict[str, int]) -> np.ndarray:
        """Return where each image lies, int64 [N]: equal numbers are the same bytes of the same shard.

        numbers: of the shards, by their SHA-256, or their URL. Those that it lacks are added, so that several
        sets can be compared.
        """
        keys = [shard.sha256 or self.shelf.place(number) for number, shard in enumerate(self.index.shards)]
        known = np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)
        counts = np.diff(self.index.columns["starts"])
        places = (np.repeat(known, counts) << _OFFSET_BITS) + self.index.columns["offset"]
        return places if self.chosen is None else places[self.chosen]

    def prefetch(self, indices: Sequence[int]) -> None:
        for index in indices:
            number = self._number(index)
            shard = self._shard(number)
            if self.shelf.is_remote(shard):
                self.shelf.announce(shard, *self._span(shard, number))

    def _span(self, shard: int, number: int) -> tuple[int, int]:
        """Return the first byte and the size of the block that holds an image: all images that begin in the
        same BLOCK_BYTES of the shard, with the headers before them."""
        return self._spans(shard, self.index.columns["offset"].item(number) // BLOCK_BYTES)

    @cached_property
    def _spans(self) -> Callable[[int, int], tuple[int, int]]:
        return lru_cache(_SPANS)(self._find_span)

    def _find_span(self, shard: int, block: int) -> tuple[int, int]:
        start, end = self._starts[shard : shard + 2]
        offsets = self.index.columns["offset"][start:end]
        first, last = np.searchsorted(offsets, [block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES])
        stop = int(offsets[last - 1]) + int(self.index.columns["size"][start + last - 1])
        begin = int(offsets[first]) - _HEADER
        return begin, stop - begin

    def _block(self, shard: int, number: int) -> tuple[int, bytes]:
        first, size = self._span(shard, number)
        return first, self.shelf.block(shard, first, size)

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in ("index", "shelf", "chosen")}


def _stated_size(data: bytes) -> int:
    """Return the size that the header of a tar's member states, -1 if this is not a header."""
    field_ = data[124:136]
    if field_[:1] in (b"\x80", b"\xff"):
        return int.from_bytes(field_[1:], "big")
    try:
        return int(field_.strip(b"\0 ") or b"0", 8)
    except ValueError:
        return -1


class _OpenFile:
    """A file's descriptor. It is closed when nobody holds it any more: a thread that reads does."""

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


@dataclass
class Shelf:
    """Reads the bytes of shards, after a look at each of them: it must be the one that was indexed.

    home: the folder or URL of the shards. is_moved: `home` is not that of the index.
    """

    shards: tuple[Shard, ...]
    home: str
    is_moved: bool = False
    cache: DiskCache | None = None
    _files: RemoteFiles = field(default_factory=RemoteFiles)
    _blocks: Blocks = field(default_factory=Blocks)

    def __post_init__(self) -> None:
        self._checked: dict[int, None] = {}
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_checked", "_lock", "_open")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self.__post_init__()

    def place(self, shard: int) -> str:
        """Return the path or the URL of a shard."""
        name = self.shards[shard].name
        if is_url(name):
            return f"{self.home.rstrip('/')}/{name.rpartition('/')[2]}" if self.is_moved else name
        if is_url(self.home):
            return f"{self.home.rstrip('/')}/{name}"
        return os.path.join(self.home, name)

    def is_remote(self, shard: int) -> bool:
        return self._are_remote[shard]

    @cached_property
    def _are_remote(self) -> list[bool]:
        return [is_url(self.home) or shard.is_remote for shard in self.shards]

    @cached_property
    def _open(self) -> Any:
        """Return a function that opens a local shard. One that is not used for long is closed, when the last
        thread that reads it lets it go."""
        return lru_cache(_OPEN)(lambda shard: self._open_local(shard))

    def read(self, shard: int, start: int, size: int) -> bytes:
        """Return bytes of a local shard."""
        file = self._open(shard)
        return os.pread(file.descriptor, size, start)

    def block(self, shard: int, start: int, size: int) -> bytes:
        """Return bytes of a remote shard, as they were fetched ahead."""
        return self._blocks.get((shard, start), lambda: self._fetch(shard, start, size))

    def announce(self, shard: int, start: int, size: int) -> None:
        """Begin to fetch bytes of a remote shard."""
        self._blocks.announce((shard, start), lambda: self._fetch(shard, start, size), size)

    def _fetch(self, shard: int, start: int, size: int) -> bytes:
        self._check_remote(shard)
        url, etag = self.place(shard), self.shards[shard].etag

        def fetch() -> bytes:
            return self._files.read(url, start, size, etag)

        if self.cache is None:
            return fetch()
        return self.cache.get(f"{url} {self.shards[shard].size} {etag} {start} {size}", fetch)

    def _open_local(self, shard: int) -> "_OpenFile":
        path, expected = self.place(shard), self.shards[shard]
        try:
            file = _OpenFile(path)
        except FileNotFoundError as error:
            raise PpclsError(
                f"The shard {path} is missing; the index has {len(self.shards)} shards. Copy it, or give the "
                "folder of the shards: data.train_root or data.eval_root."
            ) from error
        status = os.fstat(file.descriptor)
        is_same = status.st_size == expected.size
        if is_same and expected.sha256 and status.st_mtime_ns != expected.mtime_ns:
            with self._lock:  # one at a time: the disk is the limit
                if shard not in self._checked:
                    if not self._checked:
                        note(
                            f"{path} and perhaps others were changed or copied after they were indexed: "
                            "their SHA-256 is compared. cp -p and rsync -t keep times"
                        )
                    is_same = sha256_of(Path(path)) == expected.sha256
                    if is_same:
                        self._checked[shard] = None
        if not is_same:
            raise PpclsError(
                f"The shard {path} is not the one that was indexed: its size or content has changed. Index "
                "the shards anew: ppcls data index."
            )
        return file

    def _check_remote(self, shard: int) -> None:
        """Compare a remote shard with the index, once in each process."""
        if shard in self._checked:
            return
        url, expected = self.place(shard), self.shards[shard]
        status = self._files.status(url)
        if status.size != expected.size or (expected.etag and status.etag != expected.etag):
            raise Unreachable(
                f"{url} has another content than when it was indexed (size {status.size}, was "
                f"{expected.size}). Index the shards anew: ppcls data index."
            )
        self._checked[shard] = None
