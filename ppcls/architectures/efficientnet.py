"""EfficientNet B0-B7, B0_small and Lite0-Lite4. Tan and Le, https://arxiv.org/abs/1905.11946.

Weights start as in the authors' code (tensorflow/tpu, models/official/efficientnet): convolutions from
Normal(0, sqrt(2 / fan_out)), a depthwise one with the fan-out of a single channel, the classifier from
Uniform(-1, 1) / sqrt(num_classes), biases from zero. There is one difference: below 1,000 classes the
classifier keeps the range of 1,000. The original range would make the first logits of a small classifier so
large (ten classes: standard deviation 4) that fine-tuning would first have to unlearn them.
"""

import math
from functools import partial

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from ppcls.architectures.blocks import Activation, ConvBN, global_average, uniform_linear
from ppcls.architectures.variants import EfficientNetVariant, MBConvStage
from ppcls.errors import ConfigError

# swish, not silu: oneDNN fuses it, and the gradient of Paddle's silu is not a number below -88
ACTIVATIONS: dict[str, Activation] = {"swish": F.swish, "relu6": F.relu6}


class SqueezeExcite(nn.Layer):
    """Scale each channel of [N, C, H, W] by a gate in (0, 1), computed from the means of all channels."""

    def __init__(self, channels: int, reduced_channels: int, activation: Activation) -> None:
        super().__init__()
        self.reduce = self._conv(channels, reduced_channels)
        self.expand = self._conv(reduced_channels, channels)
        self.activation = activation

    @staticmethod
    def _conv(in_channels: int, out_channels: int) -> nn.Conv2D:
        init = nn.initializer.Normal(0.0, math.sqrt(2.0 / out_channels))
        return nn.Conv2D(in_channels, out_channels, 1, weight_attr=init)

    def forward(self, x: Tensor) -> Tensor:
        gate = F.adaptive_avg_pool2d(x, 1)
        gate = self.expand(self.activation(self.reduce(gate)))
        return x * F.sigmoid(gate)


def drop_connect(x: Tensor, rate: float) -> Tensor:
    """Set whole samples of a block's output to zero with probability `rate`, and scale up the others."""
    keep = 1.0 - rate
    mask = paddle.floor(paddle.rand([x.shape[0], 1, 1, 1], dtype=x.dtype) + keep)
    return x / keep * mask


class MBConv(nn.Layer):
    """Expand, depthwise, squeeze-excite, project, and an identity shortcut if the shapes are equal."""

    def __init__(
        self,
        in_channels: int,
        stage: MBConvStage,
        stride: int,
        conv_bn: "partial[ConvBN]",
        activation: Activation,
        squeeze_excite: bool,
        drop_connect_rate: float,
    ) -> None:
        super().__init__()
        channels = in_channels * stage.expand_ratio
        self.expand = (
            conv_bn(in_channels, channels, 1, activation=activation) if stage.expand_ratio != 1 else None
        )
        self.depthwise = conv_bn(
            channels, channels, stage.kernel_size, stride, groups=channels, activation=activation
        )
        self.se = SqueezeExcite(channels, max(1, in_channels // 4), activation) if squeeze_excite else None
        self.project = conv_bn(channels, stage.channels, 1)
        self.has_shortcut = stride == 1 and in_channels == stage.channels
        self.drop_connect_rate = drop_connect_rate

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        if self.expand is not None:
            x = self.expand(x)
        x = self.depthwise(x)
        if self.se is not None:
            x = self.se(x)
        x = self.project(x)
        if not self.has_shortcut:
            return x
        if self.training and self.drop_connect_rate:
            x = drop_connect(x, self.drop_connect_rate)
        return x + shortcut


class EfficientNet(nn.Layer):
    """Network from images, float32 [N, 3, H, W], to logits [N, num_classes].

    Children, named as in the paper: stem, blocks.N.{expand, depthwise, se, project}, head, fc.
    """

    def __init__(self, variant: EfficientNetVariant, num_classes: int) -> None:
        super().__init__()
        for rate in ("dropout", "drop_connect"):
            if not 0 <= getattr(variant, rate) < 1:
                raise ConfigError(f"{rate} must be in [0, 1). Received: {getattr(variant, rate)}")
        activation = ACTIVATIONS[variant.activation]
        conv_bn = partial(
            ConvBN,
            padding=variant.padding,
            bn_epsilon=variant.bn_epsilon,
            bn_momentum=variant.bn_momentum,
        )
        num_blocks = sum(stage.repeats for stage in variant.stages)

        channels = variant.stem_channels
        self.stem = conv_bn(3, channels, 3, 2, activation=activation)
        self.blocks = nn.LayerList()
        for stage in variant.stages:
            for repeat in range(stage.repeats):
                self.blocks.append(
                    MBConv(
                        channels,
                        stage,
                        stride=stage.stride if repeat == 0 else 1,
                        conv_bn=conv_bn,
                        activation=activation,
                        squeeze_excite=variant.squeeze_excite,
                        drop_connect_rate=variant.drop_connect * len(self.blocks) / num_blocks,
                    )
                )
                channels = stage.channels
        self.head = conv_bn(channels, variant.head_channels, 1, activation=activation)
        self.dropout = variant.dropout
        fc_range = 1 / math.sqrt(max(num_classes, 1000))
        self.fc = uniform_linear(variant.head_channels, num_classes, fc_range, bias_range=0.0)

    def embed(self, x: Tensor) -> Tensor:
        """Return the embeddings of images: what the classifier sees, float32 [N, head channels]."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return global_average(self.head(x))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        if self.training and self.dropout:
            x = F.dropout(x, self.dropout)
        return self.fc(x)
