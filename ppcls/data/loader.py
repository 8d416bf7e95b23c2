"""Batches, prepared by threads while the last one is being used. OpenCV and Pillow release Python's
lock, so threads scale as processes would, and an error in one reaches the caller as it is."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ppcls.config import AugmentConfig
from ppcls.data.augment import Mixing, RandomErasing, image_operators, mix_images, mix_labels
from ppcls.data.dataset import Dataset
from ppcls.data.decode import decode
from ppcls.data.transforms import Normalizer, flip, random_resized_crop, resize_short_center_crop
from ppcls.errors import DataError
from ppcls.preprocessing import Preprocessing

Transform = Callable[[np.ndarray, int], np.ndarray]
Finish = Callable[[np.ndarray, int], None]  # of a slot that is normalised, in place
BATCHES_AHEAD = 2  # in preparation or ready while one is being used
ERASING, MIXING = 1, 2  # streams of random numbers beside those of (seed, epoch, index)


@dataclass(frozen=True, order=True)
class Unreadable:
    index: int
    path: str
    where: str
    reason: str


class Batch(NamedTuple):
    """images: float32 [N, 3, S, S]; indices: int64 [N], positions in the dataset; labels: int64 [N], once
    mixed the classes' shares float32 [N, C], or None; unreadable: the images left out, always empty with
    on_error "fail"."""

    images: np.ndarray
    indices: np.ndarray
    labels: np.ndarray | None
    unreadable: list[Unreadable]


class EvalTransform:
    """uint8 [H, W, 3] to uint8 [S, S, 3]: resize the short side, cut from the centre."""

    def __init__(self, spec: Preprocessing) -> None:
        self.spec = spec

    def __call__(self, image: np.ndarray, index: int) -> np.ndarray:
        return resize_short_center_crop(image, self.spec)


class TrainTransform:
    """uint8 [H, W, 3] to uint8 [S, S, 3]: a crop, flip and what else the options ask for, drawn from
    (seed, epoch, index) alone."""

    def __init__(self, spec: Preprocessing, augment: AugmentConfig, *, seed: int, epoch: int) -> None:
        self.spec, self.augment = spec, augment
        self.seed, self.epoch = seed, epoch
        self.operators = image_operators(augment, spec)
        self.erasing = RandomErasing(augment.random_erasing, augment.random_erasing_mode)

    def __call__(self, image: np.ndarray, index: int) -> np.ndarray:
        random = random_state(self.seed, self.epoch, index)
        if self.augment.center_crop:
            image = resize_short_center_crop(image, self.spec)
        else:
            image = random_resized_crop(
                image,
                self.spec.crop_size,
                self.augment.crop_area,
                self.augment.crop_ratio,
                self.spec.interpolation,
                self.spec.antialias,
                random,
            )
        image = flip(image) if random.uniform() < self.augment.flip else image
        for operator in self.operators:
            image = operator(image, random)
        return image

    def finish(self, out: np.ndarray, index: int) -> None:
        """Random erasing of the image float32 [3, S, S], once it is normalised."""
        if self.erasing.probability:
            self.erasing(out, random_state(self.seed, self.epoch, index, ERASING))


def fill_slot(data: bytes, index: int, transform: Transform, normalize: Normalizer, out: np.ndarray) -> None:
    """An image file's bytes into its slot of a batch, float32 [3, S, S]. Raises DataError."""
    normalize(transform(decode(data), index), out)


def empty_batch(count: int, spec: Preprocessing) -> np.ndarray:
    """float32 [count, 3, S, S], yet to be filled. Raises DataError where memory is too small for it."""
    shape = (count, 3, spec.crop_size, spec.crop_size)
    try:
        return np.empty(shape, np.float32)
    except MemoryError:
        gigabytes = 4 * math.prod(shape) / 1e9
        raise DataError(
            f"A batch of {count} images of {spec.crop_size} x {spec.crop_size} pixels takes "
            f"{gigabytes:.1f} GB, more than is free here. Lower the batch size: -o data.batch_size=N."
        ) from None


def random_state(*entropy: int) -> np.random.RandomState:
    """A generator for one purpose. Of numpy's, only RandomState promises the same stream for ever."""
    return np.random.RandomState(np.random.SeedSequence(entropy).generate_state(4))


def eval_order(count: int, batch_size: int, rank: int = 0, world_size: int = 1) -> list[np.ndarray]:
    """A rank's batches: every world_size-th image from `rank` on, each image in one rank's share."""
    share = np.arange(rank, count, world_size)
    return [share[start : start + batch_size] for start in range(0, len(share), batch_size)]


def train_order(
    count: int, batch_size: int, *, seed: int, epoch: int, rank: int = 0, world_size: int = 1
) -> list[np.ndarray]:
    """A rank's shuffled batches. Of each global batch it takes images rank, rank + world_size, ...; what
    does not fill a last global batch waits for another epoch's order."""
    shuffled = random_state(seed, epoch).permutation(count)
    size = batch_size * world_size
    return [shuffled[start + rank : start + size : world_size] for start in range(0, count - size + 1, size)]


def load_batches(
    dataset: Dataset,
    order: Iterable[np.ndarray],
    transform: Transform,
    spec: Preprocessing,
    *,
    num_workers: int,
    on_error: str = "fail",
    finish: Finish | None = None,
) -> Iterator[Batch]:
    """Decode, transform and normalise the images of each index array in `order`, in that order.

    num_workers: threads. on_error: "fail" raises DataError for an unreadable image, naming its file, line
    and reason; "skip" leaves it out of its batch, which may become empty, and reports it there.
    finish: called with each normalised image float32 [3, S, S] and its index.
    """
    normalize = Normalizer(spec.mean, spec.std)
    order = iter(order)
    pending: deque = deque()
    pool = ThreadPoolExecutor(num_workers, thread_name_prefix="load")
    try:
        while True:
            while len(pending) <= BATCHES_AHEAD and (indices := next(order, None)) is not None:
                images = empty_batch(len(indices), spec)
                jobs = [
                    pool.submit(_load_image, dataset, int(index), transform, normalize, images[slot], finish)
                    for slot, index in enumerate(indices)
                ]
                pending.append((indices, images, jobs))
            if not pending:
                return
            indices, images, jobs = pending.popleft()
            yield _finish_batch(dataset, indices, images, [job.result() for job in jobs], on_error)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def load_batch(
    dataset: Dataset, indices: np.ndarray, transform: Transform, spec: Preprocessing, *, on_error: str
) -> Batch:
    """One batch as `load_batches` makes it, in the calling thread."""
    normalize = Normalizer(spec.mean, spec.std)
    images = empty_batch(len(indices), spec)
    failures = [
        _load_image(dataset, int(index), transform, normalize, images[slot])
        for slot, index in enumerate(indices)
    ]
    return _finish_batch(dataset, indices, images, failures, on_error)


def _load_image(
    dataset: Dataset,
    index: int,
    transform: Transform,
    normalize: Normalizer,
    out: np.ndarray,
    finish: Finish | None = None,
) -> Unreadable | None:
    path = dataset.paths[index]
    try:
        with open(path, "rb") as file:
            data = file.read()
        fill_slot(data, index, transform, normalize, out)
        if finish is not None:
            finish(out, index)
    except DataError as error:
        return Unreadable(index, path, dataset.where(index), str(error))
    except OSError as error:
        return Unreadable(index, path, dataset.where(index), error.strerror or str(error))
    return None


def _finish_batch(
    dataset: Dataset,
    indices: np.ndarray,
    images: np.ndarray,
    failures: list[Unreadable | None],
    on_error: str,
) -> Batch:
    """What could be read; raises DataError for what could not unless it's to be skipped."""
    unreadable = [failure for failure in failures if failure is not None]
    if unreadable:
        if on_error == "fail":
            first = unreadable[0]
            raise DataError(
                f"unreadable image {first.where}: {first.reason}. Repair it or take it out of the data "
                "(python -m ppcls.data check finds all such files), or leave such images out and have them "
                "counted: -o data.on_error=skip."
            )
        readable = np.array([failure is None for failure in failures])
        indices, images = indices[readable], images[readable]
    labels = None if dataset.labels is None else dataset.labels[indices]
    return Batch(images, indices, labels, unreadable)


def mix_batches(
    batches: Iterable[Batch],
    mixing: Mixing,
    num_classes: int,
    *,
    seed: int,
    epoch: int,
    rank: int,
    first: int = 0,
) -> Iterator[Batch]:
    """An epoch's batches from the one numbered `first` on, each mixed within itself, drawn from
    (seed, epoch, step, rank) alone."""
    for step, batch in enumerate(batches, first):
        if batch.labels is None:
            raise ValueError("images without labels can't be mixed")
        mix = mixing.draw(batch.images.shape[-1], random_state(seed, epoch, step, MIXING, rank))
        mix_images(batch.images, mix)
        yield batch._replace(labels=mix_labels(batch.labels, mix, num_classes))
