"""The networks' other layers as operations of Paddle's autograd, on tensors float32 [N, H, W, C]."""

from functools import cached_property
from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import Tensor
from paddle.autograd import PyLayer

from ppcls.onednn import library as dnnl
from ppcls.onednn.autograd import asked, choose, keep, kept, refuse_second_derivatives
from ppcls.onednn.convolution import BYTES
from ppcls.onednn.primitives import (
    ACTIVATIONS,
    WORKSPACE,
    Primitive,
    activation_pair,
    add,
    binary,
    cached_by_thread,
    channels_last,
    for_each_sample,
    matmul,
    max_pooling,
    plain,
    reorder,
    scale_backward,
)
from ppcls.onednn.tensors import empty, usable


class ImagePlan:
    """Operations on tensors [N, H, W, C], and on factors [N, C] of each image's channels."""

    def __init__(self, n: int, h: int, w: int, c: int) -> None:
        self.shape, self.pixels = (n, h, w, c), h * w
        self._memory, self._factor = channels_last(n, h, w, c), for_each_sample(n, c)
        self._zeros = paddle.zeros([c])

    def mean(self, x: int) -> Tensor:
        """Return the mean over the pixels, [N, C], of the tensor at x."""
        return self.sum(x).scale_(1 / self.pixels)

    def sum(self, x: int) -> Tensor:
        n, h, w, c = self.shape
        target = empty([n, c])
        self._sum(WORKSPACE.ones(n * h * w), x, target.data_ptr())
        return target

    @cached_property
    def _sum(self) -> Primitive:
        n, h, w, c = self.shape
        return matmul(plain(n, 1, h * w), plain(n, h * w, c), plain(n, 1, c))

    @cached_property
    def scale(self) -> Primitive:
        """Called with x, factor, target."""
        return binary(dnnl.MULTIPLY, self._memory, self._factor, self._memory)

    def scale_backward(self, x: int, dy: int, factor: int, dx: int, dfactor: int) -> None:
        """Write the gradients of x * factor. An image at a time: to oneDNN the factors are a batch norm's."""
        n, h, w, c = self.shape
        run, zeros, ones = self._scale_backward, self._zeros.data_ptr(), WORKSPACE.ones(c)
        for image in range(n):
            pixels, channels = image * h * w * c * BYTES, image * c * BYTES
            own = zeros, ones, factor + channels, dfactor + channels
            run(x + pixels, dy + pixels, dx + pixels, *own)

    @cached_property
    def _scale_backward(self) -> Primitive:
        _, h, w, c = self.shape
        return scale_backward(channels_last(1, h, w, c), c)

    @cached_property
    def add_to_channels(self) -> Primitive:
        """Called with x, summand [N, C], target."""
        return binary(dnnl.ADD, self._memory, self._factor, self._memory)

    @cached_property
    def scale_and_add(self) -> Primitive:
        """Called with x, factor, target, another tensor [N, H, W, C] that is added."""
        return binary(dnnl.MULTIPLY, self._memory, self._factor, self._memory, add(self._memory))

    @cached_property
    def add(self) -> Primitive:
        return binary(dnnl.ADD, self._memory, self._memory, self._memory)

    @cached_property
    def add_relu(self) -> Primitive:
        return binary(dnnl.ADD, self._memory, self._memory, self._memory, ACTIVATIONS["relu"])

    @cached_property
    def relu_backward(self) -> Primitive:
        return activation_pair("relu", self._memory)[1]


image_plan = cached_by_thread(ImagePlan)


class ChannelsLast(PyLayer):
    """Images [N, C, H, W] to [N, H, W, C]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.shape = x.shape
        n, c, h, w = x.shape
        y = empty([n, h, w, c])
        _channels_last_plan(n, c, h, w)[0](usable(x, x.shape).data_ptr(), y.data_ptr())
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        refuse_second_derivatives()
        n, c, h, w = ctx.shape
        dx = empty(ctx.shape)
        _channels_last_plan(n, c, h, w)[1](usable(dy, [n, h, w, c]).data_ptr(), dx.data_ptr())
        return dx


@cached_by_thread
def _channels_last_plan(n: int, c: int, h: int, w: int) -> tuple[Primitive, Primitive]:
    first, last = plain(n, c, h, w), channels_last(n, h, w, c)
    return reorder(first, last), reorder(last, first)


class SqueezeExcite(PyLayer):
    """x * sigmoid(W2 f(W1 m + b1) + b2), where m are the means of x over the pixels, and f an activation.

    weights: [R, C, 1, 1] and [C, R, 1, 1].
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, activation: str
    ) -> Tensor:
        plan = image_plan(*x.shape)
        x = usable(x, plan.shape)
        mean = plan.mean(x.data_ptr())
        hidden = paddle.matmul(mean, w1.flatten(1), transpose_y=True).add_(b1)
        active = getattr(F, activation)(hidden)
        gate = F.sigmoid(paddle.matmul(active, w2.flatten(1), transpose_y=True).add_(b2))
        y = empty(plan.shape)
        plan.scale(x.data_ptr(), gate.data_ptr(), y.data_ptr())
        ctx.activation, ctx.requested = activation, asked((x, w1, b1, w2, b2))
        keep(ctx, x, w1, w2, mean, hidden, active, gate)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, w1, w2, mean, hidden, active, gate = kept(ctx)
        plan = image_plan(*x.shape)
        dy = usable(dy, plan.shape)
        dx = empty(plan.shape)
        dgate = empty(gate.shape)
        addresses = (tensor.data_ptr() for tensor in (x, dy, gate, dx, dgate))
        plan.scale_backward(*addresses)
        dgate = dgate * gate * (1 - gate)  # of the sigmoid's input
        dhidden = paddle.matmul(dgate, w2.flatten(1)) * SLOPES[ctx.activation](hidden)
        dmean = paddle.matmul(dhidden, w1.flatten(1)).scale_(1 / plan.pixels)
        plan.add_to_channels(dx.data_ptr(), dmean.data_ptr(), dx.data_ptr())
        dw1 = paddle.matmul(dhidden, mean, transpose_x=True).reshape(w1.shape)
        dw2 = paddle.matmul(dgate, active, transpose_x=True).reshape(w2.shape)
        return choose((dx, dw1, dhidden.sum(0), dw2, dgate.sum(0)), ctx.requested)


def _slope_of_swish(x: Tensor) -> Tensor:
    sigmoid = F.sigmoid(x)
    return sigmoid * (1 + x * (1 - sigmoid))


def _slope_of_relu6(x: Tensor) -> Tensor:
    return ((x > 0) & (x < 6)).astype(x.dtype)


SLOPES = {"swish": _slope_of_swish, "relu6": _slope_of_relu6}


class AddScaled(PyLayer):
    """x * scale + shortcut, with a scale [N, 1, 1, 1] for each image, or none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shortcut: Tensor, scale: Tensor | None) -> Tensor:
        plan = image_plan(*x.shape)
        n, *_, c = plan.shape
        x, shortcut = usable(x, plan.shape), usable(shortcut, plan.shape)
        y = empty(plan.shape)
        ctx.requested = asked((x, shortcut))
        if scale is None:
            ctx.factor = None
            plan.add(x.data_ptr(), shortcut.data_ptr(), y.data_ptr())
        else:
            factor = ctx.factor = scale.reshape([n, 1]).expand([n, c]).contiguous()
            plan.scale_and_add(x.data_ptr(), factor.data_ptr(), y.data_ptr(), shortcut.data_ptr())
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivatives()
        plan = image_plan(*dy.shape)
        dx = dy = usable(dy, plan.shape)
        if ctx.factor is not None and ctx.requested[0]:
            dx = empty(plan.shape)
            plan.scale(dy.data_ptr(), ctx.factor.data_ptr(), dx.data_ptr())
        return choose((dx, dy), ctx.requested)


class AddRelu(PyLayer):
    """relu(x + shortcut)"""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shortcut: Tensor) -> Tensor:
        plan = image_plan(*x.shape)
        x, shortcut = usable(x, plan.shape), usable(shortcut, plan.shape)
        y = empty(plan.shape)
        plan.add_relu(x.data_ptr(), shortcut.data_ptr(), y.data_ptr())
        ctx.requested = asked((x, shortcut))
        keep(ctx, y.detach())
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (y,) = kept(ctx)
        plan = image_plan(*y.shape)
        dx = empty(plan.shape)
        plan.relu_backward(y.data_ptr(), usable(dy, plan.shape).data_ptr(), dx.data_ptr())
        return choose((dx, dx), ctx.requested)


class GlobalAverage(PyLayer):
    """[N, H, W, C] to the means over the pixels, [N, C]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.shape = x.shape
        plan = image_plan(*x.shape)
        return plan.mean(usable(x, plan.shape).data_ptr())

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        refuse_second_derivatives()
        n, h, w, c = ctx.shape
        return (dy / (h * w)).reshape([n, 1, 1, c]).expand([n, h, w, c]).contiguous()


class MaxPool(PyLayer):
    """Maximum over windows: [N, H, W, C] to [N, H', W', C]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
        ctx.key = (*x.shape, kernel, stride, padding)
        out_shape, (forward, _, size) = _pooled_shape(*ctx.key), _pooling_plan(*ctx.key)
        y, workspace = empty(out_shape), paddle.empty([size], "uint8")
        forward(usable(x, x.shape).data_ptr(), y.data_ptr(), workspace.data_ptr())
        keep(ctx, workspace)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (workspace,) = kept(ctx)
        dx = empty(ctx.key[:4])
        dy = usable(dy, _pooled_shape(*ctx.key))
        _pooling_plan(*ctx.key)[1](dy.data_ptr(), dx.data_ptr(), workspace.data_ptr())
        return dx


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
