"""Convolution, batch norm and activation in training, on tensors float32 [N, H, W, C]."""

import math
from functools import cached_property
from typing import Any

import numpy as np
from paddle import Tensor
from paddle.autograd import PyLayer

from ppcls.architectures.blocks import ConvBN
from ppcls.onednn import library as dnnl
from ppcls.onednn.autograd import asked, choose, keep, kept
from ppcls.onednn.convolution import BYTES, Geometry, convolution
from ppcls.onednn.primitives import (
    WORKSPACE,
    Post,
    Primitive,
    activation_pair,
    add,
    batch_norm,
    batch_norm_backward,
    binary,
    cached_by_thread,
    channels_last,
    for_each_channel,
    matmul,
    plain,
)
from ppcls.onednn.tensors import empty, usable, vectors, view, view_at

KEPT_OUTPUT = ("relu", "relu6")  # activations whose slope follows from their output


class Moments:
    """Mean and variance of each channel.

    oneDNN's batch norm adds all pixels one after the other in float32. Here each of about sqrt(pixels) parts
    is summed by a product with ones, and the parts' sums in float64. The variance is the mean of
    (x - mean)^2: E[x^2] - mean^2 would cancel where the mean is much larger than the deviation.
    """

    def __init__(self, n: int, h: int, w: int, c: int) -> None:
        self._pixels, self._channels = n * h * w, c
        self._parts = next(
            part for part in range(math.isqrt(self._pixels), 0, -1) if self._pixels % part == 0
        )
        length = self._pixels // self._parts
        ones, x = plain(self._parts, 1, length), plain(self._parts, length, c)
        self._sum = matmul(ones, x, plain(self._parts, 1, c))
        memory = channels_last(n, h, w, c)
        self._square = binary(dnnl.SUBTRACT, memory, for_each_channel(c), memory, Post(dnnl.SQUARE))

    def __call__(self, x: int, scratch: int, rounded: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and biased variance, float64 [C]; write them into `rounded` too, float32 [2, C].

        x, scratch: addresses of tensors [N, H, W, C]. scratch is overwritten.
        """
        rounded[0] = mean = self._mean(x)
        self._square(x, rounded.ctypes.data, scratch)
        error = rounded[0] - mean  # the squares are about the rounded mean
        rounded[1] = variance = np.maximum(self._mean(scratch) - error * error, 0)
        return mean, variance

    def _mean(self, x: int) -> np.ndarray:
        sums = WORKSPACE.buffer("sums", self._parts * self._channels * BYTES)
        self._sum(WORKSPACE.ones(self._pixels), x, sums)
        return view_at(sums, self._parts, self._channels).sum(axis=0, dtype=np.float64) / self._pixels


class ConvBNPlan:
    """The primitives of a ConvBN in training, for one shape."""

    def __init__(self, geometry: Geometry, activation: str | None, epsilon: float) -> None:
        self.geometry, self.activation, self.epsilon = geometry, activation, epsilon
        self.out_shape = geometry.out_shape
        self._memory = channels_last(*self.out_shape)
        self.convolution = convolution(geometry)
        self.normalise = batch_norm(self._memory, geometry.out_channels, epsilon)

    @cached_property
    def moments(self) -> Moments:
        return Moments(*self.out_shape)

    @cached_property
    def moving_norm_backward(self) -> Primitive:
        return batch_norm_backward(self._memory, self.geometry.out_channels, self.epsilon, moving=True)

    @cached_property
    def fixed_norm_backward(self) -> Primitive:
        return batch_norm_backward(self._memory, self.geometry.out_channels, self.epsilon, moving=False)

    @cached_property
    def activations(self) -> tuple[Primitive, Primitive]:
        return activation_pair(self.activation or "", self._memory)

    @cached_property
    def affine(self) -> Primitive:
        """x * a + b for each channel. Called with x, a, target, b."""
        vector = for_each_channel(self.geometry.out_channels)
        return binary(dnnl.MULTIPLY, self._memory, vector, self._memory, add(vector))


conv_bn_plan = cached_by_thread(ConvBNPlan)


def geometry_of(layer: ConvBN, x: Tensor) -> Geometry:
    """Return the shapes of a layer's convolution of x."""
    n, h, w, c = x.shape
    shape = layer.shape
    out = layer.conv.weight.shape[0]
    return Geometry(n, h, w, c, out, shape["kernel_size"], shape["stride"], shape["groups"], layer.padding)


def activation_of(layer: ConvBN) -> str | None:
    """Return the name of a layer's activation."""
    return None if layer.activation is None else layer.activation.__name__


class ConvBNAct(PyLayer):
    """A ConvBN: convolution, batch norm by the batch's statistics or, in evaluation mode, by the running
    ones, and activation. Kept are its input and the convolution's output; the activation's input is
    computed again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, layer: ConvBN) -> Tensor:
        geometry, norm = geometry_of(layer, x), layer.bn
        ctx.requested = asked((x, weight, scale, shift))
        ctx.key, ctx.moving = (geometry, activation_of(layer), norm._epsilon), norm.training
        plan, channels = conv_bn_plan(*ctx.key), geometry.out_channels
        x, weight = usable(x, geometry.in_shape), usable(weight, geometry.weight_shape)
        scale, shift, mean, variance = vectors(channels, scale, shift, norm._mean, norm._variance)

        convolved, y = empty(plan.out_shape), empty(plan.out_shape)
        plan.convolution.forward(x.data_ptr(), weight.data_ptr(), convolved.data_ptr())
        moments = empty([2, channels])
        values, running = view(moments), (view(mean), view(variance))
        if norm.training:
            with np.errstate(all="ignore"):  # values that are not finite show in the loss
                exact = plan.moments(convolved.data_ptr(), y.data_ptr(), values)
                for own, new in zip(running, exact, strict=True):
                    own[:] = norm._momentum * own.astype(np.float64) + (1 - norm._momentum) * new
        else:
            values[0], values[1] = running
        addresses = _addresses_of(moments, scale, shift)
        plan.normalise(convolved.data_ptr(), y.data_ptr(), *addresses)
        if plan.activation:
            plan.activations[0](y.data_ptr(), y.data_ptr())
        outputs = [y.detach()] if plan.activation in KEPT_OUTPUT else []  # y itself would keep its own graph
        keep(ctx, x, weight, scale, shift, convolved, moments, *outputs)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale, shift, convolved, moments, *outputs = kept(ctx)
        plan = conv_bn_plan(*ctx.key)
        dy = usable(dy, plan.out_shape)
        gradient = empty(plan.out_shape)
        source, target = dy.data_ptr(), gradient.data_ptr()
        if plan.activation:
            before = outputs[0].data_ptr() if outputs else target
            if not outputs:
                _normalise_again(plan, convolved, moments, scale, shift, target)
            plan.activations[1](before, source, target)
            source = target
        dscale, dshift = empty(scale.shape), empty(scale.shape)
        norm_backward = plan.moving_norm_backward if ctx.moving else plan.fixed_norm_backward
        norm_backward(
            *(convolved.data_ptr(), source, target),
            *_addresses_of(moments, scale, dscale, dshift),
        )
        needs_dx, needs_dweight, *_ = ctx.requested
        dx = dweight = None
        if needs_dweight:
            dweight = empty(weight.shape)
            plan.convolution.backward_weights(x.data_ptr(), target, dweight.data_ptr())
        if needs_dx:
            dx = empty(x.shape)
            plan.convolution.backward_data(target, weight.data_ptr(), dx.data_ptr())
        return choose((dx, dweight, dscale, dshift), ctx.requested)


def _addresses_of(moments: Tensor, *others: Tensor) -> list[int]:
    """Return the addresses of mean and variance, float32 [2, C], and of the others."""
    first = moments.data_ptr()
    return [first, first + moments.shape[1] * BYTES, *(other.data_ptr() for other in others)]


def _normalise_again(
    plan: ConvBNPlan, convolved: Tensor, moments: Tensor, scale: Tensor, shift: Tensor, target: int
) -> None:
    """Write the activation's input into the memory at `target`."""
    factors = empty(moments.shape)
    mean, variance = view(moments)
    write_factors(view(factors), view(scale), view(shift), mean, variance, plan.epsilon)
    first, last = _addresses_of(factors)
    plan.affine(convolved.data_ptr(), first, target, last)


def write_factors(
    factors: np.ndarray,
    scale: np.ndarray,
    shift: np.ndarray,
    mean: np.ndarray,
    variance: np.ndarray,
    epsilon: float,
) -> None:
    """Write a and b, float32 [2, C], with which a * x + b is the batch norm of x."""
    with np.errstate(all="ignore"):
        np.divide(scale, np.sqrt(variance + np.float32(epsilon)), out=factors[0])
        np.subtract(shift, mean * factors[0], out=factors[1])
