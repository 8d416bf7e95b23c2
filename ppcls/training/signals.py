"""SIGTERM and SIGINT as requests to stop. The training loop stops after the running step."""

import os
import signal
import time
from types import FrameType
from typing import Any

NUMBERS = (signal.SIGTERM, signal.SIGINT)
PATIENCE = 3.0  # seconds; the launcher sends its signal three times within one


class StopSignals:
    """Inside the context, the first signal is only noted in `number`. One that comes 3 seconds later or more
    ends the process at once.

    Enter it in the main thread, after the import of Paddle, which sets handlers of its own. After a signal
    the handlers stay: the launcher's next signal must not end a process that is leaving in order.
    """

    def __init__(self) -> None:
        self.number = 0
        self.since = 0.0
        self.earlier: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        self.earlier = {number: signal.signal(number, self.note) for number in NUMBERS}
        return self

    def __exit__(self, *_: object) -> None:
        if not self.number:
            for number, handler in self.earlier.items():
                signal.signal(number, handler)

    def note(self, number: int, _frame: FrameType | None = None) -> None:
        now = time.monotonic()
        if not self.number:
            self.number, self.since = number, now
            name = signal.Signals(number).name
            text = f"\n{name}: saving after this step, then leaving; again after {PATIENCE:g} s: at once\n"
            os.write(2, text.encode())  # print may be in the middle of another line
        elif now - self.since >= PATIENCE:
            os._exit(128 + number)
