"""A published file in the cache, and the files beside it: its metadata, its parts, and signs of life."""

import contextlib
import glob
import json
import os
import socket
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ppcls import distributed
from ppcls.progress import progress_bar

BEAT = 1.0  # seconds between two signs of life of the process that downloads
PATIENCE = 180.0  # seconds without such a sign; longer than any of its own waits


@dataclass(frozen=True)
class Request:
    """A published file, its place in the cache, and the files beside it. token: names this process's part."""

    urls: Sequence[str]
    sha256: str | None
    size: int | None
    path: Path
    token: str = field(default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}")

    def beside(self, suffix: str) -> Path:
        return self.path.with_name(self.path.name + suffix)

    @property
    def part(self) -> Path:
        return self.beside(f".{self.token}.part")

    @property
    def part_metadata(self) -> Path:
        return beside_part(self.part)

    @property
    def left_part(self) -> Path:
        """The part that an earlier attempt has given back."""
        return self.beside(".part")

    @property
    def metadata(self) -> Path:
        return self.beside(".json")

    def mismatch(self, sha256: str, size: int) -> str | None:
        """Return how a file of this hash and size differs from the published one, or None."""
        if self.size is not None and size != self.size:
            return f"it has {size:,} bytes, expected {self.size:,}"
        if self.sha256 is not None and not sha256.startswith(self.sha256.lower()):
            return f"its SHA-256 is {sha256}, expected {self.describe_hash()}"
        return None

    def describe_hash(self) -> str:
        sha256 = self.sha256 or ""
        return sha256 if len(sha256) == 64 else f"one that begins with {sha256}"


def beside_part(part: Path) -> Path:
    """Return the file that holds the metadata of a part."""
    return part.with_name(f"{part.name}.json")


class Progress:
    """Progress of a download: a bar on rank 0, and for waiting processes a file whose time stamp changes."""

    def __init__(self, request: Request):
        self.request = request
        self.bar: tqdm | None = None
        self.last_beat = 0.0

    def log(self, text: str) -> None:
        if distributed.rank() == 0:
            print(text, file=sys.stderr, flush=True)

    def beat(self) -> None:
        if time.monotonic() - self.last_beat > BEAT:
            for path in (self.request.metadata, self.request.part):
                with contextlib.suppress(OSError):
                    os.utime(path)
            self.last_beat = time.monotonic()

    def show(self, done: int, total: int | None) -> None:
        if self.bar is None:
            self.bar = progress_bar(total, self.request.path.name, unit="B", initial=done)
            self.bar.refresh()  # now: nothing may come for some time
        self.bar.total = total
        self.bar.update(done - self.bar.n)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def claim_part(request: Request) -> None:
    """Rename the part of an earlier attempt to this process's own name: the one given back, or the longest of
    those whose process was killed."""
    stranded = sorted(stranded_parts(request), key=size_of, reverse=True)
    for part in (request.left_part, *stranded):
        try:
            os.rename(part, request.part)
        except FileNotFoundError:  # there is none, or another process has it
            continue
        with contextlib.suppress(FileNotFoundError):
            os.replace(beside_part(part), request.part_metadata)
        return


def give_back_part(request: Request) -> None:
    """Leave the part, if there is one, to the next attempt."""
    if not request.part.exists() or size_of(request.part) < size_of(request.left_part):
        discard(request.part)
        return
    with contextlib.suppress(FileNotFoundError):
        os.replace(request.part_metadata, beside_part(request.left_part))
    os.replace(request.part, request.left_part)


def stranded_parts(request: Request) -> list[Path]:
    """Return the parts that nobody gave back: their process has ended, or has shown no life for long. Times
    are compared on the file system's own clock."""
    now = (stat_of(request.metadata) or (0, 0))[1] / 1e9
    host = f"{request.path.name}.{socket.gethostname()}-"
    found = []
    for name in glob.glob(f"{glob.escape(str(request.path))}.*-*-*.part"):
        path = Path(name)
        process = path.name.split("-")[-2]
        is_here = path.name.startswith(host) and process.isdecimal() and os.name == "posix"
        if is_here:
            is_stranded = not _is_alive(int(process))
        else:
            is_stranded = now - (stat_of(path) or (0, 0))[1] / 1e9 > PATIENCE
        if is_stranded and path != request.part:
            found.append(path)
    return found


def _is_alive(process: int) -> bool:
    """Return whether a process of this machine runs. One that was killed may still be in the table, as Z."""
    try:
        os.kill(process, 0)
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except ProcessLookupError:
        return False
    except OSError:  # it belongs to another user, or there is no /proc
        return True


def discard(part: Path) -> None:
    """Remove a part and its metadata."""
    part.unlink(missing_ok=True)
    beside_part(part).unlink(missing_ok=True)


def stat_of(path: Path) -> tuple[int, int] | None:
    """Return a file's size and the time of its last change in ns; None if there is no such file."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns


def size_of(path: Path) -> int:
    """Return a file's size in bytes, 0 if there is none."""
    return (stat_of(path) or (0, 0))[0]


def read_json(path: Path) -> dict[str, Any]:
    """Return the dictionary in a file, an empty one if the file is missing or incomplete."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a dictionary for `read_json`."""
    # Written in place: on Windows a file that another process is reading cannot be replaced.
    path.write_text(json.dumps(content), encoding="utf-8")
