"""Layers that both families are built from."""

import math
from collections.abc import Callable

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from ppcls.errors import ConfigError

Activation = Callable[[Tensor], Tensor]


class ConvBN(nn.Layer):
    """Convolution without bias, batch norm, activation: [N, in, H, W] to [N, out, H/stride, W/stride].

    padding: "same" gives ceil(H/stride) outputs for an image of any size, as TensorFlow does, with an odd
        pixel of padding at the bottom and right; "symmetric" pads (kernel - 1) / 2 on each side.
    bn_momentum: share of the old statistics that a training step keeps.
    fan_out: number of outputs that one weight feeds. Weights start from Normal(0, sqrt(2 / fan_out)).
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
            padding=_padding_argument(padding, kernel_size),
            groups=groups,
            weight_attr=nn.initializer.Normal(0.0, math.sqrt(2.0 / fan_out)),
            bias_attr=False,
        )
        self.bn = nn.BatchNorm2D(out_channels, momentum=bn_momentum, epsilon=bn_epsilon)
        self.activation = activation
        self.shape = {"kernel_size": kernel_size, "stride": stride, "groups": groups}
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        return x if self.activation is None else self.activation(x)

    def set_padding(self, padding: str) -> None:
        """Change the padding rule. The weight stays the same tensor."""
        weight = self.conv.weight
        channels = weight.shape[1] * self.shape["groups"], weight.shape[0]
        with paddle.LazyGuard():  # the new layer's own weight is not initialised
            self.conv = nn.Conv2D(
                *channels,
                **self.shape,
                padding=_padding_argument(padding, self.shape["kernel_size"]),
                bias_attr=False,
            )
        self.conv.weight, self.padding = weight, padding


def _padding_argument(padding: str, kernel_size: int) -> str | int:
    """Return the padding argument of paddle.nn.Conv2D."""
    if padding not in ("same", "symmetric"):
        raise ConfigError(f'padding must be "same" or "symmetric". Received: {padding!r}')
    return "SAME" if padding == "same" else (kernel_size - 1) // 2


def set_conventions(model: nn.Layer, bn_epsilon: float, padding: str) -> None:
    """Set batch norm's epsilon and the padding rule to those of the framework that the weights come from.

    padding: see ConvBN.
    """
    for layer in model.sublayers():
        if isinstance(layer, ConvBN):
            layer.bn._epsilon = bn_epsilon
            if padding != model.padding:
                layer.set_padding(padding)
    model.bn_epsilon, model.padding = bn_epsilon, padding


def uniform_linear(in_features: int, out_features: int, weight_range: float, bias_range: float) -> nn.Linear:
    """Return a linear layer whose values start from Uniform(-range, range)."""
    return nn.Linear(
        in_features,
        out_features,
        weight_attr=nn.initializer.Uniform(-weight_range, weight_range),
        bias_attr=nn.initializer.Uniform(-bias_range, bias_range) if bias_range else None,
    )


def global_average(x: Tensor) -> Tensor:
    """Average [N, C, H, W] to [N, C]. oneDNN fuses adaptive_avg_pool2d, but not a mean over axes."""
    return F.adaptive_avg_pool2d(x, 1).flatten(1)
