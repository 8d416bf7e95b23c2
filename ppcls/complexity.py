"""Multiply-adds of one image.

The network runs once with a single channel in place of each layer's many: Paddle's own rules give the
height and width of every feature map, and the weights are never read. So B7 at 600 pixels takes a fraction
of a second, and a network built under `paddle.LazyGuard()` can be counted.
"""

import math
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from paddle import Tensor, nn


class Visit(NamedTuple):
    """One call of a layer. in_size and out_size: height and width of its input and output, (1, 1) for a
    vector."""

    layer: Any
    in_size: tuple[int, int]
    out_size: tuple[int, int]

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of a convolution or a linear layer, 0 for any other layer."""
        from paddle import nn

        if isinstance(self.layer, (nn.Conv2D, nn.Linear)):
            return math.prod(self.layer.weight.shape) * math.prod(self.out_size)
        return 0


def multiply_adds(model: "nn.Layer", height: int, width: int) -> int:
    """Count the multiply-adds of all convolutions and linear layers for one image of this size in pixels.

    The count is exact: kernel height x kernel width x input channels / groups for each output value of a
    convolution. model: a network of `ppcls.build_model`.
    """
    return sum(visited.multiply_adds for visited in visit(model, height, width))


def visit(model: "nn.Layer", height: int, width: int) -> list[Visit]:
    """Return each call of a layer for one image, in the order in which the calls end.

    The network is left as it was, also after an error.
    """
    import paddle
    from paddle import nn

    visits: list[Visit] = []

    def note(layer: Any, inputs: "tuple[Tensor, ...]", output: "Tensor") -> None:
        visits.append(Visit(layer, _map_size(inputs[0]), _map_size(output)))

    was_training = model.training
    model.eval()
    try:
        with ExitStack() as undo, paddle.no_grad():
            for layer in model.sublayers():
                if isinstance(layer, (nn.Conv2D, nn.BatchNorm2D, nn.Linear)):
                    layer.forward = _with_one_channel(layer)
                    undo.callback(delattr, layer, "forward")
                undo.callback(layer.register_forward_post_hook(note).remove)
            model(paddle.zeros([1, 1, height, width]))
    finally:
        if was_training:
            model.train()
    return visits


def _with_one_channel(layer: Any) -> "Callable[[Tensor], Tensor]":
    """Return a forward function for maps of one channel, which gives the layer's true height and width."""
    import paddle
    import paddle.nn.functional as F
    from paddle import nn

    if isinstance(layer, nn.BatchNorm2D):
        return lambda x: x
    if isinstance(layer, nn.Linear):
        return lambda x: paddle.zeros([x.shape[0], 1])
    kernel = paddle.zeros([1, 1, *layer.weight.shape[2:]])
    return lambda x: F.conv2d(x, kernel, None, layer._stride, layer._padding, layer._dilation)


def _map_size(x: "Tensor") -> tuple[int, int]:
    return (x.shape[2], x.shape[3]) if x.ndim == 4 else (1, 1)
