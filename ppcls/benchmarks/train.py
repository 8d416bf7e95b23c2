"""Training steps: images a second, the seconds of each stage, and the peak of memory."""

import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from itertools import chain, count
from statistics import median
from typing import Any

import numpy as np

from ppcls import distributed
from ppcls.build import Network
from ppcls.config import Config
from ppcls.data.dataset import Dataset
from ppcls.data.loader import Batch
from ppcls.preprocessing import Preprocessing
from ppcls.training.batches import count_steps, train_batches
from ppcls.training.state import TrainState
from ppcls.training.step import train_step

WARM_UP = 2  # steps that are not counted
STAGES = ("data", "forward", "backward", "update")
STEPS_PER_EPOCH = 1000  # of drawn batches; a step's learning rate depends on it, its time does not


class Clock:
    """The seconds of each stage of a step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.stage: str | None = None
        self.since = 0.0

    def enter(self, stage: str | None) -> None:
        """End the running stage and begin the next one, if any."""
        end = now()
        if self.stage is not None:
            self.seconds[self.stage] += end - self.since
        self.stage, self.since = stage, end


def now() -> float:
    """Return seconds, once a GPU has finished its work."""
    import paddle

    if paddle.get_device().startswith("gpu"):
        paddle.device.synchronize()
    return time.perf_counter()


def synthetic_batches(config: Config, preprocessing: Preprocessing) -> Iterator[Batch]:
    """Yield the same drawn batch again and again: nothing is read."""
    size, side = config.data.batch_size, preprocessing.crop_size
    random = np.random.RandomState(distributed.rank())
    images = random.normal(size=(size, 3, side, side)).astype(np.float32)
    labels = random.randint(0, config.model.num_classes, size)
    while True:
        yield Batch(images, np.arange(size), labels, [])


def measure_training(
    config: Config, network: Network, train_set: Dataset | None, num_workers: int, steps: int
) -> dict[str, Any]:
    """Measure `steps` steps, after two that warm up. train_set: None for drawn batches.

    Returns this process's images a second, the median seconds of each stage of a step, and its peak memory.
    """
    preprocessing = network.preprocessing
    if train_set is None:
        steps_per_epoch, batches = STEPS_PER_EPOCH, synthetic_batches(config, preprocessing)
    else:
        steps_per_epoch = count_steps(config, len(train_set))
        batches = chain.from_iterable(
            train_batches(config, preprocessing, train_set, epoch=epoch, num_workers=num_workers)
            for epoch in count()
        )
    state = TrainState(config, network.model, steps_per_epoch)
    state.train_mode()
    measured: list[dict[str, float]] = []
    for step in range(WARM_UP + steps):
        clock = Clock()
        clock.enter("update")  # a step begins by clearing the gradients of the last one
        train_step(state, batches, state.learning_rate(step), step, enter=clock.enter)
        clock.enter(None)
        measured.append(clock.seconds)
    measured = measured[WARM_UP:]
    images = config.data.batch_size * config.train.accumulate * steps
    return {
        "images_per_second": images / sum(sum(seconds.values()) for seconds in measured),
        "seconds": {stage: median(seconds[stage] for seconds in measured) for stage in STAGES},
        "peak_memory_bytes": peak_memory(),
    }


def peak_memory() -> int:
    """Return the largest number of bytes of this process that were resident at once."""
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
