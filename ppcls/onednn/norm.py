"""Batch norm and activation in training, on tensors float32 [N, H, W, C]."""

import math
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from paddle import Tensor

from ppcls.architectures.blocks import ConvBN
from ppcls.onednn import library as dnnl
from ppcls.onednn import primitives
from ppcls.onednn.autograd import Gradients, Kept, Step
from ppcls.onednn.primitives import (
    ACTIVATIONS,
    BYTES,
    KEEP_TARGET,
    WORKSPACE,
    Post,
    Primitive,
    activation_backward,
    add,
    batch_norm_backward,
    binary,
    cached_by_thread,
    channels_last,
    for_each_channel,
)
from ppcls.onednn.tensors import address_of, empty, usable, vectors, view

CACHE = 2**19  # values of a part of a tensor that stays in the processor's cache
FEW = 64  # pixels that may be added one after the other


class Statistics:
    """Mean and variance of each channel.

    oneDNN's batch norm adds all pixels one after the other in float32. Here each of about sqrt(pixels) groups
    of pixels has a mean and a variance of its own, about that mean, and they are combined in float64. To
    oneDNN a group is further channels: pixels m, m + groups, m + 2 groups ... of a part of the tensor.
    """

    def __init__(self, n: int, h: int, w: int, c: int) -> None:
        pixels = n * h * w
        self._parts = _divisor(pixels, math.ceil(pixels * c / CACHE))
        part = pixels // self._parts
        groups = _divisor(part, math.ceil(math.sqrt(pixels) / self._parts)) if part > FEW else 1
        self._memory, self._size = channels_last(1, part // groups, 1, groups * c), groups * c
        self._found = np.empty((self._parts, 2, groups, c), np.float32)
        self._count, self._part_bytes = self._parts * groups, part * c * BYTES

    @cached_property
    def _run(self) -> Primitive:
        return primitives.statistics(self._memory, self._size)

    def __call__(self, x: int) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and biased variance, float64 [C], of the tensor at x."""
        unused = WORKSPACE.buffer("unused", self._part_bytes)
        first, vector = address_of(self._found), self._size * BYTES
        for part in range(self._parts):
            target = first + 2 * part * vector
            self._run(x + part * self._part_bytes, unused, target, target + vector)
        mean, variance = np.add.reduce(self._found, (0, 2), np.float64) / self._count
        if self._count > 1:
            deviations = self._found[:, 0] - mean
            variance += np.add.reduce(np.square(deviations, deviations), (0, 1)) / self._count
        return mean, variance


def _divisor(number: int, least: int) -> int:
    """Return the smallest divisor that is at least `least`; 1 if there is none below 8 x least."""
    return next((own for own in range(least, min(number, 8 * least) + 1) if number % own == 0), 1)


class NormPlan:
    """The primitives of a batch norm and the activation behind it, for one shape."""

    def __init__(
        self, n: int, h: int, w: int, c: int, activation: str | None, has_shortcut: bool, epsilon: float
    ) -> None:
        self.shape, self.activation, self.epsilon = [n, h, w, c], activation, epsilon
        self._memory, self._vector = channels_last(n, h, w, c), for_each_channel(c)
        self._has_shortcut = has_shortcut

    @cached_property
    def statistics(self) -> Statistics:
        return Statistics(*self.shape)

    @cached_property
    def forward(self) -> Primitive:
        """activation(x * a + b + shortcut). Called with x, a, target, b, shortcut."""
        posts: list[Post] = [add(self._vector)]
        if self._has_shortcut:
            posts.append(add(self._memory))
        if self.activation:
            posts.append(ACTIVATIONS[self.activation])
        return binary(dnnl.MULTIPLY, self._memory, self._vector, self._memory, *posts)

    @cached_property
    def affine(self) -> Primitive:
        """x * a + b. Called with x, a, target, b."""
        return binary(dnnl.MULTIPLY, self._memory, self._vector, self._memory, add(self._vector))

    @cached_property
    def activation_backward(self) -> Primitive:
        return activation_backward(self.activation or "", self._memory)

    @cached_property
    def moving_backward(self) -> Primitive:
        return batch_norm_backward(self._memory, self.shape[3], self.epsilon, moving=True)

    @cached_property
    def fixed_backward(self) -> Primitive:
        return batch_norm_backward(self._memory, self.shape[3], self.epsilon, moving=False)


norm_plan = cached_by_thread(NormPlan)


class Norm(Step):
    """The batch norm of a ConvBN, by the batch's statistics or, in evaluation mode, by the running ones; the
    sum with a shortcut; and the activation. Kept is the norm's source; the activation's is computed again.

    after: an activation of the sum, of a layer that has none.
    """

    def __init__(self, layer: ConvBN, after: str | None = None) -> None:
        self.norm, self.activation = layer.bn, after or activation_of(layer)
        super().__init__(self.norm.weight, self.norm.bias)

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        norm = self.norm
        self.key = *x.shape, self.activation, shortcut is not None, norm._epsilon
        plan, self.is_moving = norm_plan(*self.key), norm.training
        channels = plan.shape[3]
        own = vectors(channels, *self.parameters, norm._mean, norm._variance)
        scale, shift, *running = map(view, own)
        self.values = values = np.empty((4, channels), np.float32)  # mean, variance, factors a and b
        first = address_of(values)
        self.addresses = [first + row * channels * BYTES for row in range(4)]
        exact = plan.statistics(x.data_ptr()) if norm.training else running
        values[:2] = exact
        if norm.training:
            for moving, new in zip(running, exact, strict=True):
                moving[:] = norm._momentum * moving.astype(np.float64) + (1 - norm._momentum) * new
        write_factors(values[2:], scale, shift, exact, norm._epsilon)
        y = empty(plan.shape)
        addresses = x.data_ptr(), self.addresses[2], y.data_ptr(), self.addresses[3]
        if shortcut is None:
            plan.forward(*addresses)
        else:
            plan.forward(*addresses, usable(shortcut, plan.shape).data_ptr())
        self.outputs = [y.detach()] if self.activation in KEEP_TARGET else []  # y would keep its own graph
        self.kept = Kept(x, own[0], *self.outputs)
        return y

    def backward(self, dy: Tensor, needs_dx: bool, added: Tensor | None) -> Gradients:
        x, scale, *outputs = self.kept.get()
        plan = norm_plan(*self.key)
        mean, variance, *factors = self.addresses
        dy = usable(dy, plan.shape)
        if self.activation:
            source = empty(plan.shape)
            kept = outputs[0] if outputs else source
            if not outputs:
                plan.affine(x.data_ptr(), factors[0], source.data_ptr(), factors[1])
            plan.activation_backward(kept.data_ptr(), dy.data_ptr(), source.data_ptr())
            dy = source
        has_shortcut = self.key[5]
        dx = dy if self.activation and not has_shortcut else empty(plan.shape)
        dscale, dshift = empty(scale.shape), empty(scale.shape)
        run = plan.moving_backward if self.is_moving else plan.fixed_backward
        tensors = x.data_ptr(), dy.data_ptr(), dx.data_ptr()
        run(*tensors, mean, variance, scale.data_ptr(), dscale.data_ptr(), dshift.data_ptr())
        return Gradients(dx, (dscale, dshift), dy if has_shortcut else None)


def activation_of(layer: ConvBN) -> str | None:
    """Return the name of a layer's activation."""
    return None if layer.activation is None else layer.activation.__name__


def write_factors(
    factors: np.ndarray,
    scale: np.ndarray,
    shift: np.ndarray,
    statistics: Sequence[np.ndarray],
    epsilon: float,
) -> None:
    """Write a and b, float32 [2, C], with which a * x + b is the batch norm of x.

    They are computed in float64: where the mean is large, b is the difference of large numbers.
    """
    mean, variance = statistics
    factors[0] = scale / np.sqrt(variance + np.float64(epsilon))
    factors[1] = shift - mean * factors[0]
