"""The length of a run, and the epochs that it is divided into."""

import math
from dataclasses import dataclass

from ppcls import distributed
from ppcls.config import Config
from ppcls.errors import counted


@dataclass(frozen=True)
class RunLength:
    """The length of a run in updates.

    steps: all updates. steps_per_epoch: updates between two evaluations; fewer in the last epoch, if they do
    not divide the run.
    """

    steps: int
    steps_per_epoch: int

    @property
    def epochs(self) -> int:
        return math.ceil(self.steps / self.steps_per_epoch)

    def updates(self, epoch: int, step: int = 0) -> int:
        """Return the updates since the run began, after `epoch` whole epochs and `step` more updates."""
        return min(epoch * self.steps_per_epoch + step, self.steps)

    def steps_of(self, epoch: int) -> int:
        """Return the updates of an epoch, counted from 0."""
        return self.updates(epoch + 1) - self.updates(epoch)

    def __str__(self) -> str:
        text = f"{counted(self.epochs, 'epoch')} of {counted(self.steps_per_epoch, 'step')}"
        last = self.steps_of(self.epochs - 1)
        return text if last == self.steps_per_epoch else f"{text}, the last of {last}"


def resolve_length(config: Config, steps_per_pass: int) -> RunLength:
    """Return the length that train.epochs or train.images states.

    steps_per_pass: updates in which all training images are used once; from `batches.count_steps`. With
    train.images, run and epochs are as long as the images need: an incomplete global batch is filled.
    """
    train, size = config.train, global_batch(config)
    if train.images is None:
        return RunLength((train.epochs or 1) * steps_per_pass, steps_per_pass)
    steps = math.ceil(train.images / size)
    return RunLength(steps, math.ceil(train.epoch_images / size) if train.epoch_images else steps_per_pass)


def global_batch(config: Config) -> int:
    """Return the number of images behind one update, over all processes."""
    return config.data.batch_size * distributed.world_size() * config.train.accumulate
