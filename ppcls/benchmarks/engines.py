"""How long an image takes: the engines side by side, with what the machine could do at best."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from ppcls.errors import ExportError
from ppcls.inference.artifact import Artifact
from ppcls.inference.engines import Engine, candidates, load_paddle_program, open_engine
from ppcls.inference.fastest import Say
from ppcls.inference.predictor import Predictor
from ppcls.inference.timing import time_in_blocks


@dataclass(frozen=True)
class Row:
    """Seconds a batch in each round. share: of the machine's float32 ceiling. difference: of the outputs to
    the plain network's, ||a - b|| / ||b||."""

    name: str
    seconds: list[float]
    share: float | None
    difference: float | None

    def to_dict(self) -> dict[str, Any]:
        spread = {"median": median(self.seconds), "min": min(self.seconds), "max": max(self.seconds)}
        milliseconds = {key: 1000 * value for key, value in spread.items()}
        return {"milliseconds": milliseconds, "share_of_ceiling": self.share, "difference": self.difference}


def measure_engines(
    folder: Path,
    artifact: Artifact,
    eager: Engine | None,
    *,
    wanted: Sequence[str] | None,
    beside: Sequence[Path],
    batch_size: int,
    threads: int,
    rounds: int,
    multiply_adds: int | None,
    say: Say,
) -> dict[str, Any]:
    """wanted: engines, or None for all that are installed. eager: the plain network, too, if it is given.
    beside: folders with Paddle programs of other projects, run by the same engine. multiply_adds: of an
    image."""
    size = artifact.preprocessing.crop_size
    images = np.random.RandomState(0).normal(size=(batch_size, 3, size, size)).astype(np.float32)
    opener = partial(open_engine, folder, artifact, threads=threads)
    engines: dict[str, Engine] = {name: opener(name) for name in wanted or candidates(artifact)}
    predictor = Predictor(folder, threads=threads, say=say)
    if "paddle" in engines:
        engines["paddle without oneDNN"] = opener("paddle", onednn=False)
    for other in beside:
        engines[f"paddle, {other}"] = open_program(other, threads)
    if eager is not None:
        engines["eager"] = eager
    engines[f"auto ({predictor.engine.name})"] = predictor.engine
    runs: dict[str, Callable[[], object]] = {
        name: partial(engine.run, images) for name, engine in engines.items()
    }
    if batch_size == 1:
        side = artifact.preprocessing.resize_short
        picture = np.random.RandomState(0).randint(0, 256, (side, side, 3), np.uint8)
        runs["predictor, of a picture in memory"] = lambda: predictor(picture)
    ceiling = float32_ceiling()
    seconds = time_in_blocks(runs, rounds=rounds)
    reference = eager.run(images) if eager is not None else None
    rows = []
    for name, times in seconds.items():
        share = difference = None
        if multiply_adds is not None:
            share = 2 * multiply_adds * batch_size / median(times) / ceiling
        if reference is not None and name in engines and name != "eager":
            output = engines[name].run(images)
            if output.shape == reference.shape and not name.startswith("paddle, "):
                difference = float(np.linalg.norm(output - reference) / np.linalg.norm(reference))
        rows.append(Row(name, times, share, difference))
    return {
        "model": artifact.model,
        "size": size,
        "batch_size": batch_size,
        "threads": threads,
        "rounds": rounds,
        "multiply_adds": multiply_adds,
        "ceiling_gflops": ceiling / 1e9,
        "rows": {row.name: row.to_dict() for row in rows},
    }


def open_program(folder: Path, threads: int) -> Engine:
    """A Paddle program of another project: inference.json or inference.pdmodel with its parameters."""
    found = [path for ending in (".json", ".pdmodel") for path in folder.glob(f"*{ending}")]
    if not found:
        raise ExportError(f"{folder} holds no Paddle program (inference.json or inference.pdmodel).")
    return load_paddle_program(found[0], threads)


def float32_ceiling(seconds: float = 1.0) -> float:
    """Floating-point operations a second of a large float32 matrix product on all threads: the faster of
    numpy's and Paddle's libraries."""
    import paddle

    size = 2048
    a = np.random.RandomState(0).normal(size=(size, size)).astype(np.float32)
    tensor = paddle.to_tensor(a)

    def with_paddle() -> None:
        paddle.matmul(tensor, tensor).numpy()

    best = float("inf")
    for run in (lambda: a @ a, with_paddle):
        run()
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            start = time.perf_counter()
            run()
            best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
