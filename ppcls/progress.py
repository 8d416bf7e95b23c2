"""Notes and progress beside the results: a bar on a terminal, a line from time to time elsewhere."""

import sys
from typing import TYPE_CHECKING

from ppcls import distributed

if TYPE_CHECKING:
    from tqdm import tqdm


def note(text: str) -> None:
    """Print a note on the error stream, once for all processes."""
    if distributed.rank() == 0:
        print(f"note: {text}", file=sys.stderr, flush=True)


class _Lines:
    """Write each state of the bar as a line of its own, for output that is not a terminal."""

    def write(self, text: str) -> None:
        line = text.strip("\r\n ")
        if line:
            print(line, file=sys.stderr, flush=True)

    def flush(self) -> None:
        pass


def progress_bar(
    total: int | None,
    description: str,
    seconds: float = 10.0,
    unit: str = "image",
    initial: int = 0,
    delay: float = 0.0,
) -> "tqdm":
    """Return a progress bar over `total` units. It is silent on all ranks but 0, and before its first unit,
    so that an error before it stands alone.

    seconds: time between two lines if the output is not a terminal. initial: units that are done already.
    delay: seconds before it appears; work that ends earlier shows none.
    """
    from tqdm import tqdm

    class Bar(tqdm):
        monitor_interval = 0  # with miniters=1 tqdm's thread, one for each class, has nothing to do

        def close(self) -> None:
            if self.n == initial:
                self.leave = False
            super().close()

    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    bar = Bar(
        total=total,
        desc=description,
        unit=unit,
        unit_scale=unit == "B",
        initial=initial,
        delay=max(delay, 1e-9),  # 0 would draw it now
        file=sys.stderr if is_terminal else _Lines(),
        mininterval=0.1 if is_terminal else seconds,
        miniters=1,
        dynamic_ncols=is_terminal,
        leave=not is_terminal,
        disable=distributed.rank() != 0,
    )
    bar.delay = delay  # work that ends early shows its last state
    return bar
