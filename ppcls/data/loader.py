"""Load batches. Threads prepare the next batches while one is in use: OpenCV and Pillow release Python's
lock, so threads scale as processes would, and an error in a thread reaches the caller unchanged."""

import math
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from typing import NamedTuple

import numpy as np

from ppcls.commands import command_line
from ppcls.data.dataset import Dataset
from ppcls.data.decode import UNREADABLE, decode, reason_of
from ppcls.data.mixing import Mixing, mix_images, mix_labels
from ppcls.data.opencv import cv2
from ppcls.data.sampling import draw_epoch
from ppcls.data.seeding import MIXING, random_state
from ppcls.data.source import Source
from ppcls.data.transforms import Normalizer
from ppcls.errors import DataError, counted, first_few
from ppcls.preprocessing import Preprocessing

Transform = Callable[[np.ndarray, int], np.ndarray]  # uint8 [H, W, 3] and index to uint8 [S, S, 3]
Finish = Callable[[np.ndarray, int], None]  # changes a normalised image float32 [3, S, S] in place
BATCHES_AHEAD = 2  # in preparation or ready while one is in use
IMAGES_AHEAD = 2048  # that a remote source may begin to fetch before their turn


@dataclass(frozen=True, order=True)
class Unreadable:
    """Image that could not be read. index: its position in the dataset; name, where: as its Dataset says."""

    index: int
    name: str
    where: str
    reason: str


def require_within(max_unreadable: int, found: Iterable[Unreadable]) -> None:
    """Raise DataError if more images than data.max_unreadable allows were found to be unreadable."""
    images = sorted({item.index: item for item in found}.values())
    if len(images) > max_unreadable:
        count = counted(len(images), "image")
        raise DataError(
            f"{count} cannot be read, more than data.max_unreadable={max_unreadable}: "
            f"{first_few([f'{item.where}: {item.reason}' for item in images], 10)}. Repair them or "
            f"remove them ({command_line('data', 'check')} finds all such images), or allow more."
        )


class Batch(NamedTuple):
    """Batch of images float32 [N, 3, S, S].

    indices: int64 [N], positions in the dataset. labels: int64 [N], or None. unreadable: the images left out;
    always empty with on_error "fail". shares: None if each image has one label. If images have several, or
    are mixed: float32 [N, M], the parts of the target that belong to labels, int64 [N, M]; together 1 for
    each image. A label may be there twice; a row is filled up with shares of 0.
    """

    images: np.ndarray
    indices: np.ndarray
    labels: np.ndarray | None
    unreadable: list[Unreadable]
    shares: np.ndarray | None = None

    def with_shares(self) -> "Batch":
        """Return the batch with shares: a label that is an image's only one has share 1."""
        if self.shares is not None or self.labels is None:
            return self
        labels = self.labels[:, None]
        return self._replace(labels=labels, shares=np.ones(labels.shape, np.float32))


def fill_slot(
    data: bytes, index: int, transform: Transform, normalize: Normalizer, out: np.ndarray, where: str = ""
) -> None:
    """Decode, transform and normalise an image's bytes into `out`, its slot of a batch, float32 [3, S, S].

    where: what Pillow's warnings call the image. Raises DataError for bytes that are not an image, and for
    an image that needs too much memory.
    """
    image = decode(data, where)
    try:
        normalize(transform(image, index), out)
    except (MemoryError, cv2.error) as error:
        if isinstance(error, cv2.error) and error.code != cv2.Error.StsNoMem:
            raise
        raise DataError(f"out of memory at {image.shape[1]} x {image.shape[0]} pixels") from error


def empty_batch(count: int, preprocessing: Preprocessing) -> np.ndarray:
    """Allocate a batch float32 [count, 3, S, S]. Raises DataError if there is not enough memory."""
    size = preprocessing.crop_size
    shape = (count, 3, size, size)
    try:
        return np.empty(shape, np.float32)
    except MemoryError:
        gigabytes = 4 * math.prod(shape) / 1e9
        raise DataError(
            f"A batch of {count} images of {size} x {size} pixels takes {gigabytes:.1f} GB, more than is "
            "free here. Lower the batch size: -o data.batch_size=N."
        ) from None


def eval_batch_indices(count: int, batch_size: int, rank: int = 0, world_size: int = 1) -> list[np.ndarray]:
    """Return the indices of a rank's batches: images rank, rank + world_size, ... Each image is in the
    batches of exactly one rank."""
    share = np.arange(rank, count, world_size)
    return [share[start : start + batch_size] for start in range(0, len(share), batch_size)]


def train_batch_indices(
    source: Source,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    rank: int = 0,
    world_size: int = 1,
    factors: np.ndarray | None = None,
    min_batches: int = 0,
) -> np.ndarray:
    """Return the shuffled indices of a rank's batches, int64 [B, batch_size]. From each global batch the rank
    takes images rank, rank + world_size, ... An incomplete last global batch is dropped. The source decides
    how it is shuffled.

    min_batches: if the images fill fewer batches, they are used again, in another order and under other
    numbers: index + k * count is a further use of the image `index`. No image is used once more before all
    others are. factors: from `sampling.repeat_factors`; then the uses are those of `sampling.draw_epoch`.
    """
    size, count, random = batch_size * world_size, len(source), random_state(seed, epoch)
    images = max(count // size, min_batches) * size
    if factors is not None:
        shuffled = draw_epoch(factors, source, max(images, count), seed, epoch, world_size)
    else:
        starts = range(0, images, max(count, 1))
        uses = [source.shuffle(np.arange(n, n + count), random, world_size) for n in starts]
        shuffled = uses[0] if len(uses) == 1 else np.concatenate([np.arange(0), *uses])
    batches = shuffled[:images].reshape(-1, batch_size, world_size)[:, :, rank]
    return np.ascontiguousarray(batches)  # without the shares of the other ranks


def load_batches(
    dataset: Dataset,
    batch_indices: Collection[np.ndarray],
    transform: Transform,
    preprocessing: Preprocessing,
    *,
    num_workers: int,
    on_error: str = "fail",
    finish: Finish | None = None,
    later: Iterable[np.ndarray] = (),
) -> Iterator[Batch]:
    """Yield a batch for each array of indices: its images read, decoded, transformed and normalised.

    batch_indices: index + k * len(dataset) is a further use of the image `index`. The transform is given this
    number, and draws another augmentation for it; a batch has the index.
    num_workers: threads. on_error: "fail" raises DataError for an unreadable image, with its name, line and
    reason; "skip" leaves it out of its batch, which may become empty, and reports it in the batch.
    finish: called with each normalised image float32 [3, S, S] and its index. later: the batches that a
    further call will load, such as the next epoch's: a remote source begins to fetch the first of them.
    """
    normalize = Normalizer(preprocessing.mean, preprocessing.std)
    remaining = islice(announced(chain(batch_indices, later), dataset), len(batch_indices))
    pending: deque = deque()
    pool = ThreadPoolExecutor(num_workers, thread_name_prefix="load")
    try:
        while True:
            while len(pending) <= BATCHES_AHEAD and (indices := next(remaining, None)) is not None:
                images = empty_batch(len(indices), preprocessing)
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


def announced(batch_indices: Iterable[np.ndarray], dataset: Dataset) -> Iterator[np.ndarray]:
    """Yield the batches' indices. The source hears of them IMAGES_AHEAD images before."""
    ahead: deque[np.ndarray] = deque()
    images = 0
    for indices in batch_indices:
        dataset.prefetch((indices % len(dataset)).tolist())
        ahead.append(indices)
        images += len(indices)
        while images > IMAGES_AHEAD:
            images -= len(ahead[0])
            yield ahead.popleft()
    yield from ahead


def load_batch(
    dataset: Dataset,
    indices: np.ndarray,
    transform: Transform,
    preprocessing: Preprocessing,
    *,
    on_error: str,
) -> Batch:
    """Load one batch, as `load_batches` does, but in the calling thread."""
    normalize = Normalizer(preprocessing.mean, preprocessing.std)
    images = empty_batch(len(indices), preprocessing)
    failures = [
        _load_image(dataset, int(index), transform, normalize, images[slot])
        for slot, index in enumerate(indices)
    ]
    return _finish_batch(dataset, indices, images, failures, on_error)


def _load_image(
    dataset: Dataset,
    use: int,
    transform: Transform,
    normalize: Normalizer,
    out: np.ndarray,
    finish: Finish | None = None,
) -> Unreadable | None:
    """Load one image into `out`. Returns why it is unreadable, or None. use: see `load_batches`."""
    index = use % len(dataset)
    try:
        fill_slot(dataset.read(index), use, transform, normalize, out, dataset.where(index))
        if finish is not None:
            finish(out, use)
    except UNREADABLE as error:
        return Unreadable(index, dataset.name(index), dataset.where(index), reason_of(error))
    return None


def _finish_batch(
    dataset: Dataset,
    indices: np.ndarray,
    images: np.ndarray,
    failures: list[Unreadable | None],
    on_error: str,
) -> Batch:
    """Return the batch of the readable images. Raises DataError for an unreadable one, unless `on_error` is
    "skip"."""
    unreadable = [failure for failure in failures if failure is not None]
    if unreadable:
        if on_error == "fail":
            first = unreadable[0]
            raise DataError(
                f"unreadable image {first.where}: {first.reason}. Repair it or remove it from the data "
                f"({command_line('data', 'check')} finds all such images). Or leave such images out, and "
                "count them: -o data.on_error=skip."
            )
        readable = np.array([failure is None for failure in failures])
        indices, images = indices[readable], images[readable]
    indices = indices % len(dataset)
    if dataset.label_sets is not None:
        labels, shares = dataset.label_sets.targets(indices)
        return Batch(images, indices, labels, unreadable, shares)
    return Batch(images, indices, None if dataset.labels is None else dataset.labels[indices], unreadable)


def mix_batches(
    batches: Iterable[Batch],
    mixing: Mixing,
    *,
    seed: int,
    epoch: int,
    rank: int,
    first: int = 0,
) -> Iterator[Batch]:
    """Mix the images within each batch of an epoch. first: the number of the first batch. All random numbers
    depend on (seed, epoch, the batch's number, rank) alone."""
    for step, batch in enumerate(batches, first):
        batch = batch.with_shares()
        if batch.labels is None or batch.shares is None:
            raise ValueError("images without labels cannot be mixed")
        mix = mixing.draw(batch.images.shape[-1], random_state(seed, epoch, step, MIXING, rank))
        mix_images(batch.images, mix)
        labels, shares = mix_labels(batch.labels, batch.shares, mix)
        yield batch._replace(labels=labels, shares=shares)
