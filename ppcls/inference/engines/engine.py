"""The interface of all engines, and the record that describes each of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from typing import Protocol

import numpy as np

from ppcls.errors import DataError, ExportError, first_line

RunBatch = Callable[[np.ndarray], np.ndarray]
CPU_BATCH = 4  # images; larger batches leave the processor's caches and are up to a fifth slower


class Engine(Protocol):
    """Runs batches, as many side by side as it has streams; `run` may be called from as many threads.

    batch_size: the number of images for which it is fastest; None: the larger, the better.
    """

    @property
    def name(self) -> str: ...

    @property
    def streams(self) -> int: ...

    @property
    def batch_size(self) -> int | None: ...

    def run(self, images: np.ndarray) -> np.ndarray:
        """Run float32 [N, 3, H, W] to float32 [N, num_classes]. Raises DataError for another kind of array,
        ExportError if the engine fails."""
        ...


class LoadedEngine:
    """An Engine with one function for each stream."""

    def __init__(self, name: str, functions: Sequence[RunBatch], batch_size: int | None = None) -> None:
        self.name, self.streams, self.batch_size = name, len(functions), batch_size
        self._idle: SimpleQueue[RunBatch] = SimpleQueue()
        for function in functions:
            self._idle.put(function)

    def run(self, images: np.ndarray) -> np.ndarray:
        if images.dtype != np.float32 or images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
            raise DataError(
                "An engine takes float32 [N, 3, H, W], normalised, with N, H and W at least 1. Received: "
                f"{images.dtype} {list(images.shape)}"
            )
        function = self._idle.get()
        try:
            return function(np.ascontiguousarray(images))
        except Exception as error:  # each engine has its own exceptions
            raise ExportError(
                f"The engine {self.name} failed on a batch of {list(images.shape)}: {first_line(error)} "
                "If memory ran out, lower the batch size; otherwise try another engine."
            ) from error
        finally:
            self._idle.put(function)


class Opener(Protocol):
    def __call__(self, file: Path, threads: int, streams: int) -> tuple[list[RunBatch], bool]:
        """Return one function for each stream of `threads` threads, and whether they run on the CPU."""
        ...


@dataclass(frozen=True)
class EngineType:
    """An engine that runs exported networks. Its name is that of its Python module.

    reads: endings of the files that it can open, the best first. extra: of setup.py, which brings it.
    packages: whose versions an export records.
    """

    name: str
    reads: tuple[str, ...]
    extra: str
    packages: tuple[str, ...]
    open: Opener

    @property
    def is_installed(self) -> bool:
        return find_spec(self.name) is not None

    def load(self, file: Path, threads: int, streams: int) -> LoadedEngine:
        """Load an exported network. Raises ExportError if the engine cannot."""
        try:
            functions, is_on_cpu = self.open(file, threads, streams)
        except Exception as error:  # each engine has its own exceptions
            raise ExportError(f"The engine {self.name} cannot load {file}: {first_line(error)}") from error
        return LoadedEngine(self.name, functions, CPU_BATCH if is_on_cpu else None)
