"""The index of a set of shards: where each image lies in which tar, and its label.

The file is a safetensors file of a few columns, mapped into memory: opening it takes milliseconds for
millions of images.

    offset, size    int64 [N], of each image's bytes in its shard
    names           uint8, the images' names one behind another; name_ends int64 [N]
    labels          int64 [N], if the shards have labels; of several for some images, those of all images one
                    behind another
    label_starts    int64 [N + 1], place of each image's first label, if some have several
    starts          int64 [S + 1], number of the first image of each shard

Its metadata has the shards with what identifies each of them, and the names of the classes, if they have any.
"""

import json
import mmap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ppcls.data.class_names import ClassNames
from ppcls.data.label_sets import LabelSets
from ppcls.data.tars import Members
from ppcls.errors import DataError
from ppcls.files import sha256_of, write_aside

INDEX_FILE = "index.safetensors"  # beside local shards
VERSION = 2  # of indexes with several labels; others stay readable for versions that know 1 only
_TYPES: dict[str, np.dtype] = {"I64": np.dtype("<i8"), "U8": np.dtype("u1")}


@dataclass(frozen=True)
class Shard:
    """A tar of a set, with what identifies its content.

    name: its path below the index's folder, or its URL. size: bytes. sha256: of its content, for a local one;
    mtime_ns: the file's time of change when that was computed. etag: of a remote one, its ETag or, without
    one, the time of its last change.
    """

    name: str
    size: int
    sha256: str | None = None
    mtime_ns: int | None = None
    etag: str | None = None

    @property
    def is_remote(self) -> bool:
        return is_url(self.name)


@dataclass(frozen=True)
class ShardIndex:
    """An index that is open. The columns are maps of the file."""

    path: Path
    shards: tuple[Shard, ...]
    columns: dict[str, np.ndarray]
    class_names: ClassNames | None

    def __len__(self) -> int:
        return len(self.columns["offset"])

    @property
    def labels(self) -> LabelSets | None:
        """The labels of each image; None if they have none."""
        labels, starts = self.columns.get("labels"), self.columns.get("label_starts")
        if labels is None or starts is None:
            return None if labels is None else LabelSets.of_labels(labels)
        return LabelSets(labels, starts)

    def name(self, index: int) -> str:
        """Return the name of an image in its tar."""
        ends = self.columns["name_ends"]
        start = int(ends[index - 1]) if index else 0
        return bytes(self.columns["names"][start : int(ends[index])]).decode(errors="surrogateescape")

    @cached_property
    def sha256(self) -> bytes:
        """SHA-256 of the file. It stands for all that the index says, so for the content of the shards."""
        return bytes.fromhex(sha256_of(self.path))


def is_url(name: str) -> bool:
    """Return whether a name is a URL, of a file that fsspec reads, and not a path."""
    return "://" in name


def is_index(path: Path) -> bool:
    """Return whether a path is that of an index: a file with its ending, which lists do not have."""
    return path.suffix == Path(INDEX_FILE).suffix and path.is_file()


def write_index(
    path: Path,
    shards: Sequence[Shard],
    members: Sequence[Members],
    labels: LabelSets | None,
    class_names: ClassNames | None,
) -> None:
    """Write the index of shards, whole or not at all.

    Raises DataError for a key that two images have.
    """
    from safetensors.numpy import save_file

    starts = np.cumsum([0, *(len(part.names) for part in members)], dtype=np.int64)
    _refuse_doubles(starts, shards, members)
    texts = np.cumsum([0, *(len(part.names.text) for part in members)], dtype=np.int64)
    ends = [np.asarray(part.names.ends) + text for part, text in zip(members, texts[:-1], strict=True)]
    columns = {
        "offset": np.concatenate([np.asarray(part.offsets, np.int64) for part in members]),
        "size": np.concatenate([np.asarray(part.sizes, np.int64) for part in members]),
        "name_ends": np.concatenate(ends),
        "names": np.concatenate([np.frombuffer(part.names.text, np.uint8) for part in members]),
        "starts": starts,
        **({} if labels is None else {"labels": labels.values}),
        **({} if labels is None or labels.is_single else {"label_starts": labels.starts}),
    }
    metadata = {
        "ppcls_index": str(VERSION if "label_starts" in columns else 1),
        "shards": json.dumps([asdict(shard) for shard in shards]),
        "class_names": json.dumps(class_names.to_pairs() if class_names else None),
    }
    with write_aside(path) as aside:
        save_file(columns, aside, metadata)


def _refuse_doubles(starts: np.ndarray, shards: Sequence[Shard], members: Sequence[Members]) -> None:
    """Raise DataError if two images have one key: the same name, or one that differs in its ending alone.

    starts: int64 [S + 1], number of the first image of each shard. Hashes are compared, not keys: a set of a
    million texts would take 150 MB.
    """
    keys = (_key_of(name) for part in members for name in part.names)
    hashes = np.fromiter(map(hash, keys), np.int64, int(starts[-1]))
    order = np.argsort(hashes, kind="stable")
    for place in np.flatnonzero(hashes[order][1:] == hashes[order][:-1]):
        numbers = order[place : place + 2]
        homes = np.searchsorted(starts, numbers, "right") - 1
        one, other = (shards[home].name for home in homes)
        found = [members[home].names[n - starts[home]] for home, n in zip(homes, numbers, strict=True)]
        key = _key_of(found[0])
        if key == _key_of(found[1]):
            raise DataError(
                f"Two samples have the key {key.decode(errors='replace')}: one in {one}, one in {other}. "
                "Each sample of a set needs a key of its own: rename one of them, or leave a shard out."
            )


def _key_of(name: bytes) -> bytes:
    """Return a name up to the first dot of its last part."""
    folder, slash, file = name.rpartition(b"/")
    return folder + slash + file.partition(b".")[0]


def read_index(path: Path) -> ShardIndex:
    """Open an index. Reads its header only. Raises DataError for a file that is not an index, or cut off."""
    again = "Write it anew: ppcls data index."
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header: dict[str, Any] = json.loads(file.read(min(length, path.stat().st_size)))
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        metadata = header.pop("__metadata__", {})
        version = int(metadata.get("ppcls_index", 0))
        if version > VERSION:
            raise DataError(f"{path} has version {version}; this ppcls reads up to {VERSION}. Upgrade ppcls.")
        if version < 1:
            raise DataError(
                f"{path} is not an index of shards. Expected: a file that `ppcls data index` wrote."
            )
        columns = {}
        for name, item in header.items():
            start, end = (8 + length + place for place in item["data_offsets"])
            kind: np.dtype = _TYPES[item["dtype"]]
            columns[name] = np.frombuffer(data, kind, (end - start) // kind.itemsize, start)
        shards = tuple(Shard(**shard) for shard in json.loads(metadata["shards"]))
        pairs = json.loads(metadata["class_names"])
    except OSError as error:
        raise DataError(f"The index {path} cannot be read: {error.strerror}. {again}") from error
    except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"The index {path} is damaged or cut off. {again}") from error
    return ShardIndex(path, shards, columns, ClassNames.of_pairs(pairs) if pairs else None)
