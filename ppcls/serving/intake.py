"""The way of a request for inference: it is refused, or its body is read, it waits in the queue, and a worker
makes its answer."""

import asyncio
from collections.abc import Callable, Sequence

import anyio
import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from ppcls.serving.access_log import Entry
from ppcls.serving.connection import IS_LOST, ON_LOST
from ppcls.serving.jobs import Job, Outputs
from ppcls.serving.model import ServedModel
from ppcls.serving.protocol import RequestError
from ppcls.serving.state import Server, full

TIMEOUT = "x-request-timeout-ms"  # header: milliseconds that the client waits
RESERVED_SECONDS = 1.0  # in which a slow sender keeps its place in the queue


class ClientLeft(Exception):
    """The client closed its connection before its answer."""


# Makes of the body the job's inputs, the function that makes the answer of the outputs, and the seconds that
# the client waits, if the body states them.
Work = Callable[
    [ServedModel, bytes, Request],
    tuple[Sequence[bytes] | np.ndarray, Callable[[Outputs], Response], float | None],
]


async def answer(
    server: Server, model: ServedModel, request: Request, work: Work, max_bytes: int | None = None
) -> Response:
    """Take a request for inference, or refuse it before its body is read, and return its answer.

    max_bytes: of the body, if less than the server's limit. Raises RequestError or ClientLeft.
    """
    entry: Entry = request.scope["entry"]
    entry.is_inference = True
    server.require_ready(model)
    deadline = entry.started + _timeout(request, server.limits.deadline)
    limit = min(max_bytes or server.limits.body_bytes, server.limits.body_bytes)
    _require_length(request, limit)
    place = Place(model)
    server.accepted += 1
    try:
        body = await read_body(server, request, limit)
        inputs, finish, timeout = work(model, body, request)
        entry.images = len(inputs)
        if timeout is not None:
            deadline = min(deadline, entry.started + timeout)
        job = Job(inputs, finish, deadline)
        place.fill(job)
        try:
            return await wait_for(model, job, request)
        finally:
            entry.waited = job.taken - job.queued if job.taken else None
    finally:
        place.close()
        server.buffered -= entry.size
        server.accepted -= 1


async def wait_for(model: ServedModel, job: Job, request: Request) -> Response:
    """Return a job's result. Raises RequestError at the deadline if it still waits, and ClientLeft if the
    client goes away before a worker has taken it."""
    timer = asyncio.get_running_loop().call_at(job.deadline, model.queue.cancel, job)
    request.scope[ON_LOST] = lambda: model.queue.cancel(job)
    if request.scope[IS_LOST]:
        model.queue.cancel(job)
    try:
        return await asyncio.wrap_future(job.future)
    except asyncio.CancelledError:
        if not job.future.cancelled():
            raise
        if request.scope[IS_LOST]:
            raise ClientLeft from None
        raise RequestError(504, "The deadline passed while the request waited.") from None
    finally:
        timer.cancel()


async def read_body(server: Server, request: Request, limit: int) -> bytes:
    """Return a request's body. Raises RequestError if it is too large or too slow, or if all bodies together
    are too large; ClientLeft if it is cut off."""
    entry: Entry = request.scope["entry"]
    chunks = []
    try:
        with anyio.fail_after(server.limits.upload):
            while True:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientLeft
                chunks.append(message.get("body", b""))
                entry.size += len(chunks[-1])
                server.buffered += len(chunks[-1])
                if entry.size > limit:
                    raise _too_large(limit, "more")
                if server.buffered > server.limits.buffer_bytes:
                    raise RequestError(429, "The bodies of all requests are too large.", {"Retry-After": "1"})
                if not message.get("more_body", False):
                    return chunks[0] if len(chunks) == 1 else b"".join(chunks)
    except TimeoutError:
        raise RequestError(
            408, f"The body did not arrive within {server.limits.upload:g} seconds.", {"Connection": "close"}
        ) from None


def _require_length(request: Request, limit: int) -> None:
    """Raise RequestError for a stated length above the limit, before a byte of the body is read."""
    if "content-encoding" in request.headers:
        raise RequestError(415, "Send the body as it is, without Content-Encoding.")
    length = request.headers.get("content-length", "0")
    if len(length) > 18 or int(length) > limit:
        raise _too_large(limit, length[:30])


def _too_large(limit: int, received: str) -> RequestError:
    return RequestError(413, f"A body may have {limit} bytes. Received: {received}")


def _timeout(request: Request, default: float) -> float:
    """Return the seconds that a request may wait. Raises RequestError."""
    text = request.headers.get(TIMEOUT)
    if text is None:
        return default
    if not (text.isascii() and text.isdecimal() and 0 < len(text) <= 9):
        raise RequestError(400, f"{TIMEOUT} is a whole number of milliseconds. Received: {text[:40]!r}")
    return min(default, int(text) / 1000)


class Place:
    """A place in a model's queue while a request's body is read. A slow sender loses it to others."""

    def __init__(self, model: ServedModel) -> None:
        self._model = model
        self.is_held = False
        self.take()
        self._timer = asyncio.get_running_loop().call_later(RESERVED_SECONDS, self.release)

    def take(self) -> None:
        """Reserve the place, if it is not held. Raises RequestError for a full queue."""
        if not self.is_held:
            self.is_held = self._model.queue.reserve()
        if not self.is_held:
            raise full(self._model)

    def release(self) -> None:
        if self.is_held:
            self._model.queue.release()
            self.is_held = False

    def fill(self, job: Job) -> None:
        """Put the job into the place. Raises RequestError if it was lost and the queue is full."""
        self.take()
        self.is_held = False
        self._model.queue.put(job)

    def close(self) -> None:
        self._timer.cancel()
        self.release()
