"""From files on disk to classes: what reading costs beside the engine."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any

import numpy as np

from ppcls.data.dataset import Dataset
from ppcls.data.loader import eval_batch_indices
from ppcls.inference.classify import run_batches
from ppcls.inference.engines import Engine
from ppcls.preprocessing import Preprocessing

EAGER_SECONDS = 20.0  # of the plain network in each round, on as many files as it takes


def measure_end2end(
    engine: Engine,
    eager: Engine | None,
    files: Sequence[str],
    spec: Preprocessing,
    *,
    batch_size: int,
    eager_batch_size: int,
    num_workers: int,
    rounds: int,
) -> dict[str, Any]:
    """Images a second: the engine alone on batches in memory, and everything from the files; the same for
    the plain network where it is given. They take turns."""
    shape = (batch_size, 3, spec.crop_size, spec.crop_size)
    images = np.random.RandomState(0).normal(size=shape).astype(np.float32)

    def engine_only() -> float:
        count = max(2 * engine.streams, len(files) // batch_size)
        with ThreadPoolExecutor(engine.streams) as pool:
            start = time.perf_counter()
            for _ in pool.map(lambda _: engine.run(images), range(count)):
                pass
            return count * batch_size / (time.perf_counter() - start)

    def from_files(runner: Engine, size: int, seconds: float | None) -> float:
        order = eval_batch_indices(len(files), size)
        done, start = 0, time.perf_counter()
        for batch, _ in run_batches(
            runner, Dataset.of_files(files), order, spec, num_workers=num_workers, on_error="fail"
        ):
            done += len(batch.indices)
            if seconds is not None and time.perf_counter() - start > seconds:
                break
        return done / (time.perf_counter() - start)

    runs: dict[str, Callable[[], float]] = {
        "engine alone": engine_only,
        "end to end": lambda: from_files(engine, batch_size, None),
    }
    if eager is not None:
        runs["plain network, end to end"] = lambda: from_files(eager, eager_batch_size, EAGER_SECONDS)
    engine.run(images)
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds):
        names = list(runs)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            time.sleep(0.2)
            rates[name].append(runs[name]())
    alone, whole = rates["engine alone"], rates["end to end"]
    figures: dict[str, Any] = {
        "engine": engine.name,
        "streams": engine.streams,
        "batch_size": batch_size,
        "files": len(files),
        "rounds": rounds,
        "images_per_second": {
            name: {"median": median(values), "min": min(values), "max": max(values)}
            for name, values in rates.items()
        },
        "share_of_engine": median(w / a for w, a in zip(whole, alone, strict=True)),
    }
    if eager is not None:
        plain = rates["plain network, end to end"]
        figures["times_the_plain_network"] = median(w / p for w, p in zip(whole, plain, strict=True))
    return figures
