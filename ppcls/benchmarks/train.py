"""Training steps: images a second, what of a step takes how long, and the memory of it all."""

import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, count
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from ppcls import distributed
from ppcls.config import Config
from ppcls.data.dataset import Dataset
from ppcls.data.loader import Batch
from ppcls.preprocessing import Preprocessing
from ppcls.training.loop import Timed, Trainer
from ppcls.training.precision import Precision
from ppcls.training.schedule import learning_rate

if TYPE_CHECKING:
    from paddle import Tensor, nn

WARM_UP = 2  # steps that are not counted
PARTS = ("data", "forward", "backward", "update")


class Clock:
    """Seconds by names, since they were last taken."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        start = now()
        yield
        self.seconds[name] += now() - start

    def take(self) -> dict[str, float]:
        taken, self.seconds = self.seconds, defaultdict(float)
        return taken


def now() -> float:
    """Seconds, once what a GPU was given to do is done."""
    import paddle

    if paddle.get_device().startswith("gpu"):
        paddle.device.synchronize()
    return time.perf_counter()


class TimedPrecision(Precision):
    clock: Clock

    def backward(self, loss: "Tensor") -> None:
        with self.clock.part("backward"):
            super().backward(loss)


class TimedTrainer(Trainer):
    """The trainer itself, its forward and backward passes timed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.clock = Clock()
        self.precision = TimedPrecision(self.config.train)
        self.precision.clock = self.clock

    def _add_gradients(self, batch: Batch) -> float:
        with self.clock.part("both passes"):
            return super()._add_gradients(batch)


def synthetic_batches(config: Config, spec: Preprocessing) -> Iterator[Batch]:
    """The same drawn batch again and again: nothing is read."""
    size, side = config.data.batch_size, spec.crop_size
    random = np.random.RandomState(distributed.rank())
    images = random.normal(size=(size, 3, side, side)).astype(np.float32)
    labels = random.randint(0, config.model.num_classes, size)
    while True:
        yield Batch(images, np.arange(size), labels, [])


def measure_training(
    config: Config,
    model: "nn.Layer",
    spec: Preprocessing,
    train_set: Dataset | None,
    num_workers: int,
    steps: int,
) -> dict[str, Any]:
    """This process's images a second over `steps` steps, behind two that warm up, and the median seconds of
    a step's parts. train_set: None for drawn batches."""
    global_batch = config.data.batch_size * distributed.world_size() * config.train.accumulate
    data = Dataset.of_files([""] * (1000 * global_batch)) if train_set is None else train_set
    trainer = TimedTrainer(config, model, spec, data, data, num_workers)
    if train_set is None:
        batches = Timed(synthetic_batches(config, spec))
    else:
        batches = Timed(chain.from_iterable(trainer.batches(epoch) for epoch in count()))
    trainer.network.train()
    for layer in trainer.frozen:
        layer.eval()
    parts: list[dict[str, float]] = []
    for step in range(WARM_UP + steps):
        batches.seconds = 0.0
        trainer.clock.take()
        rate = learning_rate(
            config.optim, trainer.peak_lr, step, trainer.steps_per_epoch, config.train.epochs
        )
        start = now()
        trainer.train_step(batches, rate, step)
        seconds = now() - start
        passes = trainer.clock.take()
        forward, backward = passes["both passes"] - passes["backward"], passes["backward"]
        rest = seconds - batches.seconds - forward - backward
        if step >= WARM_UP:
            parts.append(dict(zip(PARTS, (batches.seconds, forward, backward, rest), strict=True)))
    total = sum(sum(part.values()) for part in parts)
    return {
        "images_per_second": trainer.global_batch / trainer.world_size * steps / total,
        "seconds": {name: median(part[name] for part in parts) for name in PARTS},
        "peak_memory_bytes": peak_memory(),
    }


def peak_memory() -> int:
    """Bytes of this process that were resident at once."""
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
