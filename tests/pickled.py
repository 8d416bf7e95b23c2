"""Pickles and the files that hold them, written by hand: the pickle module would not write all of them."""

import io
import pickle
import struct
import zipfile

from ppcls.weights.readers.torch import MAGIC


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def numbers(*values: int) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def name(module: str, what: str) -> bytes:
    return f"c{module}\n{what}\n".encode()


NEW_ARRAY = name("numpy.core.multiarray", "_reconstruct") + name("numpy", "ndarray") + b"K\0\x85C\x01b\x87R"


def dtype(kind="f4", order="<", names=b"N") -> bytes:
    state = b"(K\x03" + text(order) + b"N" + names + b"NJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0t"
    return name("numpy", "dtype") + text(kind) + b"\x89\x88\x87R" + state + b"b"


def state(shape=(2,), data=b"C\x08" + bytes(8), kind=None, order=b"\x89") -> bytes:
    return b"(K\x01" + numbers(*shape) + (kind or dtype()) + order + data + b"t"


def array(**changes) -> bytes:
    return NEW_ARRAY + state(**changes) + b"b"


def one(value: bytes) -> bytes:
    """A pickle of a dictionary with this one value."""
    return b"\x80\x03}" + text("w") + value + b"s."


def tensor(kind="FloatStorage", key="0", count=4, offset=0, shape=(4,), strides=(1,)) -> bytes:
    storage = text("storage") + name("torch", kind) + text(key) + text("cpu") + number(count)
    view = number(offset) + numbers(*shape) + numbers(*strides)
    hooks = name("collections", "OrderedDict") + b")R"
    return (
        name("torch._utils", "_rebuild_tensor_v2") + b"((" + storage + b"tQ" + view + b"\x89" + hooks + b"tR"
    )


def torch_zip(pickled: bytes, storage=bytes(16), **members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/data/0", storage)
        for member, data in members.items():
            archive.writestr(f"archive/{member}", data)
    return file.getvalue()


def torch_stream(pickled: bytes, keys=("0",), storages=b"\4" + bytes(7 + 16)) -> bytes:
    head = [pickle.dumps(item, 2) for item in (MAGIC, 1001, {"little_endian": True})]
    return b"".join([*head, pickled, pickle.dumps(list(keys), 2), storages])
