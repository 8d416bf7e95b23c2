"""Load for a server, on raw keep-alive sockets, from a process of its own: see `LoadProcess` in serve.py.

Each line of the input is a run as JSON, and its answer one line. Needs nothing but Python's own library.
"""

import json
import selectors
import socket
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

CHUNK = 1 << 18  # bytes that are written at once
ANSWER = 1 << 14  # bytes that are read at once
PATIENCE = 60.0  # seconds without any answer, after which a run is given up
LOST = 0  # the status of a request whose connection broke

Row = tuple[float, float, float, int]  # seconds: planned, sent, answered; and the status


class Connection:
    """An HTTP/1.1 connection that is kept open. It has one request at a time."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.unsent, self.answer = memoryview(b""), bytearray()
        self.planned = self.sent = 0.0

    def start(self, request: bytes, planned: float) -> None:
        """Begin to send a request."""
        self.unsent, self.planned, self.sent = memoryview(request), planned, time.perf_counter()
        self.answer.clear()
        self.send()

    def send(self) -> None:
        """Send as much as the socket takes."""
        try:
            while self.unsent:
                self.unsent = self.unsent[self.socket.send(self.unsent[:CHUNK]) :]
        except BlockingIOError:
            pass
        except OSError:  # refused and closed while it was sent: the answer is there to be read
            self.unsent = memoryview(b"")

    def receive(self) -> int | None:
        """Read what there is. Return the status if the answer is complete, LOST if there will be none."""
        try:
            data = self.socket.recv(ANSWER)
        except BlockingIOError:
            return None
        except OSError:
            return LOST
        self.answer += data
        head, found, body = bytes(self.answer).partition(b"\r\n\r\n")
        if not found:
            return None if data else LOST
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        if len(body) < length:
            return None if data else LOST
        return int(head[9:12])

    @property
    def is_reusable(self) -> bool:
        """Whether the answer leaves the connection open, and the whole request was sent."""
        return not self.unsent and b"connection: close" not in bytes(self.answer[:1000]).lower()


class Load:
    """Sends requests to a server, and notes when each was planned, sent and answered. requests: used in
    turn."""

    def __init__(self, address: tuple[str, int], requests: list[bytes]) -> None:
        self.address, self.requests = address, requests
        self.rows: list[Row] = []
        self.idle: list[Connection] = []
        self.selector = selectors.DefaultSelector()
        self.busy = self.count = 0

    def closed(self, clients: int, seconds: float) -> None:
        """Each of so many clients sends its next request when it has its answer, for about so long."""
        end = time.perf_counter() + seconds
        for _ in range(clients):
            self._send(time.perf_counter())
        while self.busy:
            for connection in self._wait(PATIENCE):
                if time.perf_counter() < end:
                    self._send(time.perf_counter(), connection)
                else:
                    self.idle.append(connection)

    def open(self, planned: Iterable[float]) -> None:
        """Send a request at each planned time, in seconds from now and ascending, whatever became of the
        others."""
        start, waiting = time.perf_counter(), deque(planned)
        while waiting or self.busy:
            while waiting and start + waiting[0] <= time.perf_counter():
                self._send(start + waiting.popleft(), self.idle.pop() if self.idle else None)
            pause = start + waiting[0] - time.perf_counter() if waiting else PATIENCE
            self.idle.extend(self._wait(max(0.0, pause)))

    def close(self) -> None:
        for connection in self.idle:
            connection.socket.close()
        self.selector.close()

    def _send(self, planned: float, connection: Connection | None = None) -> None:
        connection = connection or Connection(self.address)
        connection.start(self.requests[self.count % len(self.requests)], planned)
        self.count += 1
        self.busy += 1
        self.selector.register(connection.socket, self._events(connection), connection)

    def _wait(self, seconds: float) -> Iterator[Connection]:
        """Yield the connections that have their answer and can be used again. Broken ones are replaced by
        new ones."""
        ready = self.selector.select(seconds)
        if not ready and seconds == PATIENCE:
            raise TimeoutError(f"the server gave no answer for {PATIENCE:.0f} s")
        for key, events in ready:
            connection: Connection = key.data
            if events & selectors.EVENT_WRITE:
                connection.send()
            status = connection.receive() if events & selectors.EVENT_READ else None
            if status is None:
                self.selector.modify(connection.socket, self._events(connection), connection)
                continue
            self.rows.append((connection.planned, connection.sent, time.perf_counter(), status))
            self.selector.unregister(connection.socket)
            self.busy -= 1
            if status == LOST or not connection.is_reusable:
                connection.socket.close()
                connection = Connection(self.address)
            yield connection

    def _events(self, connection: Connection) -> int:
        return selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.unsent else 0)


def request_of(path: str, body: bytes) -> bytes:
    """Return a request with these bytes as its body."""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/octet-stream\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def run(order: dict[str, Any], requests: list[bytes]) -> dict[str, Any]:
    """Make a run. Return its rows, the seconds that it took and those of the processor."""
    load = Load(("127.0.0.1", order["port"]), requests)
    start, used = time.perf_counter(), time.process_time()
    if "planned" in order:
        load.open(order["planned"])
    else:
        load.closed(order["clients"], order["seconds"])
    figures = {"seconds": time.perf_counter() - start, "processor_seconds": time.process_time() - used}
    load.close()
    rows = [
        (planned - start, sent - start, done - start, status) for planned, sent, done, status in load.rows
    ]
    return figures | {"rows": rows}


def main() -> None:
    """The first line has the files and the path of the requests."""
    first = json.loads(sys.stdin.readline())
    requests = [request_of(first["path"], Path(file).read_bytes()) for file in first["files"]]
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line), requests)), flush=True)


if __name__ == "__main__":
    main()
