"""`engine="auto"`: measure the installed engines once for each machine and exported model, and remember;
`engine="measure"`: measure them anew."""

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from ppcls.errors import ExportError, PpclsError
from ppcls.files import cache_dir, write_json
from ppcls.inference.artifact import Artifact
from ppcls.inference.engines import ENGINES, installed_engines, int8_engine, open_engine
from ppcls.inference.timing import time_in_blocks
from ppcls.inference.versions import versions
from ppcls.processor import has_wide_int8_sums, processor

ROUNDS = 2  # of blocks at a time, and ...
TRIES = 3  # ... how often such rounds are added while their halves disagree on the fastest ...
TIE = 1.1  # ... by more than this factor
SMALL_BYTES = 1 << 30  # of one format; up to this size memory has room for several engines or streams

Log = Callable[[str], None]
Precision = Literal["float", "int8", "fastest"]


def to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def streams_for(artifact: Artifact, threads: int) -> int:
    """Return the number of streams for many batches. Small networks: one stream for each thread. Large ones:
    one stream, since a single image uses all threads and each stream costs memory."""
    return threads if _is_small(artifact) else 1


def _is_small(artifact: Artifact) -> bool:
    return max(sum(sizes.values()) for sizes in artifact.files.values()) <= SMALL_BYTES


def rank_engines(
    folder: Path,
    artifact: Artifact,
    *,
    threads: int,
    log: Log = to_stderr,
    anew: bool = False,
    precision: Precision = "float",
) -> list[str]:
    """Return the installed engines that read this export, the fastest for single images first.

    anew: measure them even if an earlier measurement is remembered. precision: "float" leaves int8 forms out;
    with the others they are measured beside the float ones. Raises ExportError if there is none, or if all
    fail.
    """
    names = _of_precision(installed_engines(artifact), artifact, precision, log)
    if not names:
        raise ExportError(
            f"No engine is installed that reads the formats in {folder} ({', '.join(artifact.files)}): "
            "pip install 'ppcls[onnx]' for ONNX Runtime, 'ppcls[openvino]' for OpenVINO."
        )
    if len(names) == 1:
        log(f"engine: {names[0]}, the only one here that reads this export")
        return names
    key = _key(artifact, names, threads)
    times = None if anew else _remembered(key)
    word = "remembered (--engine measure measures anew)"
    if times is None:
        log(f"engine: measuring {', '.join(names)}, once for this machine and model")
        (times, is_stable), word = measure(folder, artifact, names, threads=threads, log=log), "measured"
        if not is_stable:
            log("note: the times vary, so another program may be running: the next run measures anew")
        elif len(times) == len(names):  # one that failed may work the next time
            _remember(key, times)
    ranking = sorted(times, key=lambda name: times[name])
    figures = ", ".join(f"{name} {1000 * times[name]:.2f} ms" for name in ranking)
    log(f"engine: {ranking[0]}, the fastest {word}: {figures} per image")
    if precision != "float":
        _log_precision(ranking, times, artifact, log)
    return ranking


def _of_precision(names: list[str], artifact: Artifact, precision: Precision, log: Log) -> list[str]:
    """Return the engines that a precision allows. Those of int8 forms that this processor would compute
    wrongly are left out too, with a line."""
    floats = [name for name in names if not ENGINES[name].is_int8]
    if precision == "float":
        if len(floats) < len(names):
            log("note: this export has int8 forms too; --precision fastest takes one where it is faster")
        return floats
    if note := wrong_processor(artifact):
        log(f"note: without int8: {note}")
        return floats
    return names


def wrong_processor(artifact: Artifact) -> str | None:
    """Return why this processor would compute the int8 forms of an export wrongly, or None."""
    is_for_any = all(report.made_for == "any" for report in artifact.int8.values())
    if is_for_any or has_wide_int8_sums():
        return None
    return (
        "this processor has neither VNNI nor AMX, for which the int8 forms were made, and their sums would "
        "overflow. Export with --int8-for any."
    )


def _log_precision(ranking: list[str], times: dict[str, float], artifact: Artifact, log: Log) -> None:
    """Log which precision is taken, and why."""
    best = {is_int8: [n for n in ranking if ENGINES[n].is_int8 == is_int8][:1] for is_int8 in (False, True)}
    if not best[True]:
        log("precision: float; no int8 form runs here")
        return
    (name,) = best[True]
    if not best[False]:
        log("precision: int8; no float form runs here")
        return
    ratio = times[best[False][0]] / times[name]
    if ranking[0] == name:
        log(f"precision: int8, {ratio:.2f} times as fast as float here; {_agreement(name, artifact)}")
    else:
        log(f"precision: float; int8 takes {1 / ratio:.2f} times as long here (--engine {name} runs it)")


def _agreement(engine: str, artifact: Artifact) -> str:
    """Return how often the int8 form that an engine reads gives the class of the float network."""
    kind = next(kind for kind in artifact.int8 if int8_engine(kind) == engine)
    report = artifact.int8[kind]
    low, high = report.interval
    return f"the same class for {report.agreement:.4f} of {report.tested} pictures ({low:.4f} to {high:.4f})"


def measure(
    folder: Path, artifact: Artifact, names: Sequence[str], *, threads: int, log: Log
) -> tuple[dict[str, float], bool]:
    """Return the seconds for one image of the nominal size on each engine, the least that a call took, and
    whether the fastest of them is certain. Engines that fail are left out, with a line for each. Raises the
    last one's ExportError if all fail.
    """
    size = artifact.crop_size
    count = artifact.batch_size or 1
    images = np.random.RandomState(0).normal(size=(count, 3, size, size)).astype(np.float32)
    groups = [list(names)] if _is_small(artifact) else [[name] for name in names]
    times: dict[str, float] = {}
    failure, is_stable = None, True
    for group in groups:
        runs = {}
        for name in group:
            try:
                engine = open_engine(folder, artifact, name, threads=threads)
                engine.run(images)
            except ExportError as error:
                failure = error
                log(f"note: {error}")
                continue
            runs[name] = lambda engine=engine: engine.run(images)
        blocks: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(TRIES if runs else 0):
            for name, minima in time_in_blocks(runs, rounds=ROUNDS, of=min).items():
                blocks[name] += minima
            if agrees := _agree(blocks):
                break
        is_stable = is_stable and (not runs or agrees)
        times |= {name: min(minima) / count for name, minima in blocks.items()}
    if not times and failure is not None:
        raise failure
    return times, is_stable


def _agree(blocks: dict[str, list[float]]) -> bool:
    """Return whether the engine that is the fastest over all rounds is so, or nearly, in the even ones and in
    the odd ones."""
    best = min(blocks, key=lambda name: min(blocks[name]))
    halves = [{name: min(times[half::2]) for name, times in blocks.items()} for half in (0, 1)]
    return all(half[best] <= TIE * min(half.values()) for half in halves)


def _key(artifact: Artifact, names: Sequence[str], threads: int) -> str:
    """Return a hash of everything that the times depend on."""
    parts = [processor(), threads, list(names), versions(), artifact.parameters_sha256, artifact.output]
    parts += [artifact.crop_size, artifact.files, artifact.versions]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _place(key: str) -> Path:
    return cache_dir() / "engines" / f"{key}.json"


def _remembered(key: str) -> dict[str, float] | None:
    try:
        return {
            str(name): float(value) for name, value in json.loads(_place(key).read_text()).items()
        } or None
    except (OSError, ValueError, AttributeError, TypeError):  # PpclsError is a ValueError
        return None


def _remember(key: str, times: dict[str, float]) -> None:
    try:
        write_json(_place(key), times)
    except (
        OSError,
        PpclsError,
    ):  # a cache that cannot be written costs a measurement each time, nothing else
        return
