"""An HTTP server of files that answers range requests, slowly or wrongly as told, in a process of its own.

python tests/range_server.py FOLDER [LATENCY_SECONDS] [BYTES_PER_SECOND]

It prints its port. FOLDER/faults.json may say how it fails: {"cut": N} cuts off the next N answers,
"busy": N answers 503, "whole": true ignores ranges, "shifted": true answers with other bytes, "forbidden":
true refuses, "log": true writes each request's range into FOLDER/requests.txt.
"""

import hashlib
import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FOLDER = Path(sys.argv[1]).resolve()
LATENCY, RATE = (float(sys.argv[i]) if len(sys.argv) > i else 0.0 for i in (2, 3))
LOCK, LINE = threading.Lock(), threading.Lock()
CHUNK = 1 << 16


def take(name: str) -> bool:
    """Return whether a fault is on, and count it down."""
    path = FOLDER / "faults.json"
    with LOCK:
        faults = json.loads(path.read_text()) if path.exists() else {}
        value = faults.get(name)
        if value and value is not True:
            path.write_text(json.dumps(faults | {name: value - 1}))
    return bool(value)


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
        is_cut = take("cut")
        with path.open("rb") as file:
            file.seek(first + (7 if take("shifted") else 0))
            data = file.read(size).ljust(size, b"\0")
        for start in range(0, size // 2 if is_cut else size, CHUNK):
            part = data[start : start + CHUNK]
            if RATE:
                with LINE:  # one line for all connections
                    time.sleep(len(part) / RATE)
            self.wfile.write(part)
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
    server.serve_forever()
