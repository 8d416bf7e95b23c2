"""The learning rate as a function of the step alone, so that it has no state."""

import math

from ppcls.config import OptimConfig

LR_BATCH = 256  # the global batch that `optim.lr` is given for
STAIRS = {"step": (30.0, 0.1), "exponential": (2.4, 0.97)}  # decay_epochs and decay_factor


def scaled_lr(config: OptimConfig, global_batch: int) -> float:
    """Return the peak learning rate for a global batch of any size."""
    return config.lr * global_batch / LR_BATCH


def learning_rate(
    config: OptimConfig, peak: float, step: int, steps_per_epoch: int, steps: int, freeze_epochs: int = 0
) -> float:
    """Return the learning rate of a step, counted from 0, in a run of `steps` steps.

    It is the peak while the classifier alone is trained, in the first `freeze_epochs`. Warm-up and schedule
    are those of a run that begins after them.

    The warm-up is linear from optim.warmup_lr, and its last step reaches the peak. Then follows the schedule,
    which counts from the first step of all, as in tensorflow/tpu and timm. "step" and "exponential" go down
    in stairs; cosine ends at 0 after the last step. "halving" divides the run into optim.halvings + 1 equal
    parts, each with half the rate of the one before it, as https://arxiv.org/abs/1805.00932.
    """
    if step < freeze_epochs * steps_per_epoch:
        return peak
    step, steps = step - freeze_epochs * steps_per_epoch, steps - freeze_epochs * steps_per_epoch
    warmup_steps = config.warmup_epochs * steps_per_epoch
    if step < warmup_steps:
        return config.warmup_lr + (peak - config.warmup_lr) * min(1.0, (step + 1) / warmup_steps)
    if config.schedule == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * step / steps))
    if config.schedule == "halving":
        return peak * 0.5 ** (step * (config.halvings + 1) // steps)
    decay_epochs, decay_factor = STAIRS[config.schedule]
    decay_steps = (config.decay_epochs or decay_epochs) * steps_per_epoch
    stairs = math.floor(step / decay_steps + 1e-9)  # 3 * 2.4 epochs may come out a little below 3
    return peak * (config.decay_factor or decay_factor) ** stairs
