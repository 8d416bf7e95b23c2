"""Speed of places of data beside one another: files, local shards, shards at a URL."""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ppcls.benchmarks.data import MEAN, STD, spread
from ppcls.errors import DataError
from ppcls.processor import processor

if TYPE_CHECKING:
    import numpy as np

    from ppcls.data.dataset import Dataset

PASSES = 3  # of the pipeline in a turn, one after another as in a run of so many epochs
Run = Callable[["Dataset", range], None]  # reads a dataset in the orders of epochs


def measure_sources(
    datasets: Sequence["Dataset"],
    resize_short: int,
    crop_size: int,
    *,
    batch_size: int,
    num_workers: int,
    rounds: int,
) -> dict[str, Any]:
    """Measure bare reads and the whole pipeline, in the shuffled orders of epochs, of datasets that take
    turns: one pass of reads, or PASSES of the pipeline.

    Returns for each of them the images per second of wall time, and the ratio to the first one in the same
    round, as median, min and max over the rounds. Raises DataError for datasets of different lengths.
    """
    from ppcls.data.loader import load_batches, train_batch_indices
    from ppcls.data.transforms import EvalTransform
    from ppcls.preprocessing import Preprocessing

    if len({len(dataset) for dataset in datasets}) > 1:
        raise DataError(
            "The places hold different numbers of images, so they cannot be compared. Received: "
            f"{', '.join(str(len(dataset)) for dataset in datasets)}"
        )
    preprocessing = Preprocessing(resize_short, crop_size, "bilinear", False, MEAN, STD)

    def orders(dataset: "Dataset", epoch: int) -> "np.ndarray":
        return train_batch_indices(dataset.source, batch_size, seed=0, epoch=epoch)

    def read(dataset: "Dataset", epochs: range) -> None:
        for epoch in epochs:
            for indices in orders(dataset, epoch):
                for index in indices:
                    dataset.read(int(index))

    def pipeline(dataset: "Dataset", epochs: range) -> None:
        transform = EvalTransform(preprocessing)
        for epoch in epochs:
            batches = load_batches(
                dataset,
                orders(dataset, epoch),
                transform,
                preprocessing,
                num_workers=num_workers,
                later=orders(dataset, epoch + 1) if epoch + 1 in epochs else (),
            )
            for _ in batches:
                pass

    count = len(datasets[0]) // batch_size * batch_size
    return {
        "machine": processor(),
        "images": count,
        "rounds": rounds,
        "passes": PASSES,
        "reads": _rows(read, datasets, count, rounds, passes=1),
        "pipeline": _rows(pipeline, datasets, count, rounds, PASSES),
    }


def _rows(
    run: Run, datasets: Sequence["Dataset"], count: int, rounds: int, passes: int
) -> list[dict[str, Any]]:
    """Return the rates of each dataset. A pass over each warms up; the order within a round turns around."""
    seconds: list[list[float]] = [[] for _ in datasets]
    for number in range(rounds + 1):
        turns = list(enumerate(datasets))
        for place, dataset in turns if number % 2 else reversed(turns):
            epochs = range(1 + (number - 1) * passes, 1 + number * passes) if number else range(1)
            start = time.perf_counter()
            run(dataset, epochs)
            if number:
                seconds[place].append(time.perf_counter() - start)
    return [
        {
            "images_per_second": spread([passes * count / value for value in values]),
            "ratio": spread([first / value for first, value in zip(seconds[0], values, strict=True)]),
        }
        for values in seconds
    ]
