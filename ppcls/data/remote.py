"""Read parts of remote files through fsspec: in blocks, ahead of use, in bounded memory, with retries."""

import hashlib
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ppcls.errors import DataError, PpclsError, first_line
from ppcls.files import write_aside
from ppcls.progress import note

BLOCK_BYTES = 4 << 20  # of a range request: at 100 MB/s twice the time that 20 ms of latency take
MEMORY_BYTES = 256 << 20  # of blocks that are kept
THREADS = 8  # requests at the same time
TRIES, FIRST_PAUSE = 5, 0.25  # seconds; each pause is twice as long as the one before
TIMEOUT = 60  # seconds without a byte

_Value = TypeVar("_Value")


class Unreachable(PpclsError):
    """A place that cannot be read. It is not an unreadable image: `data.on_error=skip` does not go on."""


@dataclass(frozen=True)
class Status:
    """A server's answer on a file. etag: its ETag or, without one, the time of its last change."""

    size: int
    etag: str | None


@dataclass
class RemoteFiles:
    """The files of one place, by URL. Each process opens its own connections at the first use, since those
    of another process cannot be used after a fork."""

    _systems: dict[tuple[int, str], Any] = field(default_factory=dict)
    _lock: Any = field(default_factory=threading.Lock)

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]

    def system(self, url: str) -> Any:
        """Return the file system of a URL. Raises Unreachable if its package is not installed."""
        protocol = url.partition("://")[0]
        with self._lock:
            key = (os.getpid(), protocol)
            if key not in self._systems:
                self._systems[key] = _open_system(protocol)
            return self._systems[key]

    def status(self, url: str) -> Status:
        """Return the size and the mark of a file's content."""
        system = self.system(url)
        info = with_retries(
            url, lambda: system.info(url, refresh=True) if _lists(system) else system.info(url)
        )
        if info.get("size") is None:
            raise Unreachable(
                f"{url}: the server does not state its size, so no part of it can be requested."
            )
        etag = info.get("ETag") or info.get("etag") or info.get("Last-Modified") or info.get("LastModified")
        return Status(int(info["size"]), None if etag is None else str(etag))

    def read(self, url: str, start: int, size: int, etag: str | None) -> bytes:
        """Return `size` bytes from `start`. Raises Unreachable if the server cannot be reached, sends less or
        more, or has another content by now than `etag` says."""
        system = self.system(url)
        data = with_retries(url, lambda: _request(system, url, start, size, etag))
        if len(data) != size:
            raise Unreachable(
                f"{url}: {size} bytes from {start} were requested. Received: {len(data)}. The server "
                "does not answer range requests, or the file is another one by now. Index the shards anew."
            )
        return data


def _lists(system: Any) -> bool:
    """Return whether a file system remembers listings, which must not be trusted."""
    return "s3" in system.protocol or "gs" in system.protocol


def _open_system(protocol: str) -> Any:
    try:
        import fsspec
    except ImportError as error:
        raise Unreachable("Remote data need the package fsspec: pip install 'ppcls[remote]'.") from error
    try:
        return fsspec.filesystem(protocol, skip_instance_cache=True, use_listings_cache=False)
    except (ImportError, ValueError) as error:
        raise Unreachable(
            f"{protocol}:// cannot be read: {first_line(error)} Install fsspec's package for it: s3fs for "
            "s3, gcsfs for gs, aiohttp for http."
        ) from error


def _request(system: Any, url: str, start: int, size: int, etag: str | None) -> bytes:
    if etag is not None and etag.startswith('"'):
        if "http" in system.protocol:
            return system.cat_file(url, start=start, end=start + size, headers={"If-Match": etag})
        if "s3" in system.protocol:
            bucket, key, _ = system.split_path(url)
            span = f"bytes={start}-{start + size - 1}"
            answer = system.call_s3("get_object", Bucket=bucket, Key=key, Range=span, IfMatch=etag)
            from fsspec.asyn import sync

            return sync(system.loop, answer["Body"].read)
    return system.cat_file(url, start=start, end=start + size)


def with_retries(what: str, work: Callable[[], _Value]) -> _Value:
    """Return the result of `work`, tried again after connections that break and servers that are busy.

    Raises Unreachable for what another try cannot mend, and after the last try.
    """
    pause, number = FIRST_PAUSE, 0
    while True:
        number += 1
        try:
            return work()
        except Unreachable:
            raise
        except Exception as error:  # each file system has exceptions of its own
            code = _status_code(error)
            if code == 412:
                raise Unreachable(
                    f"{what} has another content than when it was indexed. Index the shards anew: "
                    "ppcls data index."
                ) from error
            if isinstance(error, PermissionError) or code in (401, 403):
                raise Unreachable(
                    f"{what} cannot be read: no permission. Give the place's credentials."
                ) from error
            is_gone = isinstance(error, FileNotFoundError) and error.__cause__ is None
            if code in (404, 410) or is_gone:  # fsspec calls a busy server's answer so, with a cause
                raise Unreachable(f"{what} does not exist.") from error
            if number == TRIES:
                raise Unreachable(
                    f"{what} cannot be read after {TRIES} tries ({type(error).__name__}): "
                    f"{first_line(error)} Is the network up? A training run can be resumed: --resume auto."
                ) from error
            time.sleep(pause)
            pause *= 2


def _status_code(error: BaseException) -> int | None:
    """Return the HTTP status behind an exception of aiohttp, botocore or gcsfs, or behind its cause."""
    for one in (error, error.__cause__, error.__context__):
        response = getattr(one, "response", None)
        code = getattr(one, "status", None) or getattr(one, "code", None)
        if isinstance(response, dict):
            code = response.get("ResponseMetadata", {}).get("HTTPStatusCode", code)
        if isinstance(code, int) or (isinstance(code, str) and code.isdecimal()):
            return int(code)
    return None


class Blocks:
    """Blocks of bytes by their keys, each fetched once, kept as long as `limit` bytes allow."""

    def __init__(self, limit: int = MEMORY_BYTES, threads: int = THREADS) -> None:
        self.limit, self.threads = limit, threads
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.RLock()
        self._found: OrderedDict[Hashable, Future[bytes]] = OrderedDict()
        self._bytes = 0
        self._queue: dict[Hashable, tuple[Callable[[], bytes], int]] = {}  # announced; size in bytes
        self._unread: dict[Hashable, int] = {}  # bytes of blocks that were begun and not read yet
        self._owner = os.getpid()
        self._pool: ThreadPoolExecutor | None = None  # threads begin with the first block

    def __getstate__(self) -> dict[str, Any]:
        return {"limit": self.limit, "threads": self.threads}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def _begin_after_fork(self) -> None:
        if self._owner != os.getpid():  # the threads of the parent are not here
            self._begin()

    def announce(self, key: Hashable, fetch: Callable[[], bytes], size: int) -> None:
        """Begin to fetch a block that will be read, as soon as such blocks leave room for it in half of the
        memory."""
        self._begin_after_fork()
        with self._lock:
            if key not in self._unread:
                self._queue.setdefault(key, (fetch, size))
            self._begin_announced()

    def get(self, key: Hashable, fetch: Callable[[], bytes]) -> bytes:
        """Return a block. Raises what `fetch` raises; a later call tries again."""
        self._begin_after_fork()
        with self._lock:
            self._queue.pop(key, None)
            self._unread.pop(key, None)
            future = self._expect(key, fetch)
            self._begin_announced()
        return future.result()

    def _begin_announced(self) -> None:
        """Begin to fetch announced blocks, in their order, as far as there is room."""
        while self._queue:
            key, (fetch, size) = next(iter(self._queue.items()))
            if sum(self._unread.values()) + size > self.limit // 2:
                return
            del self._queue[key]
            self._unread[key] = size
            self._expect(key, fetch)

    def _expect(self, key: Hashable, fetch: Callable[[], bytes]) -> "Future[bytes]":
        """Begin to fetch a block, if it is neither there nor on its way."""
        future = self._found.get(key)
        if future is not None:
            self._found.move_to_end(key)
            return future
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="fetch")
        future = self._found[key] = self._pool.submit(fetch)
        future.add_done_callback(lambda done: self._count(key, done))
        return future

    def _count(self, key: Hashable, done: "Future[bytes]") -> None:
        with self._lock:
            if done.cancelled() or done.exception() is not None:
                self._found.pop(key, None)
                return
            self._bytes += len(done.result())
            for old, future in list(self._found.items()):
                if self._bytes <= self.limit:
                    break
                if old != key and future.done():
                    del self._found[old]
                    self._bytes -= len(future.result())


@dataclass
class DiskCache:
    """Blocks in files of a folder, at most `limit` bytes: those that were not used for longest go first."""

    folder: Path
    limit: int
    _is_off: bool = False

    def get(self, key: str, fetch: Callable[[], bytes]) -> bytes:
        """Return a block, from the folder or fetched and kept there. A folder that cannot be written is left
        alone, with a note: the data do not need it."""
        path = self.folder / hashlib.sha256(key.encode()).hexdigest()
        try:
            data = path.read_bytes()
            os.utime(path)
            return data
        except OSError:
            data = fetch()
        if not self._is_off:
            try:
                self._make_room(len(data))
                with write_aside(path) as aside:
                    aside.write_bytes(data)
            except OSError as error:
                self._is_off = True
                note(f"the cache {self.folder} cannot be written ({error.strerror}) and is not used")
        return data

    def _make_room(self, size: int) -> None:
        if not self.folder.is_dir():
            return
        found = []
        for entry in os.scandir(self.folder):
            try:
                found.append((entry.stat().st_mtime, entry.stat().st_size, entry.path))
            except FileNotFoundError:  # another process has removed it
                continue
        total = size + sum(item[1] for item in found)
        for _, length, path in sorted(found):
            if total <= self.limit:
                return
            Path(path).unlink(missing_ok=True)
            total -= length


def open_remote(url: str, files: RemoteFiles) -> Any:
    """Open a remote file for reading from begin to end with jumps, as an index is made."""
    system = files.system(url)
    return with_retries(url, lambda: system.open(url, "rb", block_size=1 << 20, cache_type="readahead"))


def list_remote(pattern: str, files: RemoteFiles) -> list[str]:
    """Return the URLs that a pattern with * matches, or that a folder's URL holds, sorted."""
    system, protocol = files.system(pattern), pattern.partition("://")[0]
    try:
        found = with_retries(pattern, lambda: system.glob(pattern))
    except DataError:
        return []
    return sorted(name if "://" in name else f"{protocol}://{name}" for name in found)
