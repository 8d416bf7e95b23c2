"""Recomputation: a block keeps only its input and runs again in the backward pass: less memory, more time."""

from collections.abc import Callable

import paddle
from paddle import Tensor, nn

from ppcls.training.parameters import batch_norms


def recompute_blocks(model: nn.Layer) -> None:
    """Recompute each of `model.blocks` in the backward pass. Gradients, statistics and drop connect are the
    same, bit for bit, and so are the parameters and their names."""
    for block in model.blocks:
        block.forward = _recomputed(block.forward, batch_norms(block))


def _recomputed(forward: Callable[[Tensor], Tensor], norms: list[nn.Layer]) -> Callable[[Tensor], Tensor]:
    from paddle.distributed.fleet.utils import recompute

    def run(x: Tensor) -> Tensor:
        if not paddle.is_grad_enabled():
            return forward(x)
        momenta = [norm._momentum for norm in norms]  # the second pass must not move the statistics again
        try:
            for norm in norms:
                norm._momentum = 1.0
            return forward(x)
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm._momentum = momentum

    def recomputed(x: Tensor) -> Tensor:
        # from an input without gradient, as behind a frozen stem, recompute would give the block none
        return recompute(run, x) if paddle.is_grad_enabled() and not x.stop_gradient else forward(x)

    return recomputed
