"""`engine="auto"`: measure the installed engines once for each machine and exported model, and remember."""

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ppcls.errors import ExportError
from ppcls.files import cache_dir, write_aside
from ppcls.inference.artifact import Artifact
from ppcls.inference.engines import installed_engines, open_engine
from ppcls.inference.timing import time_in_blocks
from ppcls.inference.versions import versions
from ppcls.processor import processor

ROUNDS = 2
SMALL_BYTES = (
    1 << 30
)  # of one format of an export; up to this size memory has room for several engines or streams

Log = Callable[[str], None]


def to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def streams_for(artifact: Artifact, threads: int) -> int:
    """Return the number of streams for many batches. Small networks: one stream for each thread. Large ones:
    one stream, since a single image uses all threads and each stream costs memory."""
    return threads if _is_small(artifact) else 1


def _is_small(artifact: Artifact) -> bool:
    return max(sum(sizes.values()) for sizes in artifact.files.values()) <= SMALL_BYTES


def rank_engines(folder: Path, artifact: Artifact, *, threads: int, log: Log = to_stderr) -> list[str]:
    """Return the installed engines that read this export, the fastest for single images first.

    Raises ExportError if there is none, or if all fail.
    """
    names = installed_engines(artifact)
    if not names:
        raise ExportError(
            f"No engine is installed that reads the formats in {folder} ({', '.join(artifact.files)}): "
            "pip install 'ppcls[onnx]' for ONNX Runtime, 'ppcls[openvino]' for OpenVINO."
        )
    if len(names) == 1:
        log(f"engine: {names[0]}, the only one here that reads this export")
        return names
    place = cache_dir() / "engines" / f"{_key(artifact, names, threads)}.json"
    times = _remembered(place)
    word = "remembered"
    if times is None:
        log(f"engine: measuring {', '.join(names)}, once for this machine and model")
        times, word = measure(folder, artifact, names, threads=threads, log=log), "measured"
        if len(times) == len(names):  # an engine that failed may work the next time
            _remember(place, times)
    ranking = sorted(times, key=lambda name: times[name])
    figures = ", ".join(f"{name} {1000 * times[name]:.2f} ms" for name in ranking)
    log(f"engine: {ranking[0]}, the fastest {word}: {figures} per image")
    return ranking


def measure(
    folder: Path, artifact: Artifact, names: Sequence[str], *, threads: int, log: Log
) -> dict[str, float]:
    """Return the seconds for one image of the nominal size on each engine. Engines that fail are left out,
    with a line for each. Raises the last one's ExportError if all fail.
    """
    size = artifact.crop_size
    images = np.random.RandomState(0).normal(size=(1, 3, size, size)).astype(np.float32)
    groups = [list(names)] if _is_small(artifact) else [[name] for name in names]
    times: dict[str, float] = {}
    failure = None
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
        if runs:
            times |= {name: min(blocks) for name, blocks in time_in_blocks(runs, rounds=ROUNDS).items()}
    if not times and failure is not None:
        raise failure
    return times


def _key(artifact: Artifact, names: Sequence[str], threads: int) -> str:
    """Return a hash of everything that the times depend on."""
    parts = [processor(), threads, list(names), versions(), artifact.parameters_sha256, artifact.output]
    parts += [artifact.crop_size, artifact.files, artifact.versions]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _remembered(place: Path) -> dict[str, float] | None:
    try:
        return {str(name): float(value) for name, value in json.loads(place.read_text()).items()} or None
    except (OSError, ValueError, AttributeError, TypeError):
        return None


def _remember(place: Path, times: dict[str, float]) -> None:
    try:
        with write_aside(place) as aside:
            aside.write_text(json.dumps(times))
    except OSError:  # a cache that cannot be written costs a measurement each time, nothing else
        return
