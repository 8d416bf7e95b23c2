"""A network of a thousand parameters, so that whole runs fit among the tests' files."""

from dataclasses import dataclass

from ppcls.architectures import MODELS
from ppcls.architectures.variants import EfficientNetVariant, MBConvStage


@dataclass(frozen=True)
class TinyVariant(EfficientNetVariant):
    @property
    def stem_channels(self) -> int:
        return 8

    @property
    def head_channels(self) -> int:
        return 16

    @property
    def stages(self) -> list[MBConvStage]:
        return [MBConvStage(3, 1, 1, 8, 1), MBConvStage(3, 2, 2, 8, 2)]


MODELS["Tiny"] = TinyVariant(width=1.0, depth=1.0, image_size=24, dropout=0.2)
