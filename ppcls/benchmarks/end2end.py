"""Speed from image files to classes, compared with the engine alone: the cost of reading."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any

import numpy as np

from ppcls.data.dataset import Dataset
from ppcls.data.loader import eval_batch_indices
from ppcls.errors import DataError
from ppcls.inference.predictor import Predictor

EAGER_SECONDS = 20.0  # for the eager network in each round, which may not read all files


def measure_end2end(
    predictor: Predictor,
    eager: Predictor | None,
    files: Sequence[str],
    *,
    rounds: int,
    on_error: str = "fail",
) -> dict[str, Any]:
    """Measure images per second: of the engine alone on batches in memory, from files to classes, and with
    the eager network from files to classes if it is given. They take turns."""
    runs: dict[str, Callable[[], float]] = {
        "engine alone": lambda: _engine_only(predictor, len(files)),
        "end to end": lambda: _from_files(predictor, files, None, on_error),
    }
    if eager is not None:
        runs["eager network, end to end"] = lambda: _from_files(eager, files, EAGER_SECONDS, on_error)
    _engine_only(predictor, 1)  # warm up
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds):
        names = list(runs)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            time.sleep(0.2)
            rates[name].append(runs[name]())
    alone, whole = rates["engine alone"], rates["end to end"]
    figures: dict[str, Any] = {
        "engine": predictor.engine.name,
        "streams": predictor.engine.streams,
        "batch_size": predictor.batch_size,
        "files": len(files),
        "rounds": rounds,
        "images_per_second": {
            name: {"median": median(values), "min": min(values), "max": max(values)}
            for name, values in rates.items()
        },
        "share_of_engine": median(w / a for w, a in zip(whole, alone, strict=True)),
    }
    if eager is not None:
        plain = rates["eager network, end to end"]
        figures["times_the_eager_network"] = median(w / p for w, p in zip(whole, plain, strict=True))
    return figures


def _engine_only(predictor: Predictor, images: int) -> float:
    """Return images per second of the engine on all its streams, for about this number of images."""
    engine, size = predictor.engine, predictor.preprocessing.crop_size
    shape = (predictor.batch_size, 3, size, size)
    batch = np.random.RandomState(0).normal(size=shape).astype(np.float32)
    count = max(2 * engine.streams, images // len(batch))
    with ThreadPoolExecutor(engine.streams) as pool:
        start = time.perf_counter()
        for _ in pool.map(lambda _: engine.run(batch), range(count)):
            pass
        return count * len(batch) / (time.perf_counter() - start)


def _from_files(predictor: Predictor, files: Sequence[str], seconds: float | None, on_error: str) -> float:
    """Return images per second from files to classes. seconds: end after so long; None: read all files.
    on_error: data.on_error. Raises DataError if no file can be read."""
    batch_indices = eval_batch_indices(len(files), predictor.batch_size)
    done, start = 0, time.perf_counter()
    for batch, _ in predictor.run(Dataset.of_files(files), batch_indices, on_error=on_error):
        done += len(batch.indices)
        if seconds is not None and time.perf_counter() - start > seconds:
            break
    if not done:
        raise DataError(f"None of the {len(files)} files can be read; the first: {files[0]}.")
    return done / (time.perf_counter() - start)
