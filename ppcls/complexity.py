"""What a network costs: operations of one image and parameters, by three conventions.

The network runs once with a single channel in place of each layer's many: Paddle's own rules give the
sizes of all maps, the layers' weights are never read, and B7 at 600 pixels takes a fraction of a second. A
network built under `paddle.LazyGuard()` can be counted, whatever its size.
"""

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from paddle import Tensor, nn


@dataclass(frozen=True)
class Complexity:
    """Of one image, and of the whole network.

    multiply_adds: of convolutions and linear layers, exactly; trainable: parameters that training changes.
    paddle_flops, paddle_params: what `paddle.flops` returns and calls "Total Params". It counts layers, not
        functions: multiply-adds, a convolution's bias, two operations a value of batch norm, whose
        statistics count as parameters.
    model_stat_flops, model_stat_params: what PaddleClas's model pages state. The tool was Paddle 1's
        paddle.fluid.contrib.model_stat: see `model_stat`.
    """

    multiply_adds: int
    trainable: int
    paddle_flops: int
    paddle_params: int
    model_stat_flops: int
    model_stat_params: int


class Visit(NamedTuple):
    """One call of a layer while an image runs through: height and width of what came and what went, (1, 1)
    for a vector."""

    layer: Any
    came: tuple[int, int]
    went: tuple[int, int]


def complexity(model: "nn.Layer", height: int, width: int) -> Complexity:
    """All counts of a network of `ppcls.build_model` for an image of this size, in pixels."""
    visits = visit(model, height, width)
    sizes = [(math.prod(parameter.shape), parameter.stop_gradient) for parameter in model.parameters()]
    flops, params = model_stat(visits)
    return Complexity(
        multiply_adds=sum(map(_multiply_adds, visits)),
        trainable=sum(size for size, is_fixed in sizes if not is_fixed),
        paddle_flops=sum(map(_paddle_flops, visits)),
        paddle_params=sum(size for size, _ in sizes),
        model_stat_flops=flops,
        model_stat_params=params,
    )


def multiply_adds(model: "nn.Layer", height: int, width: int) -> int:
    """Of all convolutions and linear layers for one image, exactly: an output value of a convolution takes
    kernel height x kernel width x input channels / groups."""
    return sum(map(_multiply_adds, visit(model, height, width)))


def visit(model: "nn.Layer", height: int, width: int) -> list[Visit]:
    """Each call of a layer for one image, in the order in which they end."""
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
    """The layer's forward for maps of one channel, which gives the true height and width."""
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


def _kind(layer: Any) -> str:
    """conv, norm, linear, or nothing of these."""
    from paddle import nn

    for kind, name in ((nn.Conv2D, "conv"), (nn.BatchNorm2D, "norm"), (nn.Linear, "linear")):
        if isinstance(layer, kind):
            return name
    return ""


def _multiply_adds(visited: Visit) -> int:
    layer, _, (height, width) = visited
    kind = _kind(layer)
    if kind in ("conv", "linear"):
        return math.prod(layer.weight.shape) * height * width
    return 0


def _paddle_flops(visited: Visit) -> int:
    layer, _, (height, width) = visited
    if _kind(layer) == "norm":
        return 2 * layer.weight.shape[0] * height * width
    is_biased = _kind(layer) == "conv" and layer.bias is not None
    return _multiply_adds(visited) + (layer.bias.shape[0] * height * width if is_biased else 0)


def model_stat(visits: list[Visit]) -> tuple[int, int]:
    """FLOPs and parameters as paddle.fluid.contrib.model_stat counted them on PaddleClas's networks.

    Two operations a multiply-add; but the weights of a grouped convolution, whose array holds the channels
    of one group already, are divided by the groups a second time, in integers: nothing is left of a
    depthwise one. Two operations and two parameters of batch norm. ReLU and sigmoid are counted with a batch
    of -1, so they are subtracted; swish and ReLU6 are not counted. Biases are left out, but for a single one
    of the classifier, whose multiply-adds count once. Pooling counts its window for each output, a global
    one a single value.
    """
    from ppcls.architectures.resnext101_wsl import Bottleneck

    flops = params = 0
    for visited in visits:
        more_flops, more_params = _model_stat(visited)
        flops, params = flops + more_flops, params + more_params
    first = next((visited for visited in visits if isinstance(visited.layer, Bottleneck)), None)
    if first is not None:  # the stem's maximum of 3 x 3, which is no layer
        flops += 9 * first.layer.reduce.conv.weight.shape[1] * math.prod(first.came)
    return flops, params


def _model_stat(visited: Visit) -> tuple[int, int]:
    import paddle.nn.functional as F

    from ppcls.architectures.blocks import ConvBN
    from ppcls.architectures.efficientnet import SqueezeExcite
    from ppcls.architectures.resnext101_wsl import Bottleneck

    layer, _, went = visited
    pixels = math.prod(went)
    kind = _kind(layer)
    if kind == "conv":
        out_channels, in_channels, *kernel = layer.weight.shape
        params = out_channels * (in_channels // layer._groups) * math.prod(kernel)
        return 2 * params * math.prod(_uncut(visited)), params
    if kind == "norm":
        channels = layer.weight.shape[0]
        return 2 * channels * pixels, 2 * channels
    if kind == "linear":
        in_features, out_features = layer.weight.shape
        global_average = in_features
        return in_features * out_features + global_average, in_features * out_features + 1
    if isinstance(layer, ConvBN) and layer.activation is F.relu:
        return -layer.conv.weight.shape[0] * pixels, 0
    if isinstance(layer, Bottleneck):
        return -layer.expand.conv.weight.shape[0] * pixels, 0
    if isinstance(layer, SqueezeExcite):
        channels = layer.expand.weight.shape[0]
        global_average, sigmoid = channels, -channels
        return global_average + sigmoid, 0
    return 0, 0


def _uncut(visited: Visit) -> list[int]:
    """Height and width as PaddleClas's networks convolve them: where TensorFlow's padding is odd they pad too
    much, and cut the first row and column off the result."""
    layer, came, went = visited
    if layer._padding != "SAME":
        return list(went)
    totals = [
        (out - 1) * stride + kernel - length
        for length, out, stride, kernel in zip(came, went, layer._stride, layer.weight.shape[2:], strict=True)
    ]
    return [out + (total > 0 and total % 2) for out, total in zip(went, totals, strict=True)]
