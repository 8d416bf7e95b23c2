"""Operations and parameters of a network by three conventions: exact, paddle.flops, PaddleClas's pages."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ppcls.complexity import Visit, visit

if TYPE_CHECKING:
    from paddle import nn


@dataclass(frozen=True)
class Complexity:
    """Operations of one image and parameters of the network.

    multiply_adds: those of convolutions and linear layers, exactly; trainable: parameters that training
        changes.
    paddle_flops, paddle_params: the value that `paddle.flops` returns, and the one that it prints as "Total
        Params". It counts layers and ignores functions: multiply-adds, a convolution's bias, two operations
        for each value of batch norm. The statistics of batch norm count as parameters.
    model_stat_flops, model_stat_params: the figures of PaddleClas's model pages. They were made with Paddle
        1's paddle.fluid.contrib.model_stat: see `model_stat`.
    """

    multiply_adds: int
    trainable: int
    paddle_flops: int
    paddle_params: int
    model_stat_flops: int
    model_stat_params: int


def complexity(model: "nn.Layer", height: int, width: int) -> Complexity:
    """Count a network of `ppcls.build_model` by all conventions, for an image of this size in pixels."""
    visits = visit(model, height, width)
    sizes = [(math.prod(parameter.shape), parameter.stop_gradient) for parameter in model.parameters()]
    flops, params = model_stat(visits)
    return Complexity(
        multiply_adds=sum(visited.multiply_adds for visited in visits),
        trainable=sum(size for size, is_fixed in sizes if not is_fixed),
        paddle_flops=sum(map(_paddle_flops, visits)),
        paddle_params=sum(size for size, _ in sizes),
        model_stat_flops=flops,
        model_stat_params=params,
    )


def _paddle_flops(visited: Visit) -> int:
    from paddle import nn

    layer, pixels = visited.layer, math.prod(visited.out_size)
    if isinstance(layer, nn.BatchNorm2D):
        return 2 * layer.weight.shape[0] * pixels
    has_bias = isinstance(layer, nn.Conv2D) and layer.bias is not None
    return visited.multiply_adds + (layer.bias.shape[0] * pixels if has_bias else 0)


def model_stat(visits: list[Visit]) -> tuple[int, int]:
    """Return FLOPs and parameters as paddle.fluid.contrib.model_stat counted them on PaddleClas's networks.

    Its rules, faults included:
    - A multiply-add is two operations. The weights of a grouped convolution are divided by the number of
      groups twice, in integers, although the array already holds the channels of one group only. So a
      depthwise convolution counts as zero.
    - Batch norm has two operations for each value, and two parameters for each channel.
    - ReLU and sigmoid are counted with a batch of -1, so they are subtracted. Swish and ReLU6 are ignored.
    - Biases are ignored, but for a single one of the classifier, whose multiply-adds count once.
    - Pooling counts its window for each output value; global pooling counts one operation.
    """
    from ppcls.architectures.resnext101_wsl import Bottleneck

    flops = params = 0
    for visited in visits:
        more_flops, more_params = _model_stat(visited)
        flops, params = flops + more_flops, params + more_params
    first = next((visited for visited in visits if isinstance(visited.layer, Bottleneck)), None)
    if first is not None:  # the stem's 3 x 3 max pooling, which is a function and not a layer
        flops += 9 * first.layer.reduce.conv.weight.shape[1] * math.prod(first.in_size)
    return flops, params


def _model_stat(visited: Visit) -> tuple[int, int]:
    import paddle.nn.functional as F
    from paddle import nn

    from ppcls.architectures.blocks import ConvBN
    from ppcls.architectures.efficientnet import SqueezeExcite
    from ppcls.architectures.resnext101_wsl import Bottleneck

    layer, pixels = visited.layer, math.prod(visited.out_size)
    if isinstance(layer, nn.Conv2D):
        out_channels, in_channels, *kernel = layer.weight.shape
        params = out_channels * (in_channels // layer._groups) * math.prod(kernel)
        return 2 * params * math.prod(_uncut_size(visited)), params
    if isinstance(layer, nn.BatchNorm2D):
        channels = layer.weight.shape[0]
        return 2 * channels * pixels, 2 * channels
    if isinstance(layer, nn.Linear):
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


def _uncut_size(visited: Visit) -> list[int]:
    """Return the height and width that PaddleClas's networks compute before they cut.

    Where TensorFlow's padding is odd, they pad one pixel more, and cut the first row and column off the
    result.
    """
    layer, in_size, out_size = visited
    if layer._padding != "SAME":
        return list(out_size)
    kernel = layer.weight.shape[2:]
    totals = [
        (n_out - 1) * stride + k - n_in
        for n_in, n_out, stride, k in zip(in_size, out_size, layer._stride, kernel, strict=True)
    ]
    return [n_out + (total > 0 and total % 2) for n_out, total in zip(out_size, totals, strict=True)]
