"""Reads the stream format of torch before 1.6 without torch, and without running what a pickle asks for.

The file is five pickles in a row (a magic number, the version 1001, facts about the system, the object,
the storages' keys) and then, for each key in that order, an int64 count and the raw elements.
"""

import pickle
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ppcls.errors import WeightsError

MAGIC = 0x1950A86A20F9469CFC6C
VERSION = 1001
_DTYPES: dict[str, np.dtype] = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
}
# What the unpickler and broken input can raise; nothing else of ours runs in between.
_PICKLE_ERRORS = (
    pickle.UnpicklingError,
    EOFError,
    AttributeError,
    IndexError,
    KeyError,
    TypeError,
    ValueError,
    OverflowError,
    MemoryError,
    RecursionError,
    struct.error,
)


class _Storage(NamedTuple):
    key: str
    dtype: np.dtype
    size: int


class _View(NamedTuple):
    """A tensor before its storage has been read."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *unused: Any) -> _View:
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, _Storage) or not all(type(n) is int and n >= 0 for n in numbers):
        raise pickle.UnpicklingError("a tensor's description makes no sense")
    return _View(storage, offset, tuple(shape), tuple(strides))


class _Unpickler(pickle.Unpickler):
    """Admits ordered dictionaries, torch's tensor rebuilding and its storages' names; nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if module == "torch" and name in _DTYPES:
            return name
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which weights have no use for")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, size, *_ = pid
        if kind != "storage" or dtype not in _DTYPES or type(size) is not int or size < 0:
            raise pickle.UnpicklingError("a storage's description makes no sense")
        return _Storage(str(key), _DTYPES[str(dtype)], size)


def is_torch_stream(head: bytes) -> bool:
    """Whether a file that begins with these bytes (16 are enough) is such a stream."""
    magic = MAGIC.to_bytes(10, "little")
    return head[:1] == b"\x80" and magic in head[:16]


def read_torch_stream(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a saved state dict, by name.

    Raises WeightsError for a truncated or broken file, and for a pickle that asks for anything but tensors.
    """
    try:
        with path.open("rb") as file:
            if _load(file) != MAGIC or _load(file) != VERSION:
                raise pickle.UnpicklingError("the magic number or the version is another one")
            _load(file)
            views = _load(file)
            keys = _load(file)
            if not isinstance(views, dict) or not all(isinstance(view, _View) for view in views.values()):
                raise pickle.UnpicklingError("it holds no plain dictionary of tensors")
            storages = _read_storages(file, keys, [view.storage for view in views.values()])
            return {str(name): _tensor(view, storages) for name, view in views.items()}
    except _PICKLE_ERRORS as error:
        raise WeightsError(
            f"{path} is no state dict in torch's stream format, or only part of one: {error}. "
            "Download the file again, or take it from its publisher."
        ) from error


def _load(file: BinaryIO) -> Any:
    return _Unpickler(file).load()


def _read_storages(file: BinaryIO, keys: Any, described: list[_Storage]) -> dict[str, np.ndarray]:
    by_key = {storage.key: storage for storage in described}
    storages = {}
    for key in keys:
        storage = by_key[key]
        (size,) = struct.unpack("<q", file.read(8))
        if size != storage.size:
            raise ValueError(f"storage {key} has {size} elements, where its tensors expect {storage.size}")
        data = file.read(size * storage.dtype.itemsize)
        storages[key] = np.frombuffer(data, storage.dtype, size)
    return storages


def _tensor(view: _View, storages: dict[str, np.ndarray]) -> np.ndarray:
    flat = storages[view.storage.key]
    if 0 in view.shape:
        return np.empty(view.shape, flat.dtype)
    last = view.offset + sum((size - 1) * step for size, step in zip(view.shape, view.strides, strict=True))
    if last >= flat.size:
        raise ValueError(f"a tensor of shape {view.shape} reaches beyond its storage")
    item = flat.dtype.itemsize
    return np.lib.stride_tricks.as_strided(
        flat[view.offset :], view.shape, [stride * item for stride in view.strides], writeable=False
    )
