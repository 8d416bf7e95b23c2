"""Published files into the user's cache: resumed, retried, checked, and fetched once however many ask.

Beside a file NAME lie NAME.lock, which the system frees when its holder ends, and NAME.json: what is known of
the file, or why the last attempt failed. While the file is fetched there are NAME.part, and NAME.part.json,
which tells whether the server still has the same file.
"""

import contextlib
import errno
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
from dataclasses import dataclass
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
READ_TIMEOUT = 30.0  # seconds in which MIN_PROGRESS has to come
MIN_PROGRESS = 32 * 1024  # bytes; a try that brings fewer counts as failed
TRIES = 5  # failed ones in a row, for each URL
PAUSE = 1.0  # seconds before the second try; doubled each time up to MAX_PAUSE
MAX_PAUSE = 30.0
POLL = 0.2  # seconds between two looks at what another process fetches
BEAT = 1.0  # seconds between two signs of life of the process that fetches
PATIENCE = 180.0  # seconds without one; more than any of its own waits
BLOCK = 1 << 18

VALIDATORS = ("ETag", "Last-Modified")
TEMPORARY = (408, 425, 429)  # HTTP statuses that may change, as all from 500 on


class _TryAgain(Exception):
    """This try failed, another may not. wait: seconds that the server asks for."""

    def __init__(self, reason: str, wait: float = 0.0):
        super().__init__(reason)
        self.wait = wait


class _Unavailable(Exception):
    """This URL does not give the file."""


@dataclass(frozen=True)
class _Wanted:
    """A published file, its place in the cache, and the files beside it."""

    urls: Sequence[str]
    sha256: str | None
    size: int | None
    path: Path

    def beside(self, suffix: str) -> Path:
        return self.path.with_name(self.path.name + suffix)

    @property
    def part(self) -> Path:
        return self.beside(".part")

    @property
    def part_facts(self) -> Path:
        return self.beside(".part.json")

    @property
    def facts(self) -> Path:
        return self.beside(".json")

    def mismatch(self, sha256: str, size: int) -> str | None:
        if self.size is not None and size != self.size:
            return f"it has {size:,} bytes, expected {self.size:,}"
        if self.sha256 is not None and not sha256.startswith(self.sha256.lower()):
            return f"its SHA-256 is {sha256}, expected {self.describe_hash()}"
        return None

    def describe_hash(self) -> str:
        sha256 = self.sha256 or ""
        return sha256 if len(sha256) == 64 else f"one that begins with {sha256}"


class _Progress:
    """A bar for the user of rank 0, and for waiting processes a time stamp that moves."""

    def __init__(self, wanted: _Wanted):
        self.wanted = wanted
        self.bar: tqdm | None = None
        self.last_beat = 0.0

    def say(self, text: str) -> None:
        if distributed.rank() == 0:
            print(text, file=sys.stderr, flush=True)

    def beat(self) -> None:
        if time.monotonic() - self.last_beat > BEAT:
            with contextlib.suppress(OSError):
                os.utime(self.wanted.facts)
            self.last_beat = time.monotonic()

    def show(self, done: int, total: int | None) -> None:
        if self.bar is None:
            self.bar = progress_bar(total, self.wanted.path.name, unit="B", initial=done)
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
    licence: str | None = None,
) -> Path:
    """The file in the cache, fetched if it is not there. The first URL is preferred, the others are mirrors.

    sha256: whole, or its first digits, eight at least. file_name: in the cache; None takes the first URL's.
    licence: shown when the file is fetched. However many processes ask at once, one fetches, and the others
    return, or fail with its reason, when it is done. Raises WeightsError.
    """
    if sha256 is not None and (len(sha256) < 8 or set(sha256.lower()) - set("0123456789abcdef")):
        raise ValueError(f"sha256 must be eight hexadecimal digits or more. Received: {sha256!r}")
    name = file_name or unquote(urlsplit(urls[0]).path).rsplit("/", 1)[-1]
    wanted = _Wanted(tuple(urls), sha256, size, cache_dir() / name)
    if _is_known(wanted):
        return wanted.path
    progress = _Progress(wanted)
    try:
        wanted.path.parent.mkdir(parents=True, exist_ok=True)
        if not wanted.path.exists():
            facts = [f"{size / 1e6:,.0f} MB"] if size else []
            facts += [f"licence of the weights: {licence}"] if licence else []
            progress.say(f"Fetching {urls[0]} to {wanted.path}" + (f" ({'; '.join(facts)})" if facts else ""))
        _fetch_once(wanted, progress)
    except OSError as error:
        raise WeightsError(_cannot_write(wanted, error)) from error
    finally:
        progress.close()
    return wanted.path


def fetch_on_all_ranks(urls: Sequence[str], **options: Any) -> Path:
    """`fetch`, called in every process of a run: it returns in all of them together, or fails in all.

    Machines with caches of their own finish at different times, and gloo breaks off a collective after 30
    seconds. So a thread fetches, while the processes ask one another twice a second whether they are done.
    """
    return distributed.run_together(lambda: fetch(urls, **options))


def _fetch_once(wanted: _Wanted, progress: _Progress) -> None:
    """Fetch the file, or wait for the process that does."""
    # A failure that is noted later, but not now, is of an attempt that this call has waited for.
    earlier = _read_json(wanted.facts)
    lock = FileLock(wanted.beside(".lock"))
    seen, seen_at = None, time.monotonic()
    while True:
        try:
            lock.acquire(timeout=0)
            break
        except Timeout:
            pass
        except (OSError, NotImplementedError) as error:
            if not wanted.path.is_file():
                raise WeightsError(_cannot_write(wanted, error)) from error
            _check(wanted, wanted.path, None)  # a cache that others have filled, and that can't be written
            return
        if _is_known(wanted):
            return
        _raise_failure(wanted, earlier)
        state = (_stat(wanted.facts), _stat(wanted.part))
        if state != seen:
            seen, seen_at = state, time.monotonic()
            if done := _size(wanted.part):
                progress.show(done, _read_json(wanted.part_facts).get("total", wanted.size))
        elif time.monotonic() - seen_at > PATIENCE:
            holder = _read_json(wanted.facts).get("holder", "another process")
            raise WeightsError(
                f"{wanted.path.name} is being fetched by {holder}, which has made no progress for "
                f"{PATIENCE:.0f} s. End that process and start again: what it has fetched is kept."
            )
        time.sleep(POLL)
    try:
        if not _is_known(wanted):
            _raise_failure(wanted, earlier)
            _fetch_locked(wanted, progress)
    finally:
        lock.release()


def _fetch_locked(wanted: _Wanted, progress: _Progress) -> None:
    attempt = uuid.uuid4().hex
    holder = f"process {os.getpid()} on {socket.gethostname()}"
    _write_json(wanted.facts, {"attempt": attempt, "holder": holder})
    try:
        if wanted.path.exists():
            _note(wanted, wanted.path, _check(wanted, wanted.path, progress))
            return
        sha256 = _download(wanted, progress)
        with wanted.part.open("rb+") as file:
            os.fsync(file.fileno())
        _note(wanted, wanted.part, sha256)
        os.replace(wanted.part, wanted.path)
        wanted.part_facts.unlink(missing_ok=True)
    except (WeightsError, OSError) as error:
        reason = str(error) if isinstance(error, WeightsError) else _cannot_write(wanted, error)
        with contextlib.suppress(OSError):
            _write_json(wanted.facts, {"attempt": attempt, "failure": reason})
        raise


def _raise_failure(wanted: _Wanted, earlier: dict[str, Any]) -> None:
    now = _read_json(wanted.facts)
    if "failure" in now and now != earlier:
        raise WeightsError(now["failure"])


def _is_known(wanted: _Wanted) -> bool:
    """Whether the file is in place and has been checked as it is: gigabytes take seconds to check."""
    stat = _stat(wanted.path)
    facts = _read_json(wanted.facts)
    return (
        stat is not None
        and stat == (facts.get("size"), facts.get("mtime_ns"))
        and wanted.mismatch(str(facts.get("sha256")), stat[0]) is None
    )


def _note(wanted: _Wanted, path: Path, sha256: str) -> None:
    """Write what is known before the file moves into place, so that it is known from then on."""
    stat = path.stat()
    _write_json(wanted.facts, {"sha256": sha256, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns})


def _check(wanted: _Wanted, path: Path, progress: _Progress | None) -> str:
    """The SHA-256 of a file that was in the cache. Raises WeightsError."""
    sha256 = _sha256(path, progress)
    if problem := wanted.mismatch(sha256, path.stat().st_size):
        raise WeightsError(
            f"{path} is not the published file: {problem}. Remove it, and the right one is fetched from "
            f"{wanted.urls[0]}."
        )
    return sha256


def _download(wanted: _Wanted, progress: _Progress) -> str:
    """The whole and checked file as the part; returns its SHA-256. Raises WeightsError."""
    reasons = []
    for url in wanted.urls:
        try:
            return _download_from(url, wanted, progress)
        except _Unavailable as error:
            reasons.append(f"  {url}: {error}")
            progress.say(f"{url}: {error}")
    expected = [f"{wanted.size:,} bytes"] if wanted.size is not None else []
    expected += [f"SHA-256 {wanted.describe_hash()}"] if wanted.sha256 is not None else []
    raise WeightsError(
        f"{wanted.path.name} could not be fetched:\n" + "\n".join(reasons) + "\n"
        f"Check the connection and, behind a proxy, HTTPS_PROXY. Or get the file elsewhere and put it at "
        f"{wanted.path}" + (f" (expected: {', '.join(expected)})." if expected else ".")
    )


def _download_from(url: str, wanted: _Wanted, progress: _Progress) -> str:
    furthest, failures = _size(wanted.part), 0
    while True:
        progress.beat()
        try:
            resumed = _receive(url, wanted, progress)
            sha256 = _sha256(wanted.part, progress)
            problem = wanted.mismatch(sha256, _size(wanted.part))
            if problem is None:
                return sha256
            _discard(wanted)
            # Of several pieces one may be damaged, by a crash, say. What came in one piece is as it is.
            raise (_TryAgain if resumed else _Unavailable)(f"{problem}. What came was removed")
        except _TryAgain as error:
            if _size(wanted.part) - furthest >= MIN_PROGRESS:
                furthest, failures = _size(wanted.part), 0
            failures += 1
            if failures >= TRIES:
                raise _Unavailable(f"{TRIES} tries brought nothing new; the last: {error}") from error
            pause = min(PAUSE * 2 ** (failures - 1), MAX_PAUSE) * random.uniform(0.5, 1.5)
            pause = max(pause, min(error.wait, MAX_PAUSE))
            progress.say(f"{wanted.path.name}: {error}. Next try in {pause:.1f} s")
            time.sleep(pause)


def _receive(url: str, wanted: _Wanted, progress: _Progress) -> bool:
    """Bring the part to its end, from where it ended before if the server can; returns whether it did so."""
    have = _size(wanted.part)
    facts = _read_json(wanted.part_facts)
    headers = {"Accept-Encoding": "identity"}
    validator = next((facts[key] for key in VALIDATORS if _is_strong(facts.get(key))), None)
    if have and facts.get("url") == url and validator:
        headers |= {"Range": f"bytes={have}-", "If-Range": validator}
    try:
        timeout = (CONNECT_TIMEOUT, READ_TIMEOUT)
        with requests.get(url, headers=headers, stream=True, timeout=timeout) as response:
            if response.status_code == 416 and response.headers.get("Content-Range") == f"bytes */{have}":
                return True
            _check_answer(response, wanted, have, facts)
            start = have if response.status_code == 206 else 0
            total = _total(response, wanted)
            with wanted.part.open("ab" if start else "wb") as file:
                if not start:
                    kept = {key: response.headers.get(key) for key in VALIDATORS}
                    _write_json(wanted.part_facts, {"url": url, "total": total} | kept)
                _copy(response, file, start, total, progress)
            return start > 0
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        # The ValueErrors among them: a URL or a proxy's address that is none.
        if isinstance(error, ValueError | requests.TooManyRedirects):
            raise _Unavailable(_reason(error)) from error
        raise _TryAgain(_reason(error)) from error


def _check_answer(response: requests.Response, wanted: _Wanted, have: int, facts: dict[str, Any]) -> None:
    """Raise _Unavailable or _TryAgain unless the file's bytes follow, from its start or from `have`."""
    status = response.status_code
    if status in TEMPORARY or status >= 500:
        wait = response.headers.get("Retry-After", "")
        raise _TryAgain(f"HTTP {status} {response.reason}", float(wait) if wait.isdecimal() else 0.0)
    if status == 416:
        _discard(wanted)
        raise _TryAgain(f"the server's file ends before byte {have}: starting over")
    if status not in (200, 206):
        raise _Unavailable(f"HTTP {status} {response.reason}")
    if response.headers.get("Content-Type", "").startswith("text/html"):
        raise _Unavailable("a web page came instead of the file, from a proxy or a login, perhaps")
    if status == 206:
        # Some servers answer a range without a look at If-Range.
        changed = any(response.headers.get(key) not in (None, facts.get(key)) for key in VALIDATORS)
        if changed or not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            _discard(wanted)
            raise _TryAgain("the file on the server has changed: starting over")


def _total(response: requests.Response, wanted: _Wanted) -> int | None:
    """The whole file's bytes, as the server says."""
    if response.status_code == 206:
        text = response.headers["Content-Range"].rpartition("/")[2]
    else:
        text = response.headers.get("Content-Length", "")
    total = int(text) if text.isdecimal() else wanted.size
    if wanted.size not in (None, total):
        raise _Unavailable(f"the file there has {total:,} bytes, expected {wanted.size:,}")
    if total is None and wanted.sha256 is None:
        raise _Unavailable("the server does not tell the file's length, so what comes cannot be checked")
    return total


def _copy(response: requests.Response, file: Any, have: int, total: int | None, progress: _Progress) -> None:
    # read1 returns what has come, where read waits for a whole block, however slowly it comes.
    read = getattr(response.raw, "read1", response.raw.read)
    response.raw.enforce_content_length = False  # the length is checked below, in plainer words
    checked_at, checked = time.monotonic(), have
    while block := read(BLOCK):
        file.write(block)
        have += len(block)
        progress.beat()
        progress.show(have, total)
        if total is not None and have > total:
            raise _Unavailable(f"more than the {total:,} bytes of the file came")
        if time.monotonic() - checked_at > READ_TIMEOUT:
            if have - checked < MIN_PROGRESS:
                raise _TryAgain(f"only {have - checked:,} bytes came in {READ_TIMEOUT:.0f} s")
            checked_at, checked = time.monotonic(), have
    if total is not None and have < total:
        raise _TryAgain(f"the connection ended after {have:,} of {total:,} bytes")


def _is_strong(validator: str | None) -> bool:
    """Whether equal validators mean equal bytes: a weak ETag promises less, and If-Range refuses it."""
    return bool(validator) and not str(validator).startswith("W/")


def _reason(error: BaseException) -> str:
    """The system's own words where there are some: requests wraps them in several lines of its own."""
    cause: BaseException | None = error
    while cause is not None:
        own = isinstance(cause, OSError) and not isinstance(cause, requests.RequestException)
        if own or isinstance(cause, http.client.HTTPException):
            return f"{type(cause).__name__}: {cause}"
        cause = cause.__cause__ or cause.__context__
    return f"{type(error).__name__}: {error}"


def _cannot_write(wanted: _Wanted, error: BaseException) -> str:
    full = isinstance(error, OSError) and error.errno == errno.ENOSPC
    problem = "the disk is full; what has come is kept" if full else str(error)
    room = f" with {wanted.size / 1e6:,.0f} MB free" if wanted.size else ""
    return (
        f"{wanted.path} cannot be fetched: {problem}. Make room or give write permission there, or set "
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


def _discard(wanted: _Wanted) -> None:
    wanted.part.unlink(missing_ok=True)
    wanted.part_facts.unlink(missing_ok=True)


def _stat(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns


def _size(path: Path) -> int:
    return (_stat(path) or (0, 0))[0]


def _read_json(path: Path) -> dict[str, Any]:
    """Nothing from a file that is missing or half written."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    # In place: on Windows a file that another process is reading can't be replaced.
    path.write_text(json.dumps(content), encoding="utf-8")
