"""What both families are made of."""

import math
from collections.abc import Callable

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from ppcls.errors import ConfigError

Activation = Callable[[Tensor], Tensor]


class ConvBN(nn.Layer):
    """Convolution without bias, batch norm, activation: [N, in, H, W] to [N, out, H/stride, W/stride].

    padding: "same" puts ceil(H/stride) outputs over the image and an odd pixel of padding at the bottom
        and right, as TensorFlow does, whatever the image's size; "symmetric" pads (kernel - 1) / 2.
    bn_momentum: share of the old statistics that a training step keeps.
    fan_out: outputs fed by one weight; weights start from Normal(0, sqrt(2 / fan_out)).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        groups: int = 1,
        activation: Activation | None = None,
        *,
        padding: str,
        bn_epsilon: float,
        bn_momentum: float,
        fan_out: int | None = None,
    ) -> None:
        super().__init__()
        fan_out = fan_out or kernel_size**2 * out_channels // groups
        self.conv = nn.Conv2D(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding=_paddles_padding(padding, kernel_size),
            groups=groups,
            weight_attr=nn.initializer.Normal(0.0, math.sqrt(2.0 / fan_out)),
            bias_attr=False,
        )
        self.bn = nn.BatchNorm2D(out_channels, momentum=bn_momentum, epsilon=bn_epsilon)
        self.activation = activation
        self.shape = {"kernel_size": kernel_size, "stride": stride, "groups": groups}
        self.padding = padding
        self.is_depthwise = groups == in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.is_depthwise and _is_small_on_cpu(x):
            x = convolve_small_depthwise(x, self.conv.weight, self.shape["stride"], self.padding)
        else:
            x = self.conv(x)
        x = self.bn(x)
        return x if self.activation is None else self.activation(x)

    def set_padding(self, padding: str) -> None:
        """Pad by the other rule from now on; the weight stays."""
        weight = self.conv.weight
        channels = weight.shape[1] * self.shape["groups"], weight.shape[0]
        with paddle.LazyGuard():  # the new layer's own weight is never drawn
            self.conv = nn.Conv2D(
                *channels,
                **self.shape,
                padding=_paddles_padding(padding, self.shape["kernel_size"]),
                bias_attr=False,
            )
        self.conv.weight, self.padding = weight, padding


SMALL = 64  # output pixels up to which convolve_small_depthwise is the faster one: 2 to 15 times


def _is_small_on_cpu(x: Tensor) -> bool:
    if not paddle.in_dynamic_mode() or not x.place.is_cpu_place():
        return False
    return x.shape[2] * x.shape[3] <= SMALL


def convolve_small_depthwise(x: Tensor, weight: Tensor, stride: int, padding: str) -> Tensor:
    """A depthwise convolution as one batched matrix product: [N, C, H, W] and [C, 1, k, k] to
    [N, C, H/stride, W/stride].

    Paddle's CPU kernel spends about 3 microseconds on each image and channel of a training step, however
    small the picture, which makes most of a step at 32 pixels.
    """
    batch, channels, *size = x.shape
    kernel = weight.shape[2]
    out = [math.ceil(length / stride) for length in size]
    if padding == "same":
        totals = [max((n - 1) * stride + kernel - length, 0) for n, length in zip(out, size, strict=True)]
        before = [total // 2 for total in totals]
        after = [total - total // 2 for total in totals]
    else:
        before = after = [(kernel - 1) // 2] * 2
    patches = F.unfold(x, kernel, strides=stride, paddings=[*before, *after])
    patches = patches.reshape([batch * channels, kernel * kernel, out[0] * out[1]])
    filters = weight.reshape([1, channels, 1, kernel * kernel]).tile([batch, 1, 1, 1])
    product = paddle.bmm(filters.reshape([batch * channels, 1, kernel * kernel]), patches)
    return product.reshape([batch, channels, *out])


def _paddles_padding(padding: str, kernel_size: int) -> str | int:
    if padding not in ("same", "symmetric"):
        raise ConfigError(f'padding must be "same" or "symmetric". Received: {padding!r}')
    return "SAME" if padding == "same" else (kernel_size - 1) // 2


def set_conventions(model: nn.Layer, bn_epsilon: float, padding: str) -> None:
    """Make a network compute as the framework that its weights come from: see ConvBN's arguments."""
    for layer in model.sublayers():
        if isinstance(layer, ConvBN):
            layer.bn._epsilon = bn_epsilon
            if padding != model.padding:
                layer.set_padding(padding)
    model.bn_epsilon, model.padding = bn_epsilon, padding


def uniform_linear(in_features: int, out_features: int, weight_range: float, bias_range: float) -> nn.Linear:
    """A linear layer that starts from Uniform(-range, range)."""
    return nn.Linear(
        in_features,
        out_features,
        weight_attr=nn.initializer.Uniform(-weight_range, weight_range),
        bias_attr=nn.initializer.Uniform(-bias_range, bias_range) if bias_range else None,
    )


def global_average(x: Tensor) -> Tensor:
    """[N, C, H, W] to [N, C]. adaptive_avg_pool2d is what oneDNN fuses; a mean over axes is not."""
    return F.adaptive_avg_pool2d(x, 1).flatten(1)
