"""Reads what paddle.save writes (.pdparams): a pickle of numpy arrays by key."""

import math
from typing import Any

import numpy as np

from ppcls.weights.readers.checkpoints import weights_of
from ppcls.weights.readers.entries import Entry, Refused, are_sizes, mapped_entry, strides_of
from ppcls.weights.readers.pickles import Buildable, LongText, Name, inert, load, ordered_dict

# u2 is bfloat16, which numpy lacks: Paddle keeps it as uint16, and has no uint16 of its own.
_DTYPES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "b1")


class _Dtype(Buildable):
    def __init__(self, name: str) -> None:
        self.name = name

    def build(self, state: Any) -> None:
        """Checks what numpy would set: the byte order, and that it has no fields or inner array."""
        if type(state) is not tuple or len(state) != 8 or type(state[1]) is not str:
            raise Refused("a dtype's description makes no sense")
        if state[1] not in ("<", "|") or any(part is not None for part in state[2:5]):
            raise Refused(f"an array has a dtype of byte order {state[1][:8]!r}, or one with fields")


class _Array(Buildable):
    def __init__(self) -> None:
        self.entry: Entry | None = None

    def build(self, state: Any) -> None:
        if self.entry is not None or type(state) is not tuple or len(state) != 5:
            raise Refused("an array's description makes no sense")
        _, shape, dtype, fortran, data = state
        if type(data) is str:  # short enough to be one, from Python 2
            data = memoryview(_latin1(data))
        if not (
            are_sizes(shape) and type(dtype) is _Dtype and type(fortran) is bool and type(data) is memoryview
        ):
            raise Refused("an array's description makes no sense")
        stored = np.dtype(f"<{dtype.name}")
        if math.prod(shape) * stored.itemsize != len(data):
            raise Refused(f"an array has {len(data)} bytes, which is not what its shape and dtype need")
        strides = strides_of(shape, fortran)
        self.entry = mapped_entry(data, stored, shape, strides, bfloat16=dtype.name == "u2")


def _latin1(text: str) -> bytes:
    try:
        return text.encode("latin1")
    except UnicodeEncodeError as error:
        raise Refused("an array's bytes are no bytes") from error


def _reconstruct(arguments: tuple) -> _Array:
    """numpy's function that makes an empty array, which a state fills later."""
    if len(arguments) != 3 or not _is_name(arguments[0], "numpy", "ndarray"):
        raise Refused("the pickle makes an array of another class than numpy.ndarray")
    return _Array()


def _dtype(arguments: tuple) -> _Dtype:
    if len(arguments) != 3 or type(arguments[0]) is not str or arguments[0] not in _DTYPES:
        name = arguments[0][:20] if arguments and type(arguments[0]) is str else "none"
        raise Refused(f"an array has dtype {name}, this reads {', '.join(_DTYPES)}")
    return _Dtype(arguments[0])


def _encode(arguments: tuple) -> memoryview:
    """_codecs.encode: how Python 3 writes bytes at protocol 2."""
    if len(arguments) != 2 or type(arguments[1]) is not str or arguments[1] != "latin1":
        raise Refused("the pickle encodes text with another codec than latin1")
    text = arguments[0]
    if type(text) is LongText:
        try:
            text = str(text.utf8, "utf-8")
        except UnicodeDecodeError as error:
            raise Refused("an array's bytes are no bytes") from error
    if type(text) is not str:
        raise Refused("the pickle encodes something that is no text")
    return memoryview(_latin1(text))


def _tuple(arguments: tuple) -> tuple:
    """How paddle.save writes a tensor outside a state dict: tuple((name, array))."""
    if len(arguments) != 1 or type(arguments[0]) is not tuple:
        raise Refused("the pickle makes a tuple of something else than a tuple")
    return arguments[0]


def _no_bytes(arguments: tuple) -> memoryview:
    """bytes(): how Python 3 writes empty bytes at protocol 2."""
    if arguments:
        raise Refused("the pickle makes bytes of something")
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
    ("argparse", "Namespace"): inert,
}


def _is_name(value: Any, module: str, name: str) -> bool:
    return type(value) is Name and (value.module, value.name) == (module, name)


def _as_array(value: Any) -> Entry | None:
    if type(value) is tuple and len(value) == 2 and type(value[0]) is str:
        value = value[1]
    if type(value) is not _Array:
        return None
    if value.entry is None:
        raise Refused("an array has no content")
    return value.entry


def read_pdparams(data: memoryview) -> tuple[dict[str, Entry], dict[str, Any]]:
    """Entries by key, and the facts of checkpoints.weights_of. Raises Refused."""
    top, end = load(data, 0, _ADMITTED)
    if end != len(data):
        raise Refused(f"{len(data) - end} bytes follow the end of the pickle")
    return weights_of(top, _as_array)
