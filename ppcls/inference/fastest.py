"""`engine="auto"`: measure what is installed once for each machine and exported model, and remember it."""

import hashlib
import json
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ppcls.errors import ExportError
from ppcls.files import cache_dir, write_aside
from ppcls.inference.artifact import Artifact
from ppcls.inference.engines import Engine, candidates, open_engine
from ppcls.inference.timing import time_in_blocks
from ppcls.inference.versions import versions
from ppcls.processor import processor

ROUNDS = 2
SMALL_BYTES = 1 << 30  # of an export's one format: up to here several engines or streams have room in memory

Say = Callable[[str], None]


def to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def streams_for(artifact: Artifact, threads: int) -> int:
    """How many batches to run side by side where there are many. One on each thread, as nothing then waits
    for anything; but of large networks one image keeps all threads busy, and each stream costs memory."""
    return threads if _is_small(artifact) else 1


def _is_small(artifact: Artifact) -> bool:
    return max(sum(sizes.values()) for sizes in artifact.files.values()) <= SMALL_BYTES


class FallingBack:
    """An engine: the first of `names` that works. One that fails is replaced by the next, with a line."""

    def __init__(self, names: Sequence[str], opener: Callable[[str], Engine], say: Say) -> None:
        self._left, self._opener, self._say = list(names), opener, say
        self._lock = threading.Lock()
        self._engine = self._open_next(None)

    @property
    def name(self) -> str:
        return self._engine.name

    @property
    def streams(self) -> int:
        return self._engine.streams

    @property
    def batch_size(self) -> int | None:
        return self._engine.batch_size

    def run(self, images: np.ndarray) -> np.ndarray:
        while True:
            engine = self._engine
            try:
                return engine.run(images)
            except ExportError as error:
                with self._lock:
                    if self._engine is engine:  # else another thread has replaced it already
                        self._engine = self._open_next(error)

    def _open_next(self, reason: ExportError | None) -> Engine:
        while self._left:
            name = self._left.pop(0)
            if reason is not None:
                self._say(f"note: {reason} Going on with {name}.")
            try:
                return self._opener(name)
            except ExportError as error:
                reason = error
        raise reason or ExportError("There is no engine to open.")


def rank_engines(folder: Path, artifact: Artifact, *, threads: int, say: Say = to_stderr) -> list[str]:
    """The engines that are installed and read this export, the fastest for single images first.

    Raises ExportError where there is none, or where all fail.
    """
    names = candidates(artifact)
    if not names:
        raise ExportError(
            f"No engine is installed that reads what {folder} holds ({', '.join(artifact.files)}): "
            "pip install 'ppcls[onnx]' for ONNX Runtime, 'ppcls[openvino]' for OpenVINO."
        )
    if len(names) == 1:
        say(f"engine: {names[0]}, the only one here that reads this export")
        return names
    place = cache_dir() / "engines" / f"{_key(artifact, names, threads)}.json"
    times = _remembered(place)
    word = "remembered"
    if times is None:
        say(f"engine: measuring {', '.join(names)}, once for this machine and model")
        times, word = measure(folder, artifact, names, threads=threads, say=say), "measured"
        if len(times) == len(names):  # what failed may be repaired, or find more memory, by the next time
            _remember(place, times)
    ranking = sorted(times, key=lambda name: times[name])
    figures = ", ".join(f"{name} {1000 * times[name]:.2f} ms" for name in ranking)
    say(f"engine: {ranking[0]}, the fastest {word}: {figures} an image")
    return ranking


def measure(
    folder: Path, artifact: Artifact, names: Sequence[str], *, threads: int, say: Say
) -> dict[str, float]:
    """Seconds for one image of the nominal size. Those that fail are left out, with a line for each.

    Raises the last one's ExportError where all fail.
    """
    size = artifact.preprocessing.crop_size
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
                say(f"note: {error}")
                continue
            runs[name] = lambda engine=engine: engine.run(images)
        if runs:
            times |= {name: min(blocks) for name, blocks in time_in_blocks(runs, rounds=ROUNDS).items()}
    if not times and failure is not None:
        raise failure
    return times


def _key(artifact: Artifact, names: Sequence[str], threads: int) -> str:
    """Of all that the outcome depends on."""
    facts = [processor(), threads, list(names), versions(), artifact.parameters_sha256, artifact.output]
    facts += [artifact.preprocessing.crop_size, artifact.files, artifact.versions]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


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
