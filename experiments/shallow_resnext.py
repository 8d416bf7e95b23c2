"""Run tools/train.py with one more model: ShallowResNeXt, the first block of ResNeXt101's first two stages.

python dataset/prepare_digits.py
python -m paddle.distributed.launch --nproc_per_node 2 experiments/shallow_resnext.py \
    -c experiments/shallow_resnext.yaml

The recipe of the WSL configs is for networks of 89 million parameters and more. This run shows on the digits,
in minutes, that the recipe works. Only this script knows the model.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ppcls import MODELS  # noqa: E402
from ppcls.architectures.variants import BottleneckStage, ResNeXtVariant  # noqa: E402
from ppcls.cli.train import main  # noqa: E402
from ppcls.commands import run  # noqa: E402


@dataclass(frozen=True)
class ShallowVariant(ResNeXtVariant):
    @property
    def stages(self) -> list[BottleneckStage]:
        return [stage._replace(repeats=1) for stage in super().stages[:2]]


MODELS["ShallowResNeXt"] = ShallowVariant(width_per_group=4, image_size=32)

if __name__ == "__main__":
    run(main)
