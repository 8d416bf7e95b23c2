"""The access log: a line of JSON for each request, without its picture, its sender or other personal data."""

import json
import random
import re
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

CLIENT_LEFT = 499  # a status of the log and the figures only: the client closed its connection
_CAUSES = {
    400: "malformed",
    404: "unknown",
    405: "method",
    408: "slow_body",
    413: "too_large",
    415: "encoding",
    422: "unreadable",
    429: "queue_full",
    CLIENT_LEFT: "client_left",
    500: "internal",
    503: "unavailable",
    504: "deadline",
}
_ID = re.compile(r"[\x21-\x7e]{1,128}")
MOST_METHOD = 16  # characters that are kept of a method: the protocol has no limit
PAUSE = 0.2  # seconds between writes
WAITING = 10_000  # lines; if their reader stops, further ones are dropped, and counted


def cause_of(status: int) -> str:
    """Return the cause of an error in one word."""
    return _CAUSES.get(status, "other")


@dataclass
class Entry:
    """Entry of the log for one request. request_id: the client's X-Request-Id, or a new one. route: the
    pattern of the path. size: bytes of the body. waited: seconds in the queue. cause: of an error, see
    `cause_of`."""

    request_id: str
    method: str
    started: float = field(default_factory=time.monotonic)
    route: str | None = None
    model: str | None = None
    images: int | None = None
    size: int = 0
    waited: float | None = None
    status: int | None = None
    cause: str | None = None
    is_inference: bool = False

    @staticmethod
    def of(method: str, given_id: bytes | None) -> "Entry":
        text = (given_id or b"").decode("latin-1")
        request_id = text if _ID.fullmatch(text) else f"{random.getrandbits(128):032x}"
        return Entry(request_id, method[:MOST_METHOD])

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def to_dict(self) -> dict[str, Any]:
        values = {
            "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            "request_id": self.request_id,
            "method": self.method,
            "route": self.route,
            "status": self.status,
            "model": self.model,
            "images": self.images,
            "bytes": self.size or None,
            "milliseconds": round(1000 * self.seconds, 2),
            "queue_milliseconds": None if self.waited is None else round(1000 * self.waited, 2),
            "cause": self.cause,
        }
        return {name: value for name, value in values.items() if value is not None}


class AccessLog:
    """Writes entries to standard output, in a thread of its own, so that a slow reader stops no request, and
    from time to time, so that the thread seldom disturbs those that compute."""

    def __init__(self) -> None:
        self._waiting: deque[dict[str, Any]] = deque()
        self._dropped = 0
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._write, name="access log", daemon=True)
        self._thread.start()

    def add(self, values: dict[str, Any]) -> None:
        if len(self._waiting) < WAITING:
            self._waiting.append(values)
        else:
            self._dropped += 1

    def close(self, seconds: float = 2.0) -> None:
        """Write what waits, for some seconds at most."""
        self._is_closed.set()
        self._thread.join(seconds)

    def _write(self) -> None:
        is_last = False
        while not is_last:
            is_last = self._is_closed.wait(PAUSE)
            lines = [json.dumps(self._waiting.popleft()) + "\n" for _ in range(len(self._waiting))]
            dropped, self._dropped = self._dropped, 0
            if dropped:
                lines.append(json.dumps({"dropped_lines": dropped}) + "\n")
            sys.stdout.write("".join(lines))
            sys.stdout.flush()
