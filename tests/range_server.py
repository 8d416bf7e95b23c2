"""An HTTP server of files that answers range requests, slowly or wrongly as told, in a process of its own.

python tests/range_server.py FOLDER [LATENCY_SECONDS] [BYTES_PER_SECOND]

It prints its port and, when it is ended by SIGTERM, the processor time that it took. FOLDER/faults.json may
say how it fails: {"cut": N} cuts off the next N answers, "busy": N answers 503, "whole": true ignores ranges,
"shifted": true answers with other bytes, "forbidden": true refuses, "log": true writes each request's range
into FOLDER/requests.txt.
"""

import hashlib
import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FOLDER = Path(sys.argv[1]).resolve()
LATENCY, RATE = (float(sys.argv[i]) if len(sys.argv) > i else 0.0 for i in (2, 3))
LOCK = threading.Lock()
CHUNK = 1 << 20
line_is_free = 0.0  # since when: all connections share one line


def take(name: str) -> bool:
    """Return whether a fault is on, and count it down."""
    path = FOLDER / "faults.json"
    with LOCK:
        faults = json.loads(path.read_text()) if path.exists() else {}
        value = faults.get(name)
        if value and value is not True:
            path.write_text(json.dumps(faults | {name: value - 1}))
    return bool(value)


def wait_for_line(size: int) -> None:
    """Wait as long as the line takes for these bytes, after those of other connections."""
    global line_is_free
    if not RATE:
        return
    with LOCK:
        line_is_free = max(line_is_free, time.perf_counter()) + size / RATE
        pause = line_is_free - time.perf_counter()
    time.sleep(max(pause, 0))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        time.sleep(LATENCY)
        path = FOLDER / self.path.lstrip("/")
        if take("forbidden"):
            return self.fail(403)
        if not path.is_file():
            return self.fail(404)
        if take("busy"):
            return self.fail(503)
        status = path.stat()
        etag = f'"{hashlib.sha256(f"{status.st_size} {status.st_mtime_ns}".encode()).hexdigest()[:16]}"'
        if self.headers.get("If-Match", etag) != etag:
            return self.fail(412)
        first, last = 0, status.st_size - 1
        span = self.headers.get("Range")
        if span and not take("whole"):
            first, last = (int(part) for part in span.removeprefix("bytes=").split("-"))
            last = min(last, status.st_size - 1)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{status.st_size}")
        else:
            self.send_response(200)
        if with_body and take("log"):
            with LOCK, (FOLDER / "requests.txt").open("a") as file:
                file.write(f"{path.name} {first} {last}\n")
        self.send_header("ETag", etag)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        if with_body:
            self.send_file(path, first, last - first + 1)

    def send_file(self, path: Path, first: int, size: int) -> None:
        """Send a part of a file from the page cache: the cores are for the clients."""
        is_cut = take("cut")
        start, end = first, first + (size // 2 if is_cut else size)
        with path.open("rb") as file:
            if take("shifted"):
                self.wfile.write(b"shifted")
                end -= 7
            while start < end:
                part = min(CHUNK, end - start)
                wait_for_line(part)
                stop = start + part
                while start < stop:
                    start += os.sendfile(self.connection.fileno(), file.fileno(), start, stop - start)
        if is_cut:
            self.close_connection = True
            self.connection.close()

    def fail(self, code: int) -> None:
        self.send_response(code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit())
    try:
        server.serve_forever()
    finally:
        times = os.times()
        print(f"processor: {times.user + times.system:.1f} s, {os.cpu_count()} cores", flush=True)
