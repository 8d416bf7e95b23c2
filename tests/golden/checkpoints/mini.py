"""A network of one block, so that the checkpoints of other projects' training scripts are small files."""

from dataclasses import dataclass
from zlib import crc32

import numpy as np

from ppcls.architectures.variants import EfficientNetVariant, MBConvStage


@dataclass(frozen=True)
class MiniVariant(EfficientNetVariant):
    @property
    def stem_channels(self) -> int:
        return 4

    @property
    def head_channels(self) -> int:
        return 8

    @property
    def stages(self) -> list[MBConvStage]:
        return [MBConvStage(3, 1, 1, 4, 1)]


MINI = MiniVariant(width=1.0, depth=1.0, image_size=24, dropout=0.2)
CLASSES = 3


def draw(kind: str, key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Draw a parameter. kind: "raw" or "average"."""
    random = np.random.RandomState(crc32(f"{kind} {key}".encode()))
    return random.uniform(0.5, 1.5, shape).astype(np.float32)
