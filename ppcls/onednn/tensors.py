"""Paddle's tensors as oneDNN and numpy see them: by the address of their memory."""

from collections.abc import Sequence
from ctypes import c_float
from functools import lru_cache
from math import prod

import numpy as np
import paddle
from paddle import Tensor

_FLOAT32, _CPU, _EMPTY = paddle.float32, paddle.CPUPlace(), paddle._C_ops.empty


def empty(shape: Sequence[int]) -> Tensor:
    """Return a float32 tensor without values; paddle.empty takes four times as long."""
    return _EMPTY(shape, _FLOAT32, _CPU)


def usable(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the tensor, or a contiguous copy, whose address may go to oneDNN, which checks nothing.

    Raises TypeError or ValueError unless it is float32 of this shape and on the CPU.
    """
    if tensor.dtype != _FLOAT32 or not tensor.place.is_cpu_place():
        raise TypeError(f"oneDNN takes float32 on the CPU. Received: {tensor.dtype} on {tensor.place}")
    if tensor.shape != list(shape):
        raise ValueError(f"Expected: a tensor of {list(shape)}. Received: {tensor.shape}")
    return tensor if tensor.is_contiguous() else tensor.contiguous()


def vectors(channels: int, *tensors: Tensor) -> list[Tensor]:
    """Return tensors float32 [channels] as `usable` does."""
    return [usable(tensor, [channels]) for tensor in tensors]


def view(tensor: Tensor) -> np.ndarray:
    """Return a usable tensor's values as an array in the same memory. It does not keep the tensor alive."""
    return view_at(tensor.data_ptr(), *tensor.shape)


@lru_cache(4096)
def view_at(address: int, *shape: int) -> np.ndarray:
    """Return the float32 values at an address as an array in the same memory."""
    memory = memoryview((c_float * prod(shape)).from_address(address))
    return np.frombuffer(memory, np.float32).reshape(shape)


def address_of(array: np.ndarray) -> int:
    """Return the address of an array's memory; array.ctypes.data takes three times as long."""
    return array.__array_interface__["data"][0]
