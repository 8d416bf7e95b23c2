"""Download published files to the user's cache: resume, retry and check them, once for all processes.

Each file NAME has two others beside it: NAME.lock, which the system releases when its holder ends, and
NAME.json, the metadata of the file or the reason why the last attempt failed. An interrupted download leaves
NAME.part and NAME.part.json, which shows whether the server still has the same file. Some network file
systems do not honour locks between machines. So a process renames the part to a name of its own, which only
one can do, before it appends to it, and gives it back afterwards.
"""

import contextlib
import errno
import os
import socket
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from filelock import FileLock, Timeout

from ppcls import distributed
from ppcls.errors import WeightsError
from ppcls.files import cache_dir, sha256_of
from ppcls.weights.cached_file import (
    PATIENCE,
    Progress,
    Request,
    beside_part,
    claim_part,
    discard,
    give_back_part,
    read_json,
    size_of,
    stat_of,
    stranded_parts,
    write_json,
)
from ppcls.weights.transfer import transfer

POLL = 0.2  # seconds between two checks of another process's download


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
    request = Request(tuple(urls), sha256, size, cache_dir() / name)
    if _is_known(request):
        return request.path
    progress = Progress(request)
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


def _fetch_once(request: Request, progress: Progress) -> None:
    """Download the file, or wait for the process that does."""
    # A failure that is not in the file now, but later, belongs to an attempt that this call has waited for.
    earlier = read_json(request.metadata)
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
            _check(request)  # a cache that others have filled and that cannot be written
            return
        if _is_known(request):
            return
        _raise_failure(request, earlier)
        part = request.path.with_name(str(read_json(request.metadata).get("part")))
        state = (stat_of(request.metadata), stat_of(part))
        if state != seen:
            seen, seen_at = state, time.monotonic()
            if done := size_of(part):
                progress.show(done, read_json(beside_part(part)).get("total", request.size))
        elif time.monotonic() - seen_at > PATIENCE:
            holder = read_json(request.metadata).get("holder", "another process")
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


def _fetch_locked(request: Request, progress: Progress) -> None:
    """Download and check the file, or check the one in the cache, while this process holds the lock."""
    attempt = uuid.uuid4().hex
    holder = f"process {os.getpid()} on {socket.gethostname()}"
    write_json(request.metadata, {"attempt": attempt, "holder": holder, "part": request.part.name})
    try:
        if request.path.exists():
            _save_metadata(request, request.path, _check(request, progress.beat))
            return
        claim_part(request)
        sha256 = transfer(request, progress)
        with request.part.open("rb+") as file:
            os.fsync(file.fileno())
        _save_metadata(request, request.part, sha256)
        os.replace(request.part, request.path)
        for part in (request.part, request.left_part, *stranded_parts(request)):
            discard(part)
    except (WeightsError, OSError) as error:
        reason = str(error) if isinstance(error, WeightsError) else _cannot_write(request, error)
        with contextlib.suppress(OSError):
            write_json(request.metadata, {"attempt": attempt, "failure": reason})
        raise
    finally:
        with contextlib.suppress(OSError):
            give_back_part(request)


def _raise_failure(request: Request, earlier: dict[str, Any]) -> None:
    """Raise the WeightsError of the process that downloads, if it has failed since `earlier`."""
    now = read_json(request.metadata)
    if "failure" in now and now != earlier:
        raise WeightsError(now["failure"])


def _is_known(request: Request) -> bool:
    """Return whether the file is in place and has not changed since its check, which takes seconds for
    gigabytes."""
    stat = stat_of(request.path)
    metadata = read_json(request.metadata)
    return (
        stat is not None
        and stat == (metadata.get("size"), metadata.get("mtime_ns"))
        and request.mismatch(str(metadata.get("sha256")), stat[0]) is None
    )


def _save_metadata(request: Request, path: Path, sha256: str) -> None:
    """Write the metadata of a checked file, before it moves into place. path: the file now."""
    stat = path.stat()
    write_json(request.metadata, {"sha256": sha256, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns})


def _check(request: Request, beat: Callable[[], None] = lambda: None) -> str:
    """Return the SHA-256 of the file in the cache. Raises WeightsError if it is not the published file."""
    sha256 = sha256_of(request.path, beat)
    if problem := request.mismatch(sha256, request.path.stat().st_size):
        raise WeightsError(
            f"{request.path} is not the published file: {problem}. Remove it; then the right one is "
            f"downloaded from {request.urls[0]}."
        )
    return sha256


def _cannot_write(request: Request, error: BaseException) -> str:
    """Return the message for a cache that cannot be written."""
    full = isinstance(error, OSError) and error.errno == errno.ENOSPC
    problem = "the disk is full; the downloaded part is kept" if full else str(error)
    room = f" with {request.size / 1e6:,.0f} MB free" if request.size else ""
    return (
        f"{request.path} cannot be downloaded: {problem}. Make room or give write permission there, or set "
        f"PPCLS_HOME to a folder{room}."
    )
