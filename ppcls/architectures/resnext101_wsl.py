"""ResNeXt101 32x8d to 32x48d with weakly supervised pretraining. Mahajan et al., arXiv:1805.00932.

The network is Xie et al.'s ResNeXt (https://arxiv.org/abs/1611.05431) with the stride on the grouped
convolution. Weights start as in the published code, which builds on torchvision's ResNet: convolutions
from Normal(0, sqrt(2 / (kernel^2 * out_channels))), the classifier from Uniform(-1, 1) / sqrt(in).
"""

import math
from functools import partial

import paddle.nn.functional as F
from paddle import Tensor, nn

from ppcls.architectures.blocks import ConvBN, global_average, uniform_linear
from ppcls.architectures.variants import RESNEXT_GROUPS, RESNEXT_STEM, ResNeXtVariant


class Bottleneck(nn.Layer):
    """Reduce 1x1, grouped 3x3, expand 1x1. The shortcut is a convolution if the shapes differ."""

    def __init__(
        self, in_channels: int, width: int, channels: int, stride: int, conv_bn: "partial[ConvBN]"
    ) -> None:
        super().__init__()
        self.reduce = conv_bn(in_channels, width, 1, activation=F.relu)
        self.grouped = conv_bn(
            width, width, 3, stride, groups=RESNEXT_GROUPS, activation=F.relu, fan_out=9 * width
        )
        self.expand = conv_bn(width, channels, 1)
        is_same = stride == 1 and in_channels == channels
        self.shortcut = None if is_same else conv_bn(in_channels, channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return F.relu(self.expand(self.grouped(self.reduce(x))) + shortcut)


class ResNeXt101(nn.Layer):
    """Network from images, float32 [N, 3, H, W], to logits [N, num_classes].

    Children: stem, blocks.N.{reduce, grouped, expand, shortcut}, fc.
    """

    def __init__(self, variant: ResNeXtVariant, num_classes: int) -> None:
        super().__init__()
        conv_bn = partial(
            ConvBN, padding=variant.padding, bn_epsilon=variant.bn_epsilon, bn_momentum=variant.bn_momentum
        )
        self.stem = conv_bn(3, RESNEXT_STEM, 7, 2, activation=F.relu)
        self.blocks = nn.LayerList()
        channels = RESNEXT_STEM
        for stage in variant.stages:
            for repeat in range(stage.repeats):
                stride = stage.stride if repeat == 0 else 1
                self.blocks.append(Bottleneck(channels, stage.width, stage.channels, stride, conv_bn))
                channels = stage.channels
        bound = 1 / math.sqrt(channels)
        self.fc = uniform_linear(channels, num_classes, bound, bias_range=bound)

    def embed(self, x: Tensor) -> Tensor:
        """Return the embeddings of images: what the classifier sees, float32 [N, channels]."""
        x = F.max_pool2d(self.stem(x), kernel_size=3, stride=2, padding=1)
        for block in self.blocks:
            x = block(x)
        return global_average(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.embed(x))
