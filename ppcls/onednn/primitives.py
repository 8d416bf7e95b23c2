"""Memory descriptors and primitives of oneDNN, of float32 where nothing else is said."""

import threading
from collections.abc import Callable, Sequence
from ctypes import c_int32
from functools import cached_property, lru_cache, wraps
from math import prod
from typing import Any, NamedTuple, ParamSpec, TypeVar

import paddle

from ppcls.onednn import library as dnnl
from ppcls.onednn.library import Argument, Handle, OneDNNError, check, create, dims, library
from ppcls.onednn.signal_stack import use_signal_stack

CACHED = 256  # plans of each kind and thread, of 0.4 MB each; a network has at most 50 for an image size
BYTES = 4  # of a float32
Shape = tuple[int, ...]
P = ParamSpec("P")
R = TypeVar("R")


class Plans(threading.local):
    """The caches of each thread: two threads that execute one primitive would overwrite each other's
    pointers."""

    def __init__(self) -> None:
        self.caches: dict[Callable, Callable] = {}


PLANS = Plans()


def cached_by_thread(build: Callable[P, R]) -> Callable[P, R]:
    """Cache the function's last results, for each thread its own."""

    @wraps(build)
    def get(*args: P.args, **kwargs: P.kwargs) -> R:
        cache: Any = PLANS.caches.get(build)
        if cache is None:
            cache = PLANS.caches[build] = lru_cache(CACHED)(build)
        return cache(*args, **kwargs)

    return get


def forget_plans() -> None:
    """Free this thread's plans and all that the library has cached."""
    PLANS.caches.clear()
    dnnl.forget_primitives()


class Workspace(threading.local):
    """Each thread's own: a stream, a stack for signals, and buffers that grow with the largest request."""

    def __init__(self) -> None:
        self._signal_stack = use_signal_stack()
        self._buffers: dict[str, tuple[paddle.Tensor, int, int]] = {}
        self._ones: paddle.Tensor | None = None

    @cached_property
    def stream(self) -> Handle:
        return create("stream", dnnl.engine(), dnnl.DEFAULT_STREAM)

    def buffer(self, name: str, size: int) -> int:
        """Return the address of a buffer of at least `size` bytes. The next request may overwrite it."""
        found = self._buffers.get(name)
        if found is None or found[1] < size:
            self._buffers.pop(name, None)
            memory = paddle.empty([size + 4096], "uint8")
            self._buffers[name] = found = (memory, size, memory.data_ptr())
        return found[2]

    def ones(self, count: int) -> int:
        """Return the address of at least `count` ones."""
        if self._ones is None or self._ones.shape[0] < count:
            self._ones = paddle.ones([count])
        return self._ones.data_ptr()


WORKSPACE = Workspace()


# Memory descriptors


def strided(shape: Shape, strides: Shape, kind: int = dnnl.FLOAT32) -> Handle:
    """Describe memory of any strides, in elements."""
    own = "dnnl_memory_desc_create_with_strides"
    return create("memory_desc", len(shape), dims(shape), kind, dims(strides), function=own)


def plain(*shape: int) -> Handle:
    """Describe memory in the order of its axes, as Paddle's tensors are."""
    return strided(shape, tuple(prod(shape[axis + 1 :]) for axis in range(len(shape))))


def channels_last(n: int, h: int, w: int, c: int, *, kind: int = dnnl.FLOAT32) -> Handle:
    """Describe a tensor [N, H, W, C]. To oneDNN its axes are N, C, H, W, whatever their order in memory."""
    return strided((n, c, h, w), (h * w * c, 1, w * c, c), kind)


def for_each_channel(c: int) -> Handle:
    """Describe a tensor [C] that is broadcast over N, H and W."""
    return strided((1, c, 1, 1), (c, 1, c, c))


def for_each_sample(n: int, c: int) -> Handle:
    """Describe a tensor [N, C] that is broadcast over H and W."""
    return strided((n, c, 1, 1), (c, 1, c, c))


def any_format(*shape: int, kind: int = dnnl.FLOAT32) -> Handle:
    """Describe memory whose format the primitive chooses."""
    own = "dnnl_memory_desc_create_with_tag"
    return create("memory_desc", len(shape), dims(shape), kind, dnnl.ANY_FORMAT, function=own)


def size_of(descriptor: Handle) -> int:
    """Return the number of bytes."""
    return library().dnnl_memory_desc_get_size(descriptor)


def are_equal(one: Handle, other: Handle) -> bool:
    return bool(library().dnnl_memory_desc_equal(one, other))


# Attributes


class Post(NamedTuple):
    """A step that a primitive applies to its result: an activation, or a binary operation with an operand."""

    algorithm: int
    operand: Handle | None = None
    alpha: float = 0.0
    beta: float = 0.0


def add(operand: Handle) -> Post:
    return Post(dnnl.ADD, operand)


def multiply(operand: Handle) -> Post:
    return Post(dnnl.MULTIPLY, operand)


ACTIVATIONS = {  # by the names of Paddle's functions
    "relu": Post(dnnl.RELU),
    "relu6": Post(dnnl.CLIP, alpha=0.0, beta=6.0),
    "swish": Post(dnnl.SWISH, alpha=1.0),
    "sigmoid": Post(dnnl.LOGISTIC),
}
KEEP_TARGET = ("relu", "relu6", "sigmoid")  # activations whose slope follows from their target


def attributes(posts: Sequence[Post] = (), *, bf16: bool = False) -> Handle:
    """Return attributes with these post-ops and a scratchpad that the caller provides: oneDNN's own belongs
    to the thread that created the primitive, and another one crashes.

    bf16: allow the primitive to round what it multiplies to bfloat16. It still adds in float32.
    """
    own = create("primitive_attr")
    library().dnnl_primitive_attr_set_scratchpad_mode(own, dnnl.USER_SCRATCHPAD)
    if bf16:
        library().dnnl_primitive_attr_set_fpmath_mode(own, dnnl.BF16_MATH)
    if posts:
        steps = create("post_ops")
        for post in posts:
            if post.operand is None:
                library().dnnl_post_ops_append_eltwise(steps, post.algorithm, post.alpha, post.beta)
            else:
                library().dnnl_post_ops_append_binary(steps, post.algorithm, post.operand)
        library().dnnl_primitive_attr_set_post_ops(own, steps)
    return own


def operands(posts: Sequence[Post]) -> "list[Slot]":
    """Return the slots of the post-ops' operands, in their order."""
    pairs = enumerate(post.operand for post in posts)
    return [(dnnl.post_operand(index), operand) for index, operand in pairs if operand is not None]


# Primitives

Slot = tuple[int, Handle]  # an argument, and the descriptor of its memory


class Primitive:
    """A primitive with a memory object for each slot. It is called with the slots' addresses, in their order.

    It belongs to the thread that creates it: see `cached_by_thread`.
    """

    def __init__(self, descriptor: Handle, slots: Sequence[Slot]) -> None:
        self.name = dnnl.implementation(descriptor)
        scratchpad = query(descriptor, dnnl.SCRATCHPAD_OF)
        self._scratchpad_size = size_of(scratchpad)
        if self._scratchpad_size:
            slots = [*slots, (dnnl.SCRATCHPAD, scratchpad)]
        primitive = create("primitive", descriptor)
        memories = [create("memory", own, dnnl.engine(), None) for _, own in slots]
        self._owned = primitive, memories, WORKSPACE.stream
        self._memories = [memory._as_parameter_ for memory in memories]
        self._nowhere = self._addresses = (0,) * len(slots)  # the latter are those of the last call
        numbers = (number for number, _ in slots)
        arguments = (Argument(*pair) for pair in zip(numbers, self._memories, strict=True))
        self._arguments = (
            *(primitive._as_parameter_, WORKSPACE.stream._as_parameter_, c_int32(len(slots))),
            (Argument * len(slots))(*arguments),
        )
        found = library()
        self._place, self._execute = found.dnnl_memory_set_data_handle, found.dnnl_primitive_execute

    def __call__(self, *addresses: int) -> None:
        if self._scratchpad_size:
            addresses = (*addresses, WORKSPACE.buffer("scratchpad", self._scratchpad_size))
        if addresses != self._addresses:
            last, self._addresses = self._addresses, self._nowhere
            for memory, address, old in zip(self._memories, addresses, last, strict=True):
                if address != old:
                    self._place(memory, address)
            self._addresses = addresses
        status = self._execute(*self._arguments)
        if status:
            check(status, f"dnnl_primitive_execute of {self.name}")


def query(descriptor: Handle, what: int) -> Handle:
    """Return the descriptor of one of a primitive's memories. Raises OneDNNError if it has no such memory."""
    pointer = library().dnnl_primitive_desc_query_md(descriptor, what, 0)
    if not pointer:
        raise OneDNNError(f"oneDNN: {dnnl.implementation(descriptor)} has no memory for query {what}.")
    return Handle(dnnl.c_void_p(pointer), None, owner=descriptor)


def describe(kind: str, *arguments: Any) -> Handle:
    """Return a primitive's descriptor: dnnl_KIND_primitive_desc_create of the arguments."""
    return create("primitive_desc", *arguments, function=f"dnnl_{kind}_primitive_desc_create")


def reorder(source: Handle, target: Handle) -> Primitive:
    """Copy memory into another format. Called with source, target."""
    engine = dnnl.engine()
    descriptor = describe("reorder", source, engine, target, engine, attributes())
    return Primitive(descriptor, [(dnnl.SOURCE, source), (dnnl.TARGET, target)])


def binary(algorithm: int, one: Handle, other: Handle, target: Handle, *posts: Post) -> Primitive:
    """Combine two tensors, the second of which may be broadcast. Called with one, other, target, operands."""
    descriptor = describe("binary", dnnl.engine(), algorithm, one, other, target, attributes(posts))
    slots = [(dnnl.SOURCE, one), (dnnl.SOURCE_1, other), (dnnl.TARGET, target)]
    return Primitive(descriptor, slots + operands(posts))


def matmul(one: Handle, other: Handle, target: Handle, *posts: Post, bf16: bool = False) -> Primitive:
    """Multiply matrices. Called with one, other, target, operands. bf16: see `attributes`."""
    descriptor = describe("matmul", dnnl.engine(), one, other, None, target, attributes(posts, bf16=bf16))
    slots = [(dnnl.SOURCE, one), (dnnl.WEIGHTS, other), (dnnl.TARGET, target)]
    return Primitive(descriptor, slots + operands(posts))


def activation(name: str, memory: Handle) -> Primitive:
    """Called with source, target, which may be the same."""
    return Primitive(_activation(name, memory), [(dnnl.SOURCE, memory), (dnnl.TARGET, memory)])


def activation_backward(name: str, memory: Handle) -> Primitive:
    """Called with the activation's source, or its target if KEEP_TARGET has its name; the gradient of its
    target; and that of its source."""
    own = ACTIVATIONS[name]
    by_target = name == "sigmoid"  # relu and relu6 take either
    descriptor = describe(
        "eltwise_backward",
        *(dnnl.engine(), dnnl.LOGISTIC_BY_TARGET if by_target else own.algorithm, *[memory] * 3),
        *(own.alpha, own.beta, _activation(name, memory), attributes()),
    )
    kept = dnnl.TARGET if by_target else dnnl.SOURCE
    return Primitive(descriptor, [(own, memory) for own in (kept, dnnl.DIFF_TARGET, dnnl.DIFF_SOURCE)])


def _activation(name: str, memory: Handle) -> Handle:
    own = ACTIVATIONS[name]
    return describe(
        "eltwise_forward",
        *(dnnl.engine(), dnnl.TRAINING, own.algorithm, memory, memory),
        *(own.alpha, own.beta, attributes()),
    )


def statistics(memory: Handle, channels: int) -> Primitive:
    """Called with source, a target that is of no use, and the source's mean and biased variance, [C] each."""
    descriptor = _normalisation(memory, 0.0, 0)
    slots = [(dnnl.SOURCE, memory), (dnnl.TARGET, memory)]
    return Primitive(descriptor, slots + [(own, plain(channels)) for own in (dnnl.MEAN, dnnl.VARIANCE)])


def batch_norm_backward(memory: Handle, channels: int, epsilon: float, *, moving: bool) -> Primitive:
    """Called with the source, the gradient of the target, that of the source, mean, variance, scale, and the
    gradients of scale and shift.

    moving: the statistics are the source's own, so that the gradient goes through them too.
    """
    flags = dnnl.USE_SCALE | dnnl.USE_SHIFT | (0 if moving else dnnl.GLOBAL_STATISTICS)
    descriptor = describe(
        "batch_normalization_backward",
        *(dnnl.engine(), dnnl.BACKWARD, memory, memory, memory),
        *(epsilon, flags, _normalisation(memory, epsilon, flags), attributes()),
    )
    slots = [(dnnl.SOURCE, memory), (dnnl.DIFF_TARGET, memory), (dnnl.DIFF_SOURCE, memory)]
    vectors = dnnl.MEAN, dnnl.VARIANCE, dnnl.SCALE, dnnl.DIFF_SCALE, dnnl.DIFF_SHIFT
    return Primitive(descriptor, slots + [(own, plain(channels)) for own in vectors])


def _normalisation(memory: Handle, epsilon: float, flags: int) -> Handle:
    return describe(
        "batch_normalization_forward",
        *(dnnl.engine(), dnnl.TRAINING, memory, memory),
        *(epsilon, flags, attributes()),
    )


def max_pooling(
    source: Handle, target: Handle, kernel: int, stride: int, padding: int
) -> tuple[Primitive, Primitive, int]:
    """Return maximum pooling, its derivative, and the bytes of the workspace that they share. Called with
    source, target, workspace; and with their gradients, the target's first, and the workspace."""
    engine = dnnl.engine()
    window = dims((stride, stride)), dims((kernel, kernel)), dims((0, 0)), *[dims((padding, padding))] * 2
    common = dnnl.MAX_POOLING, source, target, *window
    forward = describe("pooling_forward", engine, dnnl.TRAINING, *common, attributes())
    backward = describe("pooling_backward", engine, *common, forward, attributes())
    workspace = query(forward, dnnl.WORKSPACE_OF)
    last = (dnnl.WORKSPACE, workspace)
    return (
        Primitive(forward, [(dnnl.SOURCE, source), (dnnl.TARGET, target), last]),
        Primitive(backward, [(dnnl.DIFF_TARGET, target), (dnnl.DIFF_SOURCE, source), last]),
        size_of(workspace),
    )
