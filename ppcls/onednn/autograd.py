"""Blocks of a network in Paddle's autograd: each is one operation, which has a backward pass of its own."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import paddle
from paddle import Tensor
from paddle.autograd import PyLayer


class Kept:
    """Tensors that a backward pass needs, with their versions."""

    def __init__(self, *tensors: Tensor) -> None:
        self._tensors = tensors
        self._versions = [tensor.inplace_version for tensor in tensors]

    def get(self) -> tuple[Tensor, ...]:
        """Return them. Raises RuntimeError, as Paddle does, if one was changed in place since."""
        for tensor, version in zip(self._tensors, self._versions, strict=True):
            if tensor.inplace_version != version:
                raise RuntimeError(
                    f"A tensor of {list(tensor.shape)}, which the gradient needs, was changed by an inplace "
                    f"operation: its version is {tensor.inplace_version}, expected: {version}."
                )
        return self._tensors


class Gradients(NamedTuple):
    """The gradients of a step's source, parameters and shortcut; None for those that nobody asked for."""

    source: Tensor | None
    parameters: tuple[Tensor | None, ...] = ()
    shortcut: Tensor | None = None


class Step:
    """A part of a block. An object serves one forward pass, and at most one backward pass.

    requested: which of the parameters want a gradient.
    """

    def __init__(self, *parameters: Tensor) -> None:
        self.parameters = parameters
        self.requested = [not parameter.stop_gradient for parameter in parameters]

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """Return a new tensor. shortcut: is added to it, by a step that can be the last one of a block."""
        raise NotImplementedError

    def backward(self, dy: Tensor, needs_dx: bool, added: Tensor | None) -> Gradients:
        """Return the gradients. added: a tensor that is added to that of x, by a first step."""
        raise NotImplementedError


class Block:
    """Steps, one after the other.

    shortcut: steps from the block's source to what the last of the others adds; none for the source itself.
    """

    def __init__(self, steps: list[Step], shortcut: list[Step] | None = None) -> None:
        self._steps, self._shortcut = steps, shortcut
        self.parameters = [own for step in (*steps, *(shortcut or ())) for own in step.parameters]

    def __call__(self, x: Tensor) -> Tensor:
        return _Operation.apply(x, self, *self.parameters)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for step in self._steps[:-1]:
            y = step.forward(y)
        last = self._steps[-1]
        if self._shortcut is None:
            return last.forward(y)
        for step in self._shortcut:
            x = step.forward(x)
        return last.forward(y, x)

    def backward(self, dy: Tensor, needs_dx: bool) -> list[Tensor | None]:
        """Return the gradients of the source and of the parameters. Drop the steps, and what they keep."""
        is_plain = self._shortcut == []
        dx, dshortcut, gradients = _run_back(self._steps, dy, needs_dx, add_shortcut=is_plain)
        if self._shortcut:
            dx, _, others = _run_back(self._shortcut, dshortcut, needs_dx, dx)
            gradients += others
        return [dx, *gradients]


def _run_back(
    steps: list[Step],
    dy: Tensor | None,
    needs_dx: bool,
    added: Tensor | None = None,
    *,
    add_shortcut: bool = False,
) -> tuple[Tensor | None, Tensor | None, list[Tensor | None]]:
    """Return the gradients of the steps' source, of the last one's shortcut, and of the parameters.

    added: is added to that of the source. add_shortcut: add that of the shortcut.
    """
    needs = [needs_dx]
    for step in steps:
        needs.append(needs[-1] or any(step.requested))
    gradients: list[Tensor | None] = []
    shortcut = None
    while steps:
        step = steps.pop()
        own = Gradients(None, (None,) * len(step.parameters))
        if dy is not None:
            own = step.backward(dy, needs[len(steps)], None if steps else added)
        if own.shortcut is not None:
            shortcut = own.shortcut
            added = shortcut if add_shortcut else added
        pairs = zip(own.parameters, step.requested, strict=True)
        gradients[:0] = [gradient if wanted else None for gradient, wanted in pairs]
        dy = own.source
    return dy, shortcut, gradients


class _Operation(PyLayer):
    """A block, as one operation of Paddle's autograd."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, block: Block, *parameters: Tensor) -> Tensor:
        ctx.block, ctx.needs_dx = block, not x.stop_gradient
        with np.errstate(all="ignore"):  # values that are not finite show in the loss
            return block.forward(x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        if paddle.is_grad_enabled():
            raise NotImplementedError(
                "The oneDNN kernels have no second derivatives (create_graph=True). Use kernels=paddle."
            )
        gradients: Sequence[Tensor | None] = ctx.block.backward(dy, ctx.needs_dx)
        return tuple(gradients) if len(gradients) > 1 else gradients[0]
