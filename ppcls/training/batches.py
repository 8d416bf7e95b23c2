"""The training batches of an epoch: one rank's share of them, augmented and mixed."""

from collections.abc import Iterator
from itertools import chain, islice

import numpy as np

from ppcls import distributed
from ppcls.config import Config
from ppcls.data.dataset import Dataset
from ppcls.data.loader import Batch, load_batches, mix_batches, train_batch_indices
from ppcls.data.mixing import Mixing
from ppcls.data.sampling import repeat_factors
from ppcls.data.transforms import TrainTransform
from ppcls.errors import ConfigError
from ppcls.preprocessing import Preprocessing
from ppcls.training.length import global_batch


def count_steps(config: Config, images: int) -> int:
    """Return the number of updates in a pass over the images: as many as the images fill, an incomplete last
    global batch dropped, and at least train.min_steps_per_epoch. With train.images it is at least one.

    Raises ConfigError if the images do not fill one, and need to.
    """
    size, train = global_batch(config), config.train
    least = train.min_steps_per_epoch or 0 if train.images is None else 1
    steps = max(images // size, least)
    if not steps:
        accumulated = f" times train.accumulate {train.accumulate}" if train.accumulate > 1 else ""
        raise ConfigError(
            f"The training data has {images} images, fewer than one global batch of {size} (data.batch_size "
            f"times {distributed.world_size()} processes{accumulated}). Lower data.batch_size, or use images "
            "more than once in an epoch: -o train.min_steps_per_epoch=10."
        )
    return steps


def batches_of_steps(
    config: Config,
    preprocessing: Preprocessing,
    dataset: Dataset,
    *,
    first: int,
    end: int,
    run_end: int,
    num_workers: int,
) -> Iterator[Batch]:
    """Load this rank's batches of the steps from `first` up to `end`, counted from the run's first one, in as
    many passes over the images as they take. run_end: the number of the run's steps. A remote source begins
    to fetch the images of those that follow on `end`."""
    steps_per_pass = count_steps(config, len(dataset))
    while first < end:
        number, step = divmod(first, steps_per_pass)
        stop = min(step + end - first, steps_per_pass)
        first += stop - step
        yield from train_batches(
            config,
            preprocessing,
            dataset,
            epoch=number,
            first_step=step,
            end_step=stop,
            steps_after=run_end - first,
            num_workers=num_workers,
        )


def train_batches(
    config: Config,
    preprocessing: Preprocessing,
    dataset: Dataset,
    *,
    epoch: int,
    first_step: int = 0,
    end_step: int | None = None,
    steps_after: int = 0,
    num_workers: int,
) -> Iterator[Batch]:
    """Load this rank's batches of a pass over the images, counted from 0, from a step on, up to `end_step` or
    the last one. Earlier ones are not decoded.

    A run of train.epochs makes a pass in each epoch. Random numbers depend on the pass. steps_after: steps
    that follow in this pass and the next one; a remote source begins to fetch their images."""
    accumulate = config.train.accumulate
    steps = count_steps(config, len(dataset))
    first, end = (step * accumulate for step in (first_step, end_step or steps))
    transform = TrainTransform(preprocessing, config.augment, seed=config.seed, epoch=epoch)
    batch_indices = _indices_of_pass(config, dataset, epoch)
    following = chain(batch_indices[end:], _when_reached(config, dataset, epoch + 1))
    batches = load_batches(
        dataset,
        batch_indices[first:end],
        transform,
        preprocessing,
        num_workers=num_workers,
        on_error=config.data.on_error,
        finish=transform.finish,
        later=islice(following, steps_after * accumulate if dataset.source.is_remote else 0),
    )
    if config.train.loss == "binary":
        batches = map(count_each_label, batches)
    mixing = Mixing(config.augment.mixup, config.augment.cutmix)
    if not (mixing.mixup or mixing.cutmix):
        return batches
    return mix_batches(batches, mixing, seed=config.seed, epoch=epoch, rank=distributed.rank(), first=first)


def _indices_of_pass(config: Config, dataset: Dataset, epoch: int) -> np.ndarray:
    """Return the indices of this rank's batches of a pass, int64 [B, batch_size]."""
    labels = dataset.label_sets if dataset.labels is None else dataset.labels
    batches = count_steps(config, len(dataset)) * config.train.accumulate
    return train_batch_indices(
        dataset.source,
        config.data.batch_size,
        seed=config.seed,
        epoch=epoch,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        factors=None if labels is None else repeat_factors(labels, config.data.sampling),
        min_batches=batches,
    )[:batches]


def _when_reached(config: Config, dataset: Dataset, epoch: int) -> Iterator[np.ndarray]:
    """Yield the batches of `_indices_of_pass`, which are drawn when the first one is asked for."""
    yield from _indices_of_pass(config, dataset, epoch)


def count_each_label(batch: Batch) -> Batch:
    """Return the batch with a share of 1 for each label of an image, where softmax divides 1 among them."""
    batch = batch.with_shares()
    if batch.shares is None:
        return batch
    return batch._replace(shares=(batch.shares > 0).astype(np.float32))
