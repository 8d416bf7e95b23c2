"""Reader for files of torch.save, without torch: the zip format, and the stream format before torch 1.6.

A pickle describes tensors as views of storages. In a zip archive each storage is an uncompressed member. A
stream consists of five pickles (a magic number, the version 1001, a description of the system, the object,
the keys of the storages) and then, for each key in that order, an int64 count and the raw elements.
"""

import re
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from ppcls.weights.readers.checkpoints import tensors_of
from ppcls.weights.readers.entries import Entry, Refused, are_sizes, mapped_entry
from ppcls.weights.readers.pickles import Name, Namespace, Opaque, default_dict, load, ordered_dict

MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001
_DTYPES: dict[str, np.dtype] = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype("<u2"),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}


@dataclass(frozen=True)
class _Storage:
    """A storage that a pickle describes. count: elements."""

    key: str
    kind: str
    count: int

    @property
    def nbytes(self) -> int:
        return self.count * _DTYPES[self.kind].itemsize


@dataclass(frozen=True, eq=False)
class _View:
    """A tensor that a pickle describes. offset and strides are in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def entry(self, data: memoryview) -> Entry:
        kind = self.storage.kind
        return mapped_entry(
            data, _DTYPES[kind], self.shape, self.strides, self.offset, bfloat16=kind == "BFloat16Storage"
        )


def _rebuild_tensor(arguments: tuple) -> _View | Opaque:
    """Stand in for _rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks[, metadata])."""
    if len(arguments) in (6, 7) and type(arguments[0]) is Opaque:
        return Opaque(f"a tensor of {arguments[0].what}")
    if len(arguments) not in (6, 7) or type(arguments[0]) is not _Storage:
        raise Refused("the description of a tensor is not valid")
    storage, offset, shape, strides = arguments[:4]
    if not are_sizes((offset,)) or not are_sizes(shape) or not are_sizes(strides):
        raise Refused("the description of a tensor is not valid")
    return _View(storage, offset, shape, strides)


def _rebuild_parameter(arguments: tuple) -> _View | Opaque:
    """Stand in for _rebuild_parameter(tensor, requires_grad, hooks[, attributes])."""
    if len(arguments) not in (3, 4) or not isinstance(arguments[0], _View | Opaque):
        raise Refused("the description of a parameter is not valid")
    return arguments[0]


def _rebuild_with_attributes(arguments: tuple) -> Any:
    """Stand in for _rebuild_from_type_v2(rebuild, class, arguments, attributes)."""
    if len(arguments) != 4 or type(arguments[0]) is not Name or arguments[0].call is not _rebuild_tensor:
        return Opaque("a tensor of a class of its own")
    return _rebuild_tensor(arguments[2] if type(arguments[2]) is tuple else ())


def _size(arguments: tuple) -> tuple:
    """Stand in for torch.Size(sizes)."""
    if len(arguments) != 1 or not are_sizes(arguments[0]):
        raise Refused("a torch.Size is made from something that is not sizes")
    return arguments[0]


_ADMITTED = {
    ("collections", "OrderedDict"): ordered_dict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_with_attributes,
    ("torch", "Size"): _size,
    ("collections", "defaultdict"): default_dict,
    ("argparse", "Namespace"): Namespace,
    **{("torch", name): None for name in _DTYPES},
}


class _Storages:
    """The storages that a pickle describes, by their keys. is_stream: they follow one another, so that each
    needs a known size."""

    def __init__(self, is_stream: bool) -> None:
        self.by_key: dict[str, _Storage] = {}
        self.is_stream = is_stream

    def describe(self, identity: Any) -> _Storage | Name | Opaque:
        """Record ("storage", type, key, device, count), in a stream followed by None. A stream
        has the class of a module as ("module", class, file, source). Raises Refused."""
        if type(identity) is tuple and len(identity) == 4 and identity[0] == "module":
            return identity[1] if type(identity[1]) is Name else Opaque("a module")
        if type(identity) is not tuple or len(identity) not in (5, 6) or identity[5:] not in ((), (None,)):
            raise Refused("the description of a storage is not valid")
        word, kind, key, _, count = identity[:5]
        if type(kind) is Name and kind.name not in _DTYPES and not self.is_stream:
            return Opaque(kind.what)
        if word != "storage" or type(kind) is not Name or type(key) is not str or not are_sizes((count,)):
            raise Refused("the description of a storage is not valid")
        if kind.name not in _DTYPES:
            raise Refused(f"it has a tensor of {kind.what}", "Save it again without this tensor.")
        storage = _Storage(key, kind.name, count)
        if self.by_key.setdefault(key, storage) != storage:
            raise Refused(f"storage {key[:20]} is described in two ways")
        return storage


def _as_view(value: Any) -> _View | None:
    return value if type(value) is _View else None


def is_stream(head: bytes) -> bool:
    """Return whether a file that begins with these bytes (16 are enough) is a stream."""
    return head[:1] == b"\x80" and MAGIC.to_bytes(10, "little") in head[:16]


def read_stream(data: memoryview) -> tuple[dict[str, Entry], dict[str, Any]]:
    """Return entries by key, and the metadata of checkpoints.tensors_of. Raises Refused."""
    storages = _Storages(is_stream=True)
    magic, position = load(data, 0, _ADMITTED)
    version, position = load(data, position, _ADMITTED)
    if magic != MAGIC or version != _VERSION:
        raise Refused(f"the stream has another magic number, or another version than {_VERSION}")
    system, position = load(data, position, _ADMITTED)
    if type(system) is dict and system.get("little_endian") is False:
        raise Refused("it was written by a big-endian machine", "Save it again on another machine.")
    top, position = load(data, position, _ADMITTED, storages.describe)
    keys, position = load(data, position, _ADMITTED)
    if type(keys) is not list or not all(type(key) is str for key in keys) or len(set(keys)) < len(keys):
        raise Refused("the list of storages is not valid")
    if set(keys) != set(storages.by_key):
        raise Refused("the list of storages differs from the storages of the tensors")
    parts = {}
    for key in keys:
        storage = storages.by_key[key]
        start, end = position + 8, position + 8 + storage.nbytes
        if end > len(data):
            raise Refused(f"it is cut off: storage {key[:20]} needs {storage.nbytes} bytes")
        (count,) = struct.unpack("<q", data[position:start])
        if count != storage.count:
            raise Refused(f"storage {key[:20]} has {count} elements, its tensors expect {storage.count}")
        parts[key] = data[start:end]
        position = end
    if position != len(data):
        raise Refused(f"{len(data) - position} bytes follow the last storage")
    return _entries(top, parts.__getitem__)


def read_zip(file: BinaryIO, data: memoryview) -> tuple[dict[str, Entry], dict[str, Any]]:
    """Return entries by key, and the metadata of checkpoints.tensors_of. data: the same file, mapped into
    memory. Raises Refused."""
    members = _members(file, data)
    if "data.pkl" not in members:
        raise Refused(
            "it is a zip archive, but not one of torch: data.pkl is missing",
            "Unpack it, if it holds the file.",
        )
    if bytes(members.get("byteorder", b"little")[:8]) != b"little":
        raise Refused("it was written by a big-endian machine", "Save it again on another machine.")
    storages = _Storages(is_stream=False)
    pickle = members["data.pkl"]
    top, end = load(pickle, 0, _ADMITTED, storages.describe)
    if end != len(pickle):
        raise Refused(f"{len(pickle) - end} bytes follow the end of data.pkl")
    for key, storage in storages.by_key.items():
        member = members.get(f"data/{key}")
        if member is None or len(member) != storage.nbytes:
            found = "is missing" if member is None else f"has {len(member)} bytes"
            raise Refused(f"storage {key[:20]} {found}, its tensors expect {storage.nbytes}")
    return _entries(top, lambda key: members[f"data/{key}"])


def _entries(top: Any, part: Callable[[str], memoryview]) -> tuple[dict[str, Entry], dict[str, Any]]:
    views, metadata = tensors_of(top, _as_view)
    return {name: view.entry(part(view.storage.key)) for name, view in views.items()}, metadata


def _members(file: BinaryIO, data: memoryview) -> dict[str, memoryview]:
    """Return the members by their names, without the folder that all of them share.

    CRCs are not compared: torch can be set to write none, and the check would read the whole file.
    """
    # Otherwise zipfile would search for the end further up and skip the bytes behind it.
    if bytes(data[-22:-18]) != b"PK\x05\x06" or bytes(data[-2:]) != b"\0\0":
        raise Refused("it is a zip archive that is cut off, or has bytes behind its end")
    try:
        with zipfile.ZipFile(file) as archive:
            infos = sorted(archive.infolist(), key=lambda info: info.header_offset)
            directory = archive.start_dir
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, EOFError, struct.error) as error:
        raise Refused(f"it is not a complete zip archive: {error}") from error
    if any(info.filename.endswith("/constants.pkl") for info in infos):  # its other members are compressed
        cure = "Save its weights alone: torch.save(torch.jit.load(FILE).state_dict(), OTHER_FILE)."
        raise Refused("it is a TorchScript program, which is code", cure)
    members: dict[str, memoryview] = {}
    roots = set()
    free = 0
    for info in infos:
        name = info.orig_filename
        root, _, rest = name.partition("/")
        # A folder, then plain names: no name leads out of the folder.
        if not re.fullmatch(r"[^/\\\0]+(/[^/\\\0]+)+", name) or {".", ".."} & set(name.split("/")):
            raise Refused(f"the zip archive has a member named {name[:80]!r}")
        if rest in members:
            raise Refused(f"the zip archive has {rest[:80]!r} twice")
        start = _data_start(info, data)
        end = start + info.file_size
        if info.header_offset < free or end > directory:
            raise Refused(
                f"the zip archive's {rest[:80]!r} overlaps another part, or is longer than the file"
            )
        members[rest] = data[start:end]
        roots.add(root)
        free = end
    if len(roots) > 1:
        raise Refused("the zip archive has more than one folder")
    return members


def _data_start(info: zipfile.ZipInfo, data: memoryview) -> int:
    """Return the position of a member's bytes. Raises Refused if its own header differs from the
    directory."""
    name = info.orig_filename[:80]
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.compress_size != info.file_size:
        raise Refused(f"the zip archive's {name!r} is compressed or encrypted; torch does neither")
    fixed = data[info.header_offset : info.header_offset + 30]
    if len(fixed) < 30:
        raise Refused(f"the zip archive's {name!r} is outside the file")
    sign, _, flags, method, _, _, crc, packed, size, name_size, extra = struct.unpack("<4s5H3I2H", fixed)
    start = info.header_offset + 30
    local_name = bytes(data[start : start + name_size])
    encoding = "utf-8" if flags & 0x800 else "cp437"
    # With bit 3 the numbers may follow the data, with zip64 they are in a field of their own: then 0 or all
    # ones take their place.
    unknown = (0,) if flags & 8 else ()
    sizes = {packed, size} - {info.file_size, 0xFFFFFFFF, *unknown}
    if (
        sign != b"PK\x03\x04"
        or flags != info.flag_bits
        or method != info.compress_type
        or local_name != info.orig_filename.encode(encoding, "replace")
        or crc not in (info.CRC, *unknown)
        or sizes
    ):
        raise Refused(f"the zip archive's {name!r} has two headers that differ")
    return start + name_size + extra
