"""oneDNN's C API, by ctypes, out of the library that comes with Paddle for Linux.

The functions and their arguments are those of dnnl.h, version 3. Constants: dnnl_types.h.
"""

import ctypes
import sys
from collections.abc import Callable
from ctypes import POINTER, byref, c_char_p, c_float, c_int, c_int64, c_size_t, c_uint, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

FILE = "libs/libdnnl.so.3"  # in Paddle's package
MAJOR = 3

STATUSES = {1: "out of memory", 2: "invalid arguments", 3: "unimplemented", 4: "last implementation reached"}
STATUSES |= {5: "runtime error", 6: "not required", 7: "invalid graph", 8: "invalid graph operation"}
STATUSES |= {9: "invalid shape", 10: "invalid data type"}

Dims = c_int64 * 12
CPU, DEFAULT_STREAM = 1, 1
BFLOAT16, FLOAT32 = 2, 3  # types of values
ANY_FORMAT = 1
USER_SCRATCHPAD = 1
BF16_MATH = 1  # for products of float32
TRAINING, INFERENCE, BACKWARD = 64, 96, 128  # kinds of propagation
DIRECT_CONVOLUTION, MAX_POOLING = 1, 0x1FF
RELU, LINEAR, LOGISTIC, SWISH, CLIP = 0x20, 0x26, 0x29, 0x2C, 0x2F  # clip_v2, whose slope at the limits is 0
LOGISTIC_BY_TARGET = 0x104  # for the derivative: given the function's target in place of its source
ADD, MULTIPLY = 0x1FFF0, 0x1FFF1
GLOBAL_STATISTICS, USE_SCALE, USE_SHIFT = 1, 2, 4  # flags of batch norm
# Arguments of a primitive
SOURCE, SOURCE_1, TARGET, WEIGHTS, MEAN, VARIANCE, SCALE, SHIFT = 1, 2, 17, 33, 49, 50, 51, 52
WORKSPACE, SCRATCHPAD = 64, 80
DIFF_SOURCE, DIFF_TARGET, DIFF_WEIGHTS, DIFF_SCALE, DIFF_SHIFT = 129, 145, 161, 255, 256
# Queries of a primitive's descriptor
NAME_OF, WEIGHTS_OF, DIFF_WEIGHTS_OF, WORKSPACE_OF, SCRATCHPAD_OF = 8, 131, 132, 135, 136


def post_operand(index: int) -> int:
    """Return the argument that is the second operand of a binary post-op, counted from 0."""
    return 32768 * (index + 1) | SOURCE_1


class OneDNNError(RuntimeError):
    """oneDNN cannot be used here, or one of its functions failed."""


class _Version(ctypes.Structure):
    _fields_ = [("major", c_int), ("minor", c_int), ("patch", c_int)]


class Argument(ctypes.Structure):
    """An argument of a primitive and its memory object."""

    _fields_ = [("argument", c_int), ("memory", c_void_p)]


NEW = POINTER(c_void_p)  # where a function puts a new object
_DESC, _DIMS = c_void_p, POINTER(c_int64)
_CONVOLUTION = (_DESC, _DESC, _DESC, _DIMS, _DIMS, _DIMS, _DIMS)
_POOLING = (_DESC, _DESC, _DIMS, _DIMS, _DIMS, _DIMS, _DIMS)
# Arguments of each function that returns a status
PROTOTYPES: dict[str, tuple[Any, ...]] = {
    "dnnl_engine_create": (NEW, c_int, c_size_t),
    "dnnl_stream_create": (NEW, c_void_p, c_uint),
    "dnnl_stream_destroy": (c_void_p,),
    "dnnl_get_primitive_cache_capacity": (POINTER(c_int),),
    "dnnl_set_primitive_cache_capacity": (c_int,),
    "dnnl_memory_desc_create_with_strides": (NEW, c_int, _DIMS, c_int, _DIMS),
    "dnnl_memory_desc_create_with_tag": (NEW, c_int, _DIMS, c_int, c_int),
    "dnnl_memory_desc_destroy": (c_void_p,),
    "dnnl_memory_create": (NEW, c_void_p, c_void_p, c_void_p),
    "dnnl_memory_set_data_handle": (c_void_p, c_void_p),
    "dnnl_memory_destroy": (c_void_p,),
    "dnnl_primitive_attr_create": (NEW,),
    "dnnl_primitive_attr_set_scratchpad_mode": (c_void_p, c_int),
    "dnnl_primitive_attr_set_fpmath_mode": (c_void_p, c_int),
    "dnnl_primitive_attr_set_post_ops": (c_void_p, c_void_p),
    "dnnl_primitive_attr_destroy": (c_void_p,),
    "dnnl_post_ops_create": (NEW,),
    "dnnl_post_ops_append_eltwise": (c_void_p, c_int, c_float, c_float),
    "dnnl_post_ops_append_binary": (c_void_p, c_int, c_void_p),
    "dnnl_post_ops_destroy": (c_void_p,),
    "dnnl_primitive_desc_query": (c_void_p, c_int, c_int, c_void_p),
    "dnnl_primitive_desc_destroy": (c_void_p,),
    "dnnl_primitive_create": (NEW, c_void_p),
    "dnnl_primitive_execute": (c_void_p, c_void_p, c_int, POINTER(Argument)),
    "dnnl_primitive_destroy": (c_void_p,),
    "dnnl_reorder_primitive_desc_create": (NEW, _DESC, c_void_p, _DESC, c_void_p, c_void_p),
    "dnnl_binary_primitive_desc_create": (NEW, c_void_p, c_int, _DESC, _DESC, _DESC, c_void_p),
    "dnnl_matmul_primitive_desc_create": (NEW, c_void_p, _DESC, _DESC, _DESC, _DESC, c_void_p),
    "dnnl_eltwise_forward_primitive_desc_create": (
        *(NEW, c_void_p, c_int, c_int),
        *(_DESC, _DESC, c_float, c_float, c_void_p),
    ),
    "dnnl_eltwise_backward_primitive_desc_create": (
        *(NEW, c_void_p, c_int),
        *(_DESC, _DESC, _DESC, c_float, c_float, c_void_p, c_void_p),
    ),
    "dnnl_batch_normalization_forward_primitive_desc_create": (
        *(NEW, c_void_p, c_int),
        *(_DESC, _DESC, c_float, c_uint, c_void_p),
    ),
    "dnnl_batch_normalization_backward_primitive_desc_create": (
        *(NEW, c_void_p, c_int),
        *(_DESC, _DESC, _DESC, c_float, c_uint, c_void_p, c_void_p),
    ),
    "dnnl_convolution_forward_primitive_desc_create": (
        *(NEW, c_void_p, c_int, c_int, _DESC),
        *(*_CONVOLUTION, c_void_p),
    ),
    "dnnl_convolution_backward_data_primitive_desc_create": (
        *(NEW, c_void_p, c_int),
        *(*_CONVOLUTION, c_void_p, c_void_p),
    ),
    "dnnl_convolution_backward_weights_primitive_desc_create": (
        *(NEW, c_void_p, c_int, _DESC),
        *(*_CONVOLUTION, c_void_p, c_void_p),
    ),
    "dnnl_pooling_forward_primitive_desc_create": (NEW, c_void_p, c_int, c_int, *_POOLING, c_void_p),
    "dnnl_pooling_backward_primitive_desc_create": (NEW, c_void_p, c_int, *_POOLING, c_void_p, c_void_p),
}
CHECKED_BY_CALLER = ("dnnl_primitive_execute", "dnnl_memory_set_data_handle")  # hundreds of calls a step
# Arguments and result of the others
OTHERS: dict[str, tuple[tuple[Any, ...], Any]] = {
    "dnnl_version": ((), POINTER(_Version)),
    "dnnl_memory_desc_get_size": ((c_void_p,), c_size_t),
    "dnnl_memory_desc_equal": ((c_void_p, c_void_p), c_int),
    "dnnl_primitive_desc_query_md": ((c_void_p, c_int, c_int), c_void_p),
}


def check(status: int, name: str) -> None:
    """Raise OneDNNError for a status that is not success."""
    if status:
        raise OneDNNError(f"oneDNN: {name} returned {status}, {STATUSES.get(status, 'an unknown status')}.")


@cache
def library() -> ctypes.CDLL:
    """Load the library. Its functions raise OneDNNError in place of returning another status than success.

    Raises OneDNNError if there is none that this module knows.
    """
    import paddle

    path = Path(paddle.__file__).parent / FILE
    if sys.platform != "linux":
        raise OneDNNError("this Paddle has no separate oneDNN: only Paddle for Linux has")
    try:
        found = ctypes.CDLL(str(path))
        for name, arguments in PROTOTYPES.items():
            function = getattr(found, name)
            function.argtypes, function.restype = arguments, c_int
            if name not in CHECKED_BY_CALLER:
                function.errcheck = _checked(name)
        for name, (arguments, result) in OTHERS.items():
            function = getattr(found, name)
            function.argtypes, function.restype = arguments, result
    except (OSError, AttributeError) as error:
        raise OneDNNError(f"oneDNN cannot be loaded: {error}") from error
    number = found.dnnl_version().contents
    if number.major != MAJOR:
        raise OneDNNError(f"Paddle has oneDNN {number.major}.{number.minor}; supported: {MAJOR}")
    return found


def version() -> str:
    """Return the library's version, such as "3.6.2". Raises OneDNNError if there is none."""
    number = library().dnnl_version().contents
    return f"{number.major}.{number.minor}.{number.patch}"


@cache
def engine() -> c_void_p:
    """Return the CPU, as oneDNN's engine."""
    new = c_void_p()
    library().dnnl_engine_create(byref(new), CPU, 0)
    return new


def forget_primitives() -> None:
    """Empty the library's cache, which keeps primitives that nobody has any more."""
    capacity = c_int()
    library().dnnl_get_primitive_cache_capacity(byref(capacity))
    for number in (0, capacity):
        library().dnnl_set_primitive_cache_capacity(number)


class Handle:
    """An object of the library, which is destroyed with its last reference.

    owner: kept alive; an object that it owns is not destroyed.
    """

    __slots__ = ("_as_parameter_", "_destroy", "owner")

    def __init__(self, pointer: c_void_p, destroy: Callable | None, owner: object = None) -> None:
        if not pointer.value:
            raise OneDNNError("oneDNN returned no object where one was expected.")
        self._as_parameter_, self._destroy, self.owner = pointer, destroy, owner

    def __del__(self) -> None:
        destroy = getattr(self, "_destroy", None)  # None after an error in __init__
        if destroy is not None:
            destroy(self)


def create(kind: str, *arguments: Any, function: str | None = None) -> Handle:
    """Call dnnl_KIND_create, or another function, and return the new object."""
    found, new = library(), c_void_p()
    getattr(found, function or f"dnnl_{kind}_create")(byref(new), *arguments)
    return Handle(new, getattr(found, f"dnnl_{kind}_destroy"))


def dims(values: tuple[int, ...]) -> ctypes.Array:
    """Return numbers as the library takes them."""
    return Dims(*values)


def implementation(descriptor: Handle) -> str:
    """Return the name of the implementation that a primitive's descriptor chose, such as "jit:avx2"."""
    text = c_char_p()
    library().dnnl_primitive_desc_query(descriptor, NAME_OF, 0, byref(text))
    return (text.value or b"").decode()


def _checked(name: str) -> Callable:
    def errcheck(status: int, function: Any, arguments: Any) -> None:
        check(status, name)

    return errcheck
