"""Download published files to the user's cache: resume, retry and check them, once for all processes.

Each file NAME has two others beside it: NAME.lock, which the system releases when its holder ends, and
NAME.json, the metadata of the file or the reason why the last attempt failed. An interrupted download leaves
NAME.part and NAME.part.json, which shows whether the server still has the same file. Some network file
systems do not honour locks between machines. So a process renames the part to a name of its own, which only
one can do, before it appends to it, and gives it back afterwards.
"""

import contextlib
import errno
import glob
import hashlib
import http.client
import json
import os
import random
import socket
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import requests
import urllib3
from filelock import FileLock, Timeout
from tqdm import tqdm

from ppcls import distributed
from ppcls.errors import WeightsError
from ppcls.files import cache_dir
from ppcls.progress import progress_bar

CONNECT_TIMEOUT = 10.0  # seconds
READ_TIMEOUT = 30.0  # seconds in which MIN_PROGRESS must arrive
MIN_PROGRESS = 32 * 1024  # bytes; an attempt that brings fewer counts as failed
TRIES = 5  # failed attempts in a row, for each URL
PAUSE = 1.0  # seconds before the second attempt; doubled each time up to MAX_PAUSE
MAX_PAUSE = 30.0
POLL = 0.2  # seconds between two checks of another process's download
BEAT = 1.0  # seconds between two signs of life of the process that downloads
PATIENCE = 180.0  # seconds without such a sign; longer than any of its own waits
BLOCK = 1 << 18

VALIDATORS = ("ETag", "Last-Modified")
TEMPORARY = (408, 425, 429)  # HTTP statuses that may change, like all from 500 on


class _Retry(Exception):
    """An attempt failed, but another may succeed. wait: seconds that the server requests."""

    def __init__(self, reason: str, wait: float = 0.0):
        super().__init__(reason)
        self.wait = wait


class _Unavailable(Exception):
    """A URL does not provide the file."""


@dataclass(frozen=True)
class _Request:
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
        return _beside_part(self.part)

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


def _beside_part(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


class _Progress:
    """Progress of a download: a bar on rank 0, and for waiting processes a file whose time stamp changes."""

    def __init__(self, request: _Request):
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
        self.bar.total = total
        self.bar.update(done - self.bar.n)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def fetch(
    urls: Sequence[str],
    *,
    sha256: str | None,
    size: int | None,
    file_name: str | None = None,
    license: str | None = None,
) -> Path:
    """Return the file in the cache; download it if it is not there. The first URL is preferred, the others
    are mirrors.

    sha256: whole, or at least its first eight digits. file_name: in the cache; None takes that of the first
    URL. license: shown before the download. If several processes call this at once, one of them downloads;
    the others wait, and return or fail as it does. Raises WeightsError.
    """
    if sha256 is not None and (len(sha256) < 8 or set(sha256.lower()) - set("0123456789abcdef")):
        raise ValueError(f"sha256 must be eight hexadecimal digits or more. Received: {sha256!r}")
    name = file_name or unquote(urlsplit(urls[0]).path).rsplit("/", 1)[-1]
    request = _Request(tuple(urls), sha256, size, cache_dir() / name)
    if _is_known(request):
        return request.path
    progress = _Progress(request)
    try:
        request.path.parent.mkdir(parents=True, exist_ok=True)
        if not request.path.exists():
            notes = [f"{size / 1e6:,.0f} MB"] if size else []
            notes += [f"license of the weights: {license}"] if license else []
            suffix = f" ({'; '.join(notes)})" if notes else ""
            progress.log(f"Downloading {urls[0]} to {request.path}{suffix}")
        _fetch_once(request, progress)
    except OSError as error:
        raise WeightsError(_cannot_write(request, error)) from error
    finally:
        progress.close()
    return request.path


def fetch_on_all_ranks(urls: Sequence[str], **options: Any) -> Path:
    """Call `fetch` in every process of a run. It returns in all of them together, or fails in all.

    Machines with separate caches finish at different times, and gloo gives up a collective after 30 seconds.
    So a thread downloads, while the processes ask one another twice a second whether they have finished.
    """
    return distributed.run_together(lambda: fetch(urls, **options))


def _fetch_once(request: _Request, progress: _Progress) -> None:
    """Download the file, or wait for the process that does."""
    # A failure that is not in the file now, but later, belongs to an attempt that this call has waited for.
    earlier = _read_json(request.metadata)
    lock = FileLock(request.beside(".lock"))
    seen, seen_at = None, time.monotonic()
    while True:
        try:
            lock.acquire(timeout=0)
            break
        except Timeout:
            pass
        except (OSError, NotImplementedError) as error:
            if not request.path.is_file():
                raise WeightsError(_cannot_write(request, error)) from error
            _check(request, request.path, None)  # a cache that others have filled and that cannot be written
            return
        if _is_known(request):
            return
        _raise_failure(request, earlier)
        part = request.path.with_name(str(_read_json(request.metadata).get("part")))
        state = (_stat(request.metadata), _stat(part))
        if state != seen:
            seen, seen_at = state, time.monotonic()
            if done := _size(part):
                progress.show(done, _read_json(_beside_part(part)).get("total", request.size))
        elif time.monotonic() - seen_at > PATIENCE:
            holder = _read_json(request.metadata).get("holder", "another process")
            raise WeightsError(
                f"{request.path.name} is being downloaded by {holder}, which has made no progress for "
                f"{PATIENCE:.0f} s. End that process and start again: the downloaded part is kept."
            )
        time.sleep(POLL)
    try:
        if not _is_known(request):
            _raise_failure(request, earlier)
            _fetch_locked(request, progress)
    finally:
        lock.release()


def _fetch_locked(request: _Request, progress: _Progress) -> None:
    """Download and check the file, or check the one in the cache, while this process holds the lock."""
    attempt = uuid.uuid4().hex
    holder = f"process {os.getpid()} on {socket.gethostname()}"
    _write_json(request.metadata, {"attempt": attempt, "holder": holder, "part": request.part.name})
    try:
        if request.path.exists():
            _save_metadata(request, request.path, _check(request, request.path, progress))
            return
        _claim_part(request)
        sha256 = _download(request, progress)
        with request.part.open("rb+") as file:
            os.fsync(file.fileno())
        _save_metadata(request, request.part, sha256)
        os.replace(request.part, request.path)
        for part in (request.part, request.left_part, *_stranded_parts(request)):
            _discard(part)
    except (WeightsError, OSError) as error:
        reason = str(error) if isinstance(error, WeightsError) else _cannot_write(request, error)
        with contextlib.suppress(OSError):
            _write_json(request.metadata, {"attempt": attempt, "failure": reason})
        raise
    finally:
        with contextlib.suppress(OSError):
            _give_back_part(request)


def _claim_part(request: _Request) -> None:
    """Rename the part of an earlier attempt to this process's own name: the one given back, or the longest of
    those whose process was killed."""
    stranded = sorted(_stranded_parts(request), key=_size, reverse=True)
    for part in (request.left_part, *stranded):
        try:
            os.rename(part, request.part)
        except FileNotFoundError:  # there is none, or another process has it
            continue
        with contextlib.suppress(FileNotFoundError):
            os.replace(_beside_part(part), request.part_metadata)
        return


def _give_back_part(request: _Request) -> None:
    """Leave the part, if there is one, to the next attempt."""
    if not request.part.exists() or _size(request.part) < _size(request.left_part):
        _discard(request.part)
        return
    with contextlib.suppress(FileNotFoundError):
        os.replace(request.part_metadata, _beside_part(request.left_part))
    os.replace(request.part, request.left_part)


def _stranded_parts(request: _Request) -> list[Path]:
    """Return the parts that nobody gave back: their process has ended, or has shown no life for long. Times
    are compared on the file system's own clock."""
    now = (_stat(request.metadata) or (0, 0))[1] / 1e9
    host = f"{request.path.name}.{socket.gethostname()}-"
    found = []
    for name in glob.glob(f"{glob.escape(str(request.path))}.*-*-*.part"):
        path = Path(name)
        process = path.name.split("-")[-2]
        is_here = path.name.startswith(host) and process.isdecimal() and os.name == "posix"
        if is_here:
            is_stranded = not _is_alive(int(process))
        else:
            is_stranded = now - (_stat(path) or (0, 0))[1] / 1e9 > PATIENCE
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


def _raise_failure(request: _Request, earlier: dict[str, Any]) -> None:
    """Raise the WeightsError of the process that downloads, if it has failed since `earlier`."""
    now = _read_json(request.metadata)
    if "failure" in now and now != earlier:
        raise WeightsError(now["failure"])


def _is_known(request: _Request) -> bool:
    """Return whether the file is in place and has not changed since its check, which takes seconds for
    gigabytes."""
    stat = _stat(request.path)
    metadata = _read_json(request.metadata)
    return (
        stat is not None
        and stat == (metadata.get("size"), metadata.get("mtime_ns"))
        and request.mismatch(str(metadata.get("sha256")), stat[0]) is None
    )


def _save_metadata(request: _Request, path: Path, sha256: str) -> None:
    """Write the metadata of a checked file, before it moves into place. path: the file now."""
    stat = path.stat()
    _write_json(request.metadata, {"sha256": sha256, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns})


def _check(request: _Request, path: Path, progress: _Progress | None) -> str:
    """Return the SHA-256 of a file in the cache. Raises WeightsError if it is not the published file."""
    sha256 = _sha256(path, progress)
    if problem := request.mismatch(sha256, path.stat().st_size):
        raise WeightsError(
            f"{path} is not the published file: {problem}. Remove it; then the right one is downloaded from "
            f"{request.urls[0]}."
        )
    return sha256


def _download(request: _Request, progress: _Progress) -> str:
    """Download the rest of request.part and check it. Return its SHA-256. Raises WeightsError."""
    reasons = []
    for url in request.urls:
        try:
            return _download_from(url, request, progress)
        except _Unavailable as error:
            reasons.append(f"  {url}: {error}")
            progress.log(f"{url}: {error}")
    expected = [f"{request.size:,} bytes"] if request.size is not None else []
    expected += [f"SHA-256 {request.describe_hash()}"] if request.sha256 is not None else []
    raise WeightsError(
        f"{request.path.name} could not be downloaded:\n" + "\n".join(reasons) + "\n"
        f"Check the connection and, behind a proxy, HTTPS_PROXY. Or get the file elsewhere and put it at "
        f"{request.path}" + (f" (expected: {', '.join(expected)})." if expected else ".")
    )


def _download_from(url: str, request: _Request, progress: _Progress) -> str:
    """Download from one URL, with retries. Return the SHA-256. Raises _Unavailable."""
    furthest, failures = _size(request.part), 0
    while True:
        progress.beat()
        try:
            resumed = _receive(url, request, progress)
            sha256 = _sha256(request.part, progress)
            size, stated = _size(request.part), _read_json(request.part_metadata).get("total")
            problem = request.mismatch(sha256, size)
            if problem is None and stated not in (None, size):
                problem = f"it has {size:,} bytes, the server stated {stated:,}"
            if problem is None:
                return sha256
            _discard(request.part)
            # A crash may have damaged one of several pieces. A file in one piece is the server's own.
            raise (_Retry if resumed else _Unavailable)(f"{problem}. The downloaded part was removed")
        except _Retry as error:
            if _size(request.part) - furthest >= MIN_PROGRESS:
                furthest, failures = _size(request.part), 0
            failures += 1
            if failures >= TRIES:
                raise _Unavailable(f"{TRIES} attempts made no progress; the last: {error}") from error
            pause = min(PAUSE * 2 ** (failures - 1), MAX_PAUSE) * random.uniform(0.5, 1.5)
            pause = max(pause, min(error.wait, MAX_PAUSE))
            progress.log(f"{request.path.name}: {error}. Next attempt in {pause:.1f} s")
            time.sleep(pause)


def _receive(url: str, request: _Request, progress: _Progress) -> bool:
    """Download the rest of the part, or all of it if the server cannot resume. Return whether it resumed.

    Raises _Unavailable or _Retry.
    """
    have = _size(request.part)
    metadata = _read_json(request.part_metadata)
    headers = {"Accept-Encoding": "identity"}
    validator = next((metadata[key] for key in VALIDATORS if _is_strong(metadata.get(key))), None)
    if have and metadata.get("url") == url and validator:
        headers |= {"Range": f"bytes={have}-", "If-Range": validator}
    try:
        timeout = (CONNECT_TIMEOUT, READ_TIMEOUT)
        with requests.get(url, headers=headers, stream=True, timeout=timeout) as response:
            if response.status_code == 416 and response.headers.get("Content-Range") == f"bytes */{have}":
                return True
            _check_answer(response, request, have, metadata)
            start = have if response.status_code == 206 else 0
            total = _total(response, request)
            with request.part.open("ab" if start else "wb") as file:
                if not start:
                    validators = {key: response.headers.get(key) for key in VALIDATORS}
                    _write_json(request.part_metadata, {"url": url, "total": total} | validators)
                _copy(response, file, start, total, progress)
            return start > 0
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        # The ValueErrors among them: a URL or an address of a proxy that is not valid.
        if isinstance(error, ValueError | requests.TooManyRedirects):
            raise _Unavailable(_reason(error)) from error
        raise _Retry(_reason(error)) from error


def _check_answer(
    response: requests.Response, request: _Request, have: int, metadata: dict[str, Any]
) -> None:
    """Raise _Unavailable or _Retry unless the bytes of the file follow, from the start or from `have`.

    metadata: that of the part.
    """
    status = response.status_code
    if status in TEMPORARY or status >= 500:
        wait = response.headers.get("Retry-After", "")
        raise _Retry(f"HTTP {status} {response.reason}", float(wait) if wait.isdecimal() else 0.0)
    if status == 416:
        _discard(request.part)
        raise _Retry(f"the server's file ends before byte {have}. Starting over")
    if status not in (200, 206):
        raise _Unavailable(f"HTTP {status} {response.reason}")
    if response.headers.get("Content-Type", "").startswith("text/html"):
        raise _Unavailable("the server sent a web page instead of the file, perhaps from a proxy or a login")
    if status == 206:
        # Some servers ignore If-Range.
        changed = any(response.headers.get(key) not in (None, metadata.get(key)) for key in VALIDATORS)
        if changed or not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            _discard(request.part)
            raise _Retry("the file on the server has changed. Starting over")


def _total(response: requests.Response, request: _Request) -> int | None:
    """Return the size of the whole file in bytes, as the server states it. Raises _Unavailable."""
    if response.status_code == 206:
        text = response.headers["Content-Range"].rpartition("/")[2]
    else:
        text = response.headers.get("Content-Length", "")
    total = int(text) if text.isdecimal() else request.size
    if request.size not in (None, total):
        raise _Unavailable(f"the server's file has {total:,} bytes, expected {request.size:,}")
    if total is None and request.sha256 is None:
        raise _Unavailable(
            "the server does not state the length of the file, so a download cannot be checked"
        )
    return total


def _copy(response: requests.Response, file: Any, have: int, total: int | None, progress: _Progress) -> None:
    """Write the rest of the response to the file. have: bytes before it. Raises _Retry or _Unavailable."""
    # read1 returns the bytes that have arrived; read waits for a whole block, however slowly it arrives.
    read = getattr(response.raw, "read1", response.raw.read)
    response.raw.enforce_content_length = False  # checked below, with a clearer message
    checked_at, checked = time.monotonic(), have
    while block := read(BLOCK):
        file.write(block)
        have += len(block)
        progress.beat()
        progress.show(have, total)
        if total is not None and have > total:
            raise _Unavailable(f"the server sent more than the {total:,} bytes of the file")
        if time.monotonic() - checked_at > READ_TIMEOUT:
            if have - checked < MIN_PROGRESS:
                raise _Retry(f"only {have - checked:,} bytes arrived in {READ_TIMEOUT:.0f} s")
            checked_at, checked = time.monotonic(), have
    if total is not None and have < total:
        raise _Retry(f"the connection ended after {have:,} of {total:,} bytes")


def _is_strong(validator: str | None) -> bool:
    """Return whether equal validators mean equal bytes. A weak ETag does not, and If-Range does not accept
    it."""
    return bool(validator) and not str(validator).startswith("W/")


def _reason(error: BaseException) -> str:
    """Return the message of the system or of HTTP, which requests wraps in several lines of its own."""
    cause: BaseException | None = error
    while cause is not None:
        own = isinstance(cause, OSError) and not isinstance(cause, requests.RequestException)
        if own or isinstance(cause, http.client.HTTPException):
            return f"{type(cause).__name__}: {cause}"
        cause = cause.__cause__ or cause.__context__
    return f"{type(error).__name__}: {error}"


def _cannot_write(request: _Request, error: BaseException) -> str:
    """Return the message for a cache that cannot be written."""
    full = isinstance(error, OSError) and error.errno == errno.ENOSPC
    problem = "the disk is full; the downloaded part is kept" if full else str(error)
    room = f" with {request.size / 1e6:,.0f} MB free" if request.size else ""
    return (
        f"{request.path} cannot be downloaded: {problem}. Make room or give write permission there, or set "
        f"PPCLS_HOME to a folder{room}."
    )


def _sha256(path: Path, progress: _Progress | None) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            if progress is not None:
                progress.beat()
    return digest.hexdigest()


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _beside_part(part).unlink(missing_ok=True)


def _stat(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns


def _size(path: Path) -> int:
    return (_stat(path) or (0, 0))[0]


def _read_json(path: Path) -> dict[str, Any]:
    """Return the dictionary in a file, an empty one if the file is missing or incomplete."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    # Written in place: on Windows a file that another process is reading cannot be replaced.
    path.write_text(json.dumps(content), encoding="utf-8")
