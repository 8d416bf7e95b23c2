"""The nineteen networks as plain data, from the papers' tables. Importing this imports no Paddle.

EfficientNet: Tan and Le, https://arxiv.org/abs/1905.11946, with the coefficients of the authors' code.
EfficientNet-Lite: https://github.com/tensorflow/tpu, models/official/efficientnet/lite, the table in
    efficientnet_lite_builder.py. timm evaluates Lite3 and Lite4 on larger images, of 300 and 380 pixels.
ResNeXt101 WSL: Mahajan et al., https://arxiv.org/abs/1805.00932, on Xie et al.'s ResNeXt,
    https://arxiv.org/abs/1611.05431.
FixRes (the weights of Fix_ResNeXt101_32x48d_wsl): Touvron et al., https://arxiv.org/abs/1906.06423.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple


class MBConvStage(NamedTuple):
    kernel_size: int
    stride: int
    expand_ratio: int
    channels: int
    repeats: int


class BottleneckStage(NamedTuple):
    width: int  # channels of the grouped convolution if each group had one channel
    channels: int
    stride: int
    repeats: int


EFFICIENTNET_STEM = 32
EFFICIENTNET_STAGES = (  # Table 1 of the paper
    MBConvStage(kernel_size=3, stride=1, expand_ratio=1, channels=16, repeats=1),
    MBConvStage(kernel_size=3, stride=2, expand_ratio=6, channels=24, repeats=2),
    MBConvStage(kernel_size=5, stride=2, expand_ratio=6, channels=40, repeats=2),
    MBConvStage(kernel_size=3, stride=2, expand_ratio=6, channels=80, repeats=3),
    MBConvStage(kernel_size=5, stride=1, expand_ratio=6, channels=112, repeats=3),
    MBConvStage(kernel_size=5, stride=2, expand_ratio=6, channels=192, repeats=4),
    MBConvStage(kernel_size=3, stride=1, expand_ratio=6, channels=320, repeats=1),
)
EFFICIENTNET_HEAD = 1280

RESNEXT_GROUPS = 32
RESNEXT_STEM = 64
RESNEXT_STAGES = (  # Table 1 of the paper, at depth 101
    BottleneckStage(width=32, channels=256, stride=1, repeats=3),
    BottleneckStage(width=64, channels=512, stride=2, repeats=4),
    BottleneckStage(width=128, channels=1024, stride=2, repeats=23),
    BottleneckStage(width=256, channels=2048, stride=2, repeats=3),
)


def scale_channels(channels: int, width: float) -> int:
    """Scale a number of channels, and round it to a multiple of 8 that is at most 10% below the product."""
    scaled = channels * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * scaled else rounded + 8


@dataclass(frozen=True)
class EfficientNetVariant:
    """One row of the authors' scaling table, and the variant's differences from the paper's network."""

    width: float
    depth: float
    image_size: int
    dropout: float
    drop_connect: float = 0.2
    squeeze_excite: bool = True
    activation: str = "swish"
    scale_ends: bool = True  # scale stem and head with the width, and the first and last stage with the depth
    padding: str = "same"
    bn_epsilon: float = 1e-3
    bn_momentum: float = 0.99  # share of the old statistics that a training step keeps

    @property
    def stem_channels(self) -> int:
        return scale_channels(EFFICIENTNET_STEM, self.width if self.scale_ends else 1.0)

    @property
    def head_channels(self) -> int:
        return scale_channels(EFFICIENTNET_HEAD, self.width if self.scale_ends else 1.0)

    @property
    def stages(self) -> list[MBConvStage]:
        ends = () if self.scale_ends else (EFFICIENTNET_STAGES[0], EFFICIENTNET_STAGES[-1])
        return [
            stage._replace(
                channels=scale_channels(stage.channels, self.width),
                repeats=stage.repeats if stage in ends else math.ceil(stage.repeats * self.depth),
            )
            for stage in EFFICIENTNET_STAGES
        ]


@dataclass(frozen=True)
class ResNeXtVariant:
    """A ResNeXt101 with 32 groups. width_per_group: channels of each group in the first stage."""

    width_per_group: int
    image_size: int = 224
    bn_epsilon: float = 1e-5
    bn_momentum: float = 0.9
    padding: ClassVar[str] = "symmetric"

    @property
    def stages(self) -> list[BottleneckStage]:
        return [stage._replace(width=stage.width * self.width_per_group) for stage in RESNEXT_STAGES]


def _lite(width: float, depth: float, image_size: int, dropout: float) -> EfficientNetVariant:
    return EfficientNetVariant(
        width, depth, image_size, dropout, squeeze_excite=False, activation="relu6", scale_ends=False
    )


MODELS: dict[str, EfficientNetVariant | ResNeXtVariant] = {
    "EfficientNetB0": EfficientNetVariant(width=1.0, depth=1.0, image_size=224, dropout=0.2),
    "EfficientNetB1": EfficientNetVariant(width=1.0, depth=1.1, image_size=240, dropout=0.2),
    "EfficientNetB2": EfficientNetVariant(width=1.1, depth=1.2, image_size=260, dropout=0.3),
    "EfficientNetB3": EfficientNetVariant(width=1.2, depth=1.4, image_size=300, dropout=0.3),
    "EfficientNetB4": EfficientNetVariant(width=1.4, depth=1.8, image_size=380, dropout=0.4),
    "EfficientNetB5": EfficientNetVariant(width=1.6, depth=2.2, image_size=456, dropout=0.4),
    "EfficientNetB6": EfficientNetVariant(width=1.8, depth=2.6, image_size=528, dropout=0.5),
    "EfficientNetB7": EfficientNetVariant(width=2.0, depth=3.1, image_size=600, dropout=0.5),
    "EfficientNetB0_small": EfficientNetVariant(
        width=1.0, depth=1.0, image_size=224, dropout=0.2, squeeze_excite=False, padding="symmetric"
    ),
    "EfficientNetLite0": _lite(width=1.0, depth=1.0, image_size=224, dropout=0.2),
    "EfficientNetLite1": _lite(width=1.0, depth=1.1, image_size=240, dropout=0.2),
    "EfficientNetLite2": _lite(width=1.1, depth=1.2, image_size=260, dropout=0.3),
    "EfficientNetLite3": _lite(width=1.2, depth=1.4, image_size=280, dropout=0.3),
    "EfficientNetLite4": _lite(width=1.4, depth=1.8, image_size=300, dropout=0.3),
    "ResNeXt101_32x8d_wsl": ResNeXtVariant(width_per_group=8),
    "ResNeXt101_32x16d_wsl": ResNeXtVariant(width_per_group=16),
    "ResNeXt101_32x32d_wsl": ResNeXtVariant(width_per_group=32),
    "ResNeXt101_32x48d_wsl": ResNeXtVariant(width_per_group=48),
    "Fix_ResNeXt101_32x48d_wsl": ResNeXtVariant(width_per_group=48, image_size=320),
}
