"""A tensor in a file, and the checks that all readers share."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

AGAIN = "Download or copy the file again, or take it from its publisher."
_MAX_DIMENSIONS = 16
_MAX_EMPTY = 2**31


class Refused(ValueError):
    """Reason why a file is not read, and what to do. `read_file` adds the path."""

    def __init__(self, reason: str, cure: str = AGAIN) -> None:
        super().__init__(f"{reason}. {cure}")


@dataclass(frozen=True)
class Entry:
    """A tensor in a file. read() reads this tensor alone and returns an aligned array; do not write to it."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]


def strides_of(shape: tuple[int, ...], fortran: bool = False) -> tuple[int, ...]:
    """Return the strides, in elements, of an array without gaps."""
    sizes = shape if fortran else shape[::-1]
    steps = [1]
    for size in sizes[:-1]:
        steps.append(steps[-1] * size)
    steps = steps[: len(shape)]
    return tuple(steps if fortran else steps[::-1])


def are_sizes(value: Any) -> bool:
    """Return whether this is a tuple of integers of 0 or more."""
    return type(value) is tuple and all(type(size) is int and size >= 0 for size in value)


def mapped_entry(
    data: memoryview,
    stored: np.dtype,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    offset: int = 0,
    bfloat16: bool = False,
) -> Entry:
    """Return an entry that is a view of `data`, a part of a mapped file. Strides and offset are in elements.

    bfloat16: `stored` is uint16 and holds the upper halves of float32 numbers; read() returns float32.
    Raises Refused for a view that leaves `data` or has more elements than `data`.
    """
    elements, rest = divmod(len(data), stored.itemsize)
    if rest or not are_sizes(shape) or not are_sizes(strides) or not are_sizes((offset,)):
        raise Refused("the description of a tensor is not valid")
    if len(shape) != len(strides) or len(shape) > _MAX_DIMENSIONS:
        raise Refused(f"a tensor has {len(shape)} sizes and {len(strides)} strides")
    empty = 0 in shape
    count = math.prod(size for size in shape if size)
    last = offset if empty else offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if count > (_MAX_EMPTY if empty else elements) or last > elements - (not empty):
        raise Refused(f"a tensor reaches beyond its storage of {elements} elements")
    dtype = np.dtype(np.float32) if bfloat16 else stored
    # A dimension of size 1 has a stride that is never used and may be any number.
    steps = [step * stored.itemsize if n > 1 else 0 for n, step in zip(shape, strides, strict=True)]

    def read() -> np.ndarray:
        if empty:
            return np.empty(shape, dtype)
        flat = np.frombuffer(data, stored, offset=offset * stored.itemsize)
        array = np.lib.stride_tricks.as_strided(flat, shape, steps, writeable=False)
        if bfloat16:
            wide = array.astype(np.uint32)
            wide <<= 16
            return wide.view(np.float32)
        # Compiled code may rely on alignment, and a pickle does not align its arrays.
        return np.require(array, requirements="A")

    return Entry(shape, dtype, read)
