"""What a layer's forward pass keeps for its backward pass."""

from collections.abc import Sequence
from typing import Any

import paddle
from paddle import Tensor


def keep(ctx: Any, *tensors: Tensor) -> None:
    """Save tensors for the backward pass, with their versions."""
    ctx.save_for_backward(*tensors)
    ctx.versions = [tensor.inplace_version for tensor in tensors]


def kept(ctx: Any) -> tuple[Tensor, ...]:
    """Return the saved tensors. Raises RuntimeError, as Paddle does, if one was changed in place since."""
    refuse_second_derivatives()
    tensors = ctx.saved_tensor()
    for tensor, version in zip(tensors, ctx.versions, strict=True):
        if tensor.inplace_version != version:
            raise RuntimeError(
                f"A tensor of {list(tensor.shape)}, which the gradient needs, was changed by an inplace "
                f"operation: its version is {tensor.inplace_version}, expected: {version}."
            )
    return tensors


def refuse_second_derivatives() -> None:
    """Raise NotImplementedError where a backward pass shall be differentiated itself."""
    if paddle.is_grad_enabled():
        raise NotImplementedError(
            "The oneDNN kernels have no second derivatives (create_graph=True). Use kernels=paddle."
        )


def asked(tensors: Sequence[Tensor]) -> list[bool]:
    """Return which of the tensors want a gradient."""
    return [not tensor.stop_gradient for tensor in tensors]


def choose(gradients: Sequence[Tensor | None], requested: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """Return the gradients, with None for those that nobody asked for."""
    return tuple(own if wanted else None for own, wanted in zip(gradients, requested, strict=True))
