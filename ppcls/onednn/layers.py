"""The networks' other layers, on tensors float32 [N, H, W, C]."""

from functools import cached_property

import numpy as np
import paddle
from paddle import Tensor

from ppcls.onednn import library as dnnl
from ppcls.onednn.autograd import Gradients, Step
from ppcls.onednn.primitives import (
    WORKSPACE,
    Post,
    Primitive,
    add,
    binary,
    cached_by_thread,
    channels_last,
    for_each_sample,
    matmul,
    max_pooling,
    plain,
    reorder,
)
from ppcls.onednn.tensors import address_of, empty, usable


class ImagePlan:
    """Operations on tensors [N, H, W, C], and on factors [N, C] of each image's channels."""

    def __init__(self, n: int, h: int, w: int, c: int) -> None:
        self.shape, self.pixels = [n, h, w, c], h * w
        self._memory, self._factor = channels_last(n, h, w, c), for_each_sample(n, c)

    def mean(self, x: int) -> Tensor:
        """Return the mean over the pixels, [N, C], of the tensor at x."""
        n, _, _, c = self.shape
        target = empty([n, c])
        self._mean(WORKSPACE.ones(self.pixels * n), x, target.data_ptr())
        return target

    @cached_property
    def _mean(self) -> Primitive:
        return self._sum(Post(dnnl.LINEAR, alpha=1 / self.pixels))

    @cached_property
    def sum(self) -> Primitive:
        """Called with ones [N, pixels], x, target [N, C]."""
        return self._sum()

    def _sum(self, *posts: Post) -> Primitive:
        n, _, _, c = self.shape
        return matmul(plain(n, 1, self.pixels), plain(n, self.pixels, c), plain(n, 1, c), *posts)

    @cached_property
    def scale(self) -> Primitive:
        """Called with x, factor, target."""
        return binary(dnnl.MULTIPLY, self._memory, self._factor, self._memory)

    @cached_property
    def multiply(self) -> Primitive:
        """Called with x, another tensor [N, H, W, C], target."""
        return binary(dnnl.MULTIPLY, self._memory, self._memory, self._memory)

    @cached_property
    def add_to_channels(self) -> Primitive:
        """Called with x, summand [N, C], target."""
        return binary(dnnl.ADD, self._memory, self._factor, self._memory)

    @cached_property
    def scale_and_add(self) -> Primitive:
        """Called with x, factor, target, another tensor [N, H, W, C] that is added."""
        return binary(dnnl.MULTIPLY, self._memory, self._factor, self._memory, add(self._memory))


image_plan = cached_by_thread(ImagePlan)


class ChannelsLast(Step):
    """Images [N, C, H, W] to [N, H, W, C]."""

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        n, c, h, w = self.shape = x.shape
        y = empty([n, h, w, c])
        _channels_last_plan(n, c, h, w)[0](usable(x, x.shape).data_ptr(), y.data_ptr())
        return y

    def backward(self, dy: Tensor, needs_dx: bool, added: Tensor | None) -> Gradients:
        dx = empty(self.shape)
        _channels_last_plan(*self.shape)[1](dy.data_ptr(), dx.data_ptr())
        return Gradients(dx)


@cached_by_thread
def _channels_last_plan(n: int, c: int, h: int, w: int) -> tuple[Primitive, Primitive]:
    first, last = plain(n, c, h, w), channels_last(n, h, w, c)
    return reorder(first, last), reorder(last, first)


class AddScaled(Step):
    """x * scale + shortcut, with a scale [N, 1, 1, 1] for each image: drop connect."""

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        plan = image_plan(*x.shape)
        n, _, _, c = plan.shape
        if shortcut is None:
            raise ValueError("AddScaled is the last step of a block with a shortcut.")
        self.factor = np.repeat(self.scale.numpy().reshape([n, 1]), c, axis=1)
        y, shortcut = empty(plan.shape), usable(shortcut, plan.shape)
        plan.scale_and_add(x.data_ptr(), address_of(self.factor), y.data_ptr(), shortcut.data_ptr())
        return y

    def backward(self, dy: Tensor, needs_dx: bool, added: Tensor | None) -> Gradients:
        plan = image_plan(*dy.shape)
        dy, dx = usable(dy, plan.shape), empty(plan.shape)
        plan.scale(dy.data_ptr(), address_of(self.factor), dx.data_ptr())
        return Gradients(dx, shortcut=dy)


class GlobalAverage(Step):
    """[N, H, W, C] to the means over the pixels, [N, C]."""

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        plan = image_plan(*x.shape)
        self.shape = plan.shape
        return plan.mean(usable(x, plan.shape).data_ptr())

    def backward(self, dy: Tensor, needs_dx: bool, added: Tensor | None) -> Gradients:
        n, h, w, c = self.shape
        return Gradients((dy / (h * w)).reshape([n, 1, 1, c]).expand(self.shape).contiguous())


class MaxPool(Step):
    """Maximum over windows: [N, H, W, C] to [N, H', W', C]."""

    def __init__(self, kernel: int, stride: int, padding: int) -> None:
        super().__init__()
        self.window = kernel, stride, padding

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        self.key = *x.shape, *self.window
        self.shape, (forward, _, size) = x.shape, _pooling_plan(*self.key)
        y, self.workspace = empty(_pooled_shape(*self.key)), paddle.empty([size], "uint8")
        forward(usable(x, x.shape).data_ptr(), y.data_ptr(), self.workspace.data_ptr())
        return y

    def backward(self, dy: Tensor, needs_dx: bool, added: Tensor | None) -> Gradients:
        dx = empty(self.shape)
        dy = usable(dy, _pooled_shape(*self.key))
        _pooling_plan(*self.key)[1](dy.data_ptr(), dx.data_ptr(), self.workspace.data_ptr())
        return Gradients(dx)


def _pooled_shape(n: int, h: int, w: int, c: int, kernel: int, stride: int, padding: int) -> list[int]:
    out = [(length + 2 * padding - kernel) // stride + 1 for length in (h, w)]
    return [n, *out, c]


@cached_by_thread
def _pooling_plan(
    n: int, h: int, w: int, c: int, kernel: int, stride: int, padding: int
) -> tuple[Primitive, Primitive, int]:
    source = channels_last(n, h, w, c)
    n, h, w, c = _pooled_shape(n, h, w, c, kernel, stride, padding)
    return max_pooling(source, channels_last(n, h, w, c), kernel, stride, padding)
