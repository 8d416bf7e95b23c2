"""A progress bar on a terminal, and a line from time to time elsewhere."""

import sys
from typing import TYPE_CHECKING

from ppcls import distributed

if TYPE_CHECKING:
    from tqdm import tqdm


class _Lines:
    """Where there is no terminal, each state of the bar becomes a line of its own."""

    def write(self, text: str) -> None:
        line = text.strip("\r\n ")
        if line:
            print(line, file=sys.stderr, flush=True)

    def flush(self) -> None:
        pass


def progress_bar(
    total: int | None, description: str, seconds: float = 10.0, unit: str = "image", initial: int = 0
) -> "tqdm":
    """A bar over `total` units for rank 0, silent for the others; a line each `seconds` off a terminal."""
    from tqdm import tqdm

    is_terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        desc=description,
        unit=unit,
        unit_scale=unit == "B",
        initial=initial,
        file=sys.stderr if is_terminal else _Lines(),
        mininterval=0.1 if is_terminal else seconds,
        miniters=None if is_terminal else 1,
        dynamic_ncols=is_terminal,
        leave=not is_terminal,
        disable=distributed.rank() != 0,
    )
