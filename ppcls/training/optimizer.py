"""The optimizer and its learning rate."""

import math
from typing import TYPE_CHECKING

from ppcls.config import OptimConfig

if TYPE_CHECKING:
    from paddle import nn
    from paddle.optimizer import Optimizer

LR_BATCH = 256  # the global batch that `optim.lr` is given for


def scaled_lr(config: OptimConfig, global_batch: int) -> float:
    """The peak learning rate for a global batch of another size than 256."""
    return config.lr * global_batch / LR_BATCH


def learning_rate(config: OptimConfig, peak: float, step: int, steps_per_epoch: int, epochs: int) -> float:
    """The learning rate of a step, counted from 0: a linear warm-up to the schedule, which counts its own
    epochs from the very first step. Cosine ends at 0 after the last step."""
    epoch = step / steps_per_epoch
    if config.schedule == "cosine":
        rate = peak * 0.5 * (1 + math.cos(math.pi * epoch / epochs))
    else:
        rate = peak * config.step_factor ** math.floor(epoch / config.step_epochs)
    warmup_steps = config.warmup_epochs * steps_per_epoch
    return rate * min(1.0, (step + 1) / warmup_steps) if warmup_steps else rate


def build_optimizer(config: OptimConfig, model: "nn.Layer", lr: float) -> "Optimizer":
    """SGD with momentum, or AdamW; weight decay on everything but batch norm."""
    from paddle import nn
    from paddle.optimizer import AdamW, Momentum

    norm_ids = {
        id(parameter)
        for layer in model.sublayers()
        if isinstance(layer, nn.BatchNorm2D)
        for parameter in layer.parameters()
    }
    trainable = [parameter for parameter in model.parameters() if not parameter.stop_gradient]
    groups = [
        {"params": [p for p in trainable if id(p) not in norm_ids], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if id(p) in norm_ids], "weight_decay": 0.0},
    ]
    if config.name == "adamw":
        return AdamW(learning_rate=lr, parameters=groups)
    return Momentum(learning_rate=lr, momentum=config.momentum, parameters=groups)
