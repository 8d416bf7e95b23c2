"""The interface of all engines, and the record that describes each of them."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from typing import Protocol

import numpy as np

from ppcls.errors import DataError, ExportError, PpclsError, first_line
from ppcls.inference.artifact import shape_text

# One function returns the network's outputs, or all of them with the embeddings, if it has these.
RunBatch = Callable[[np.ndarray], np.ndarray | tuple[np.ndarray, ...]]
ANY_SHAPE = (None, 3, None, None)
_opened_in: set[int] = set()  # processes, this one and those that it was forked from, that opened engines
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

    def run_all(self, images: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return what `run` returns and, if the network gives them, the embeddings float32 [N, D]."""
        ...


class LoadedEngine:
    """An Engine with one function for each stream. process: the only one that it runs in, None for any.
    shape: of the images, None where any number is taken."""

    def __init__(
        self,
        name: str,
        functions: Sequence[RunBatch],
        batch_size: int | None = None,
        process: int | None = None,
        shape: Sequence[int | None] = ANY_SHAPE,
    ) -> None:
        self.name, self.streams, self.batch_size = name, len(functions), batch_size
        self._process, self._shape = process, shape
        self._idle: SimpleQueue[RunBatch] = SimpleQueue()
        for function in functions:
            self._idle.put(function)

    def run(self, images: np.ndarray) -> np.ndarray:
        return self.run_all(images)[0]

    def run_all(self, images: np.ndarray) -> tuple[np.ndarray, ...]:
        if images.dtype != np.float32 or images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
            raise DataError(
                "An engine takes float32 [N, 3, H, W], normalised, with N, H and W at least 1. Received: "
                f"{images.dtype} {list(images.shape)}"
            )
        if any(size not in (None, given) for size, given in zip(self._shape, images.shape, strict=True)):
            raise DataError(
                f"This export takes images {shape_text(self._shape)} only. Received: {list(images.shape)}. "
                "Exported without --batch-size and --image-size, it takes any."
            )
        if self._process not in (None, os.getpid()):
            raise _fork_error(self.name)
        function = self._idle.get()
        try:
            outputs = function(np.ascontiguousarray(images))
            return outputs if isinstance(outputs, tuple) else (outputs,)
        except Exception as error:  # each engine has its own exceptions
            raise ExportError(
                f"The engine {self.name} failed on a batch of {list(images.shape)}: {first_line(error)} "
                "If memory ran out, lower the batch size; otherwise try another engine."
            ) from error
        finally:
            self._idle.put(function)


def _fork_error(name: str) -> PpclsError:
    # not an ExportError: no other engine could be opened in its place
    return PpclsError(
        f"The engine {name} cannot run in this process, which was forked from one that had opened an engine: "
        "the threads are not in the copy. Open the predictor in each process, and in none before the fork; "
        "or start the processes with multiprocessing.get_context('spawn'), and pass them the predictor."
    )


class Opener(Protocol):
    def __call__(self, file: Path, threads: int, streams: int) -> tuple[list[RunBatch], bool]:
        """Return one function for each stream of `threads` threads, and whether they run on the CPU."""
        ...


@dataclass(frozen=True)
class EngineType:
    """An engine that runs exported networks. Its name is that of its Python module, behind which "-int8"
    stands if it runs the int8 forms of networks.

    reads: endings of the files that it can open, the best first. extra: of setup.py, which brings it.
    packages: whose versions an export records. survives_fork: one that was opened runs in a forked process
    too, and one of single threads can be opened there. is_int8: it reads int8 forms, and nothing else.
    """

    name: str
    reads: tuple[str, ...]
    extra: str
    packages: tuple[str, ...]
    open: Opener
    survives_fork: bool = False
    is_int8: bool = False

    @property
    def is_installed(self) -> bool:
        return find_spec(self.name.removesuffix("-int8")) is not None

    def load(
        self, file: Path, threads: int, streams: int, shape: Sequence[int | None] = ANY_SHAPE
    ) -> LoadedEngine:
        """Load an exported network that takes images of this shape. Raises ExportError if the engine cannot,
        PpclsError if it would hang, because this process was forked from one that had opened an engine."""
        if _opened_in - {os.getpid()} and not (self.survives_fork and threads == 1):
            raise _fork_error(self.name)
        _opened_in.add(os.getpid())
        try:
            functions, is_on_cpu = self.open(file, threads, streams)
        except Exception as error:  # each engine has its own exceptions
            raise ExportError(f"The engine {self.name} cannot load {file}: {first_line(error)}") from error
        process = None if self.survives_fork else os.getpid()
        return LoadedEngine(self.name, functions, CPU_BATCH if is_on_cpu else None, process, shape)
