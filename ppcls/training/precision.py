"""Half precision on GPUs. No GPU has run this yet."""

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from ppcls.config import TrainConfig
from ppcls.errors import ConfigError

if TYPE_CHECKING:
    from paddle import Tensor
    from paddle.optimizer import Optimizer


class Precision:
    """The changes that `train.amp` makes to a step; none without it. Parameters, their averages and the
    optimizer's state stay float32 on both levels: operators convert their inputs.

    float16 has a small range, so its loss is scaled up; a step whose gradients overflow is skipped, and the
    scale is lowered. bfloat16 has float32's range.
    """

    def __init__(self, config: TrainConfig) -> None:
        import paddle

        self.dtype = {None: None, "bf16": "bfloat16", "fp16": "float16"}[config.amp]
        self.level = config.amp_level
        if self.dtype and not paddle.get_device().startswith("gpu"):
            raise ConfigError(
                f"train.amp needs a GPU. Received: {config.amp}. Use -o train.amp=null; on a CPU with AMX, "
                "-o kernels=onednn-bf16 multiplies in bfloat16."
            )
        self.scaler = paddle.amp.GradScaler() if config.amp == "fp16" else None

    def autocast(self) -> "AbstractContextManager[None]":
        import paddle

        return paddle.amp.auto_cast(level=self.level, dtype=self.dtype) if self.dtype else nullcontext()

    def backward(self, loss: "Tensor") -> None:
        (self.scaler.scale(loss) if self.scaler else loss).backward()

    def unscale(self, optimizer: "Optimizer") -> None:
        """Divide the gradients by the loss scale, so that they can be clipped and read."""
        if self.scaler:
            self.scaler.unscale_(optimizer)

    def state_dict(self) -> dict[str, Any] | None:
        """Return the loss scale and its counts, as JSON; None without a scaler."""
        if self.scaler is None:
            return None
        state = self.scaler.state_dict()
        return {key: value.tolist() if hasattr(value, "tolist") else value for key, value in state.items()}

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        if self.scaler is not None and state:
            self.scaler.load_state_dict(state | {"scale": np.array(state["scale"], np.float32)})

    def step(self, optimizer: "Optimizer") -> None:
        if self.scaler:
            self.scaler.step(optimizer)
            self.scaler.update()
        else:
            optimizer.step()
