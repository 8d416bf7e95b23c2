"""An engine that replaces itself by the next one if it fails."""

import threading
from collections.abc import Callable

import numpy as np

from ppcls.errors import ExportError
from ppcls.inference.engines.engine import Engine


class FallbackEngine:
    """The first engine of `names` that works. One that fails is taken off the list and replaced by the next.

    names: engines, the preferred first; shared by all that open engines of one export, so that none of them
    tries what has failed. Raises ExportError if none can be opened.
    """

    def __init__(
        self, names: list[str], open_engine: Callable[[str], Engine], log: Callable[[str], None]
    ) -> None:
        self._names, self._open_engine, self._log = names, open_engine, log
        self._lock = threading.Lock()
        self._engine = self._open_first(names, None)

    @property
    def current(self) -> Engine:
        """The engine that works now. It is not replaced if it fails outside of this one's `run_all`."""
        return self._engine

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
        return self.run_all(images)[0]

    def run_all(self, images: np.ndarray) -> tuple[np.ndarray, ...]:
        while True:
            engine = self._engine
            try:
                return engine.run_all(images)
            except ExportError as error:
                with self._lock:
                    if self._engine is engine:  # else another thread has replaced it already
                        others = [name for name in self._names if name != engine.name]
                        self._engine = self._open_first(others, error)

    def _open_first(self, names: list[str], reason: ExportError | None) -> Engine:
        """Open the first of `names` that can be opened, and take the others before it off the list.

        If none can, the list stays as it is: an engine that failed on a large batch can still run small ones.
        """
        for number, name in enumerate(names):
            if reason is not None:
                self._log(f"note: {reason} Continuing with {name}.")
            try:
                engine = self._open_engine(name)
            except ExportError as error:
                reason = error
            else:
                self._names[:] = names[number:]
                return engine
        raise reason or ExportError("There is no engine to open.")
