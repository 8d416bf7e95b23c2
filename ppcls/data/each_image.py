"""Work on every image of a dataset with threads, in order and in bounded memory."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from ppcls.data.dataset import Dataset

CHUNK = 1024  # images handed to the threads at a time

_Value = TypeVar("_Value")


def each_image(dataset: Dataset, work: Callable[[int], _Value], num_workers: int) -> Iterator[_Value]:
    """Yield `work` of each index of a dataset, in order. Images at a URL are fetched ahead."""
    count = len(dataset)
    with ThreadPoolExecutor(num_workers) as pool:
        for start in range(0, count, CHUNK):
            dataset.prefetch(range(start, min(start + 2 * CHUNK, count)))
            yield from pool.map(work, range(start, min(start + CHUNK, count)))
