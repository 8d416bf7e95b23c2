"""Transfer a file over HTTP from the first of its URLs that has it: resume, retry, and check it."""

import http.client
import random
import time
from typing import Any

import requests
import urllib3

from ppcls.errors import WeightsError
from ppcls.files import sha256_of
from ppcls.weights.cached_file import Progress, Request, discard, read_json, size_of, write_json

CONNECT_TIMEOUT = 10.0  # seconds
READ_TIMEOUT = 30.0  # seconds in which MIN_PROGRESS must arrive
MIN_PROGRESS = 32 * 1024  # bytes; an attempt that brings fewer counts as failed
TRIES = 5  # failed attempts in a row, for each URL
PAUSE = 1.0  # seconds before the second attempt; doubled each time up to MAX_PAUSE
MAX_PAUSE = 30.0
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


def transfer(request: Request, progress: Progress) -> str:
    """Download the rest of request.part and check it. Return its SHA-256. Raises WeightsError."""
    reasons = []
    for url in request.urls:
        try:
            return _transfer_from(url, request, progress)
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


def _transfer_from(url: str, request: Request, progress: Progress) -> str:
    """Download from one URL, with retries. Return the SHA-256. Raises _Unavailable."""
    furthest, failures = size_of(request.part), 0
    while True:
        progress.beat()
        try:
            resumed = _receive(url, request, progress)
            sha256 = sha256_of(request.part, progress.beat)
            size, stated = size_of(request.part), read_json(request.part_metadata).get("total")
            problem = request.mismatch(sha256, size)
            if problem is None and stated not in (None, size):
                problem = f"it has {size:,} bytes, the server stated {stated:,}"
            if problem is None:
                return sha256
            discard(request.part)
            # A crash may have damaged one of several pieces. A file in one piece is the server's own.
            raise (_Retry if resumed else _Unavailable)(f"{problem}. The downloaded part was removed")
        except _Retry as error:
            if size_of(request.part) - furthest >= MIN_PROGRESS:
                furthest, failures = size_of(request.part), 0
            failures += 1
            if failures >= TRIES:
                raise _Unavailable(f"{TRIES} attempts made no progress; the last: {error}") from error
            pause = min(PAUSE * 2 ** (failures - 1), MAX_PAUSE) * random.uniform(0.5, 1.5)
            pause = max(pause, min(error.wait, MAX_PAUSE))
            progress.log(f"{request.path.name}: {error}. Next attempt in {pause:.1f} s")
            time.sleep(pause)


def _receive(url: str, request: Request, progress: Progress) -> bool:
    """Download the rest of the part, or all of it if the server cannot resume. Return whether it resumed.

    Raises _Unavailable or _Retry.
    """
    have = size_of(request.part)
    metadata = read_json(request.part_metadata)
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
                    write_json(request.part_metadata, {"url": url, "total": total} | validators)
                _copy(response, file, start, total, progress)
            return start > 0
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        # The ValueErrors among them: a URL or an address of a proxy that is not valid.
        if isinstance(error, ValueError | requests.TooManyRedirects):
            raise _Unavailable(_reason(error)) from error
        raise _Retry(_reason(error)) from error


def _check_answer(response: requests.Response, request: Request, have: int, metadata: dict[str, Any]) -> None:
    """Raise _Unavailable or _Retry unless the bytes of the file follow, from the start or from `have`.

    metadata: that of the part.
    """
    status = response.status_code
    if status in TEMPORARY or status >= 500:
        wait = response.headers.get("Retry-After", "")
        raise _Retry(f"HTTP {status} {response.reason}", float(wait) if wait.isdecimal() else 0.0)
    if status == 416:
        discard(request.part)
        raise _Retry(f"the server's file ends before byte {have}. Starting over")
    if status not in (200, 206):
        raise _Unavailable(f"HTTP {status} {response.reason}")
    if response.headers.get("Content-Type", "").startswith("text/html"):
        raise _Unavailable("the server sent a web page instead of the file, perhaps from a proxy or a login")
    if status == 206:
        # Some servers ignore If-Range.
        changed = any(response.headers.get(key) not in (None, metadata.get(key)) for key in VALIDATORS)
        if changed or not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            discard(request.part)
            raise _Retry("the file on the server has changed. Starting over")


def _total(response: requests.Response, request: Request) -> int | None:
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


def _copy(response: requests.Response, file: Any, have: int, total: int | None, progress: Progress) -> None:
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
