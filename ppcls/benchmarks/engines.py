"""Time of an image on each engine, compared with the peak speed of the machine."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from ppcls.complexity import multiply_adds
from ppcls.distributed import cores
from ppcls.errors import ExportError
from ppcls.inference.artifact import Artifact, read_artifact
from ppcls.inference.engines import installed_engines, open_engine
from ppcls.inference.engines.eager import EagerEngine
from ppcls.inference.engines.engine import Engine
from ppcls.inference.engines.paddle import PADDLE, PADDLE_WITHOUT_ONEDNN
from ppcls.inference.predictor import Predictor
from ppcls.inference.timing import time_in_blocks

if TYPE_CHECKING:
    from paddle import nn


@dataclass(frozen=True)
class Row:
    """The figures of an engine. seconds: of a batch, in each round. share: of the machine's float32 peak.
    difference: between its outputs and those of the reference, ||a - b|| / ||b||."""

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
    model: "nn.Layer | None",
    predictor: Predictor,
    *,
    requested: Sequence[str] | None,
    beside: Sequence[Path],
    with_eager: bool,
    batch_size: int,
    rounds: int,
) -> dict[str, Any]:
    """Measure engines on an exported network, which take turns, and with `with_eager` the network itself.

    model: the network that was exported to `folder`; None: there is the export alone. Then nothing is
    compared with the peak, the reference of the differences is its first float engine in place of the eager
    network, and Paddle is not needed. predictor: over the export, with the engine that "auto" takes; its
    preprocessing decides the size. requested: engines, or None for all that are installed. beside: folders
    with Paddle programs of other projects, for the same engine.
    """
    artifact, threads = read_artifact(folder), cores()
    size = predictor.preprocessing.crop_size
    images = np.random.RandomState(0).normal(size=(batch_size, 3, size, size)).astype(np.float32)
    engines = _open_engines(folder, artifact, requested, beside, threads)
    if with_eager and model is not None:
        engines["eager"] = EagerEngine(model)
    reference = _reference(engines, model)
    engines[f"auto ({predictor.engine.name})"] = predictor.engine
    runs: dict[str, Callable[[], object]] = {
        name: partial(engine.run, images) for name, engine in engines.items()
    }
    if batch_size == 1:
        side = predictor.preprocessing.resize_short
        picture = np.random.RandomState(0).randint(0, 256, (side, side, 3), np.uint8)
        runs["predictor, of a picture in memory"] = lambda: predictor(picture)
    peak = {} if model is None else _peak(model, size)
    seconds = time_in_blocks(runs, rounds=rounds)
    expected = None if reference is None else engines[reference].run(images)
    rows = []
    for name, times in seconds.items():
        share = difference = None
        if peak:
            operations = 2 * peak["multiply_adds"] * batch_size
            share = operations / median(times) / (1e9 * peak["ceiling_gflops"])
        is_ours = name in engines and name != reference and not name.startswith("paddle, ")
        if expected is not None and is_ours:
            difference = relative_difference(engines[name].run(images), expected)
        rows.append(Row(name, times, share, difference))
    return {
        "model": artifact.model,
        "size": size,
        "batch_size": batch_size,
        "threads": threads,
        "rounds": rounds,
        "reference": reference,
        **peak,
        "rows": {row.name: row.to_dict() for row in rows},
    }


def _open_engines(
    folder: Path, artifact: Artifact, requested: Sequence[str] | None, beside: Sequence[Path], threads: int
) -> dict[str, Engine]:
    """Return the requested engines on the export, Paddle's also without oneDNN, and on the other programs."""
    engines: dict[str, Engine] = {
        name: open_engine(folder, artifact, name, threads=threads)
        for name in requested or installed_engines(artifact)
    }
    if "paddle" in engines:
        program = folder / next(f for f in artifact.files["paddle"] if f.endswith(PADDLE.reads))
        engines["paddle without oneDNN"] = PADDLE_WITHOUT_ONEDNN.load(program, threads, streams=1)
    for other in beside:
        engines[f"paddle, {other}"] = open_program(other, threads)
    return engines


def _reference(engines: dict[str, Engine], model: "nn.Layer | None") -> str | None:
    """Return the engine that the others are compared with."""
    if model is not None:
        return "eager" if "eager" in engines else None
    return next((name for name in engines if not name.endswith("-int8")), None)


def _peak(model: "nn.Layer", size: int) -> dict[str, Any]:
    """Return the multiply-adds of an image, and the machine's peak, 1e9 operations a second."""
    return {"multiply_adds": multiply_adds(model, size, size), "ceiling_gflops": float32_ceiling() / 1e9}


def relative_difference(output: np.ndarray, reference: np.ndarray) -> float:
    """Return ||output - reference|| / ||reference||."""
    return float(np.linalg.norm(output - reference) / np.linalg.norm(reference))


def open_program(folder: Path, threads: int) -> Engine:
    """Load another project's Paddle program: inference.json or inference.pdmodel with its parameters."""
    found = [path for ending in (".json", ".pdmodel") for path in folder.glob(f"*{ending}")]
    if not found:
        raise ExportError(f"{folder} holds no Paddle program. Expected: inference.json or inference.pdmodel.")
    return PADDLE.load(found[0], threads, streams=1)


def float32_ceiling(seconds: float = 1.0) -> float:
    """Return the floating-point operations per second of a large float32 matrix product on all threads, with
    the faster of numpy's and Paddle's libraries."""
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
