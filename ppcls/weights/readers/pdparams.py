"""Reader for files of paddle.save (.pdparams): a pickle of numpy arrays by key."""

import math
from typing import Any

import numpy as np

from ppcls.weights.readers.checkpoints import tensors_of
from ppcls.weights.readers.entries import Entry, Refused, are_sizes, mapped_entry, strides_of
from ppcls.weights.readers.pickles import (
    Buildable,
    LongText,
    Name,
    Namespace,
    Opaque,
    default_dict,
    load,
    ordered_dict,
)

# u2 is bfloat16, which numpy lacks: Paddle saves it as uint16, a type that Paddle itself does not have.
_DTYPES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "b1")


class _Dtype(Buildable):
    """A numpy dtype that a pickle describes."""

    def __init__(self, name: str) -> None:
        self.name = name

    def build(self, state: Any) -> None:
        """Check the state that numpy would set: little-endian, without fields and without an inner array."""
        if type(state) is not tuple or len(state) != 8 or type(state[1]) is not str:
            raise Refused("the description of a dtype is not valid")
        if state[1] not in ("<", "|") or any(part is not None for part in state[2:5]):
            raise Refused(f"an array has a dtype of byte order {state[1][:8]!r}, or one with fields")


class _Array(Buildable):
    """A numpy array that a pickle describes."""

    def __init__(self) -> None:
        self.entry: Entry | Opaque | None = None

    def build(self, state: Any) -> None:
        """Check shape, dtype and bytes, and make the entry. An array of a dtype that weights do not have is
        opaque. Raises Refused."""
        if self.entry is not None or type(state) is not tuple or len(state) != 5:
            raise Refused("the description of an array is not valid")
        _, shape, dtype, fortran, data = state
        if type(dtype) is Opaque:
            self.entry = Opaque(f"an array of {dtype.what}")
            return
        if type(data) is str:  # from Python 2, and shorter than LongText
            data = memoryview(_latin1(data))
        if not (
            are_sizes(shape) and type(dtype) is _Dtype and type(fortran) is bool and type(data) is memoryview
        ):
            raise Refused("the description of an array is not valid")
        stored = np.dtype(f"<{dtype.name}")
        if math.prod(shape) * stored.itemsize != len(data):
            raise Refused(f"an array has {len(data)} bytes; its shape and dtype need another number")
        strides = strides_of(shape, fortran)
        self.entry = mapped_entry(data, stored, shape, strides, bfloat16=dtype.name == "u2")


def _latin1(text: str) -> bytes:
    """Return the bytes that a pickle of Python 2 or protocol 2 holds as text."""
    try:
        return text.encode("latin1")
    except UnicodeEncodeError as error:
        raise Refused("the text that holds an array has characters that are not bytes") from error


def _reconstruct(arguments: tuple) -> _Array | Opaque:
    """Stand in for numpy's _reconstruct, which makes an empty array that a state fills later."""
    if len(arguments) == 3 and type(arguments[0]) is Name and not arguments[0].is_admitted:
        return Opaque(arguments[0].what)  # a subclass, such as a masked array
    if len(arguments) != 3 or not _is_name(arguments[0], "numpy", "ndarray"):
        raise Refused("the pickle makes an array of a class other than numpy.ndarray")
    return _Array()


def _dtype(arguments: tuple) -> _Dtype | Opaque:
    """Stand in for numpy.dtype(name, align, copy)."""
    if len(arguments) != 3 or type(arguments[0]) is not str:
        raise Refused("the description of a dtype is not valid")
    name = arguments[0]
    return _Dtype(name) if name in _DTYPES else Opaque(f"dtype {name[:20]}")


def _encode(arguments: tuple) -> memoryview:
    """Stand in for _codecs.encode, with which Python 3 writes bytes in protocol 2."""
    if len(arguments) != 2 or type(arguments[1]) is not str or arguments[1] != "latin1":
        raise Refused("the pickle encodes text with a codec other than latin1")
    text = arguments[0]
    if type(text) is LongText:
        try:
            text = str(text.utf8, "utf-8")
        except UnicodeDecodeError as error:
            raise Refused("the text that holds an array has characters that are not bytes") from error
    if type(text) is not str:
        raise Refused("the pickle encodes something that is not text")
    return memoryview(_latin1(text))


def _tuple(arguments: tuple) -> tuple:
    """Stand in for tuple((name, array)), with which paddle.save writes a tensor outside a state dict."""
    if len(arguments) != 1 or type(arguments[0]) is not tuple:
        raise Refused("the pickle makes a tuple from something that is not a tuple")
    return arguments[0]


def _no_bytes(arguments: tuple) -> memoryview:
    """Stand in for bytes(), with which Python 3 writes empty bytes in protocol 2."""
    if arguments:
        raise Refused("the pickle makes bytes from something")
    return memoryview(b"")


_ADMITTED = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,  # numpy 1
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,  # numpy 2
    ("numpy", "ndarray"): None,
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _no_bytes,
    ("__builtin__", "tuple"): _tuple,  # protocol 2
    ("builtins", "tuple"): _tuple,
    ("collections", "OrderedDict"): ordered_dict,
    ("collections", "defaultdict"): default_dict,
    ("argparse", "Namespace"): Namespace,
}


def _is_name(value: Any, module: str, name: str) -> bool:
    return type(value) is Name and (value.module, value.name) == (module, name)


def _as_array(value: Any) -> Entry | Opaque | None:
    """Return the entry of an array, alone or as (name, array); None for any other value."""
    if type(value) is tuple and len(value) == 2 and type(value[0]) is str:
        value = value[1]
    if type(value) is not _Array:
        return None
    if value.entry is None:
        raise Refused("an array has no content")
    return value.entry


def read_pdparams(data: memoryview) -> tuple[dict[str, Entry], dict[str, Any]]:
    """Return entries by key, and the metadata of checkpoints.tensors_of. Raises Refused."""
    top, end = load(data, 0, _ADMITTED)
    if end != len(data):
        raise Refused(f"{len(data) - end} bytes follow the end of the pickle")
    return tensors_of(top, _as_array)
