"""The server's addresses, as an ASGI application. Its loop moves bytes only: workers decode and compute."""

import asyncio
import json
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import parse_qs

import anyio
import h11
import numpy as np
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import Message, Receive, Scope, Send

import ppcls
from ppcls.serving.access_log import AccessLog, Entry
from ppcls.serving.connection import IS_LOST, ON_LOST
from ppcls.serving.jobs import Job, Outputs
from ppcls.serving.limits import Limits
from ppcls.serving.metrics import CONTENT_TYPE, Metrics
from ppcls.serving.model import ServedModel, extras_of
from ppcls.serving.multipart import first_file
from ppcls.serving.page import HEADERS, page_of
from ppcls.serving.protocol import HEADER_LENGTH, MAX_JSON, VERSION, RequestError, encode_infer, parse_infer

EXTENSIONS = ["binary_tensor_data", "classification"]
TIMEOUT = "x-request-timeout-ms"  # header: milliseconds that the client waits
RESERVED_SECONDS = 1.0  # in which a slow sender keeps its place in the queue
CLIENT_LEFT = 499  # in the log and the figures only
CAUSES = {
    400: "malformed",
    404: "unknown",
    405: "method",
    408: "slow_body",
    411: "no_length",
    413: "too_large",
}
CAUSES |= {415: "encoding", 422: "unreadable", 429: "queue_full", CLIENT_LEFT: "client_left", 500: "internal"}
CAUSES |= {503: "unavailable", 504: "deadline"}


class ClientLeft(Exception):
    """The client closed its connection before its answer."""


class Server:
    """The models and the state that all requests share.

    is_draining: the server ends; further requests are refused. accepted: requests for inference between the
    decision to take them and their answer. buffered: bytes of their bodies.
    """

    def __init__(self, names: Sequence[str], limits: Limits, log: AccessLog) -> None:
        self.limits, self.log = limits, log
        self.metrics = Metrics(names)
        self.models = {name: ServedModel(name, limits, self.metrics) for name in names}
        self.is_draining = False
        self.accepted = 0
        self.buffered = 0

    @property
    def is_ready(self) -> bool:
        models = self.models.values()
        return not self.is_draining and all(model.ready and model.failure is None for model in models)

    def refuse_head(self, head: h11.Request) -> tuple[int, dict[str, str], bytes] | None:
        """Return the answer to a request whose head alone says that the queue of its model is full, or None
        for all others: they are read further."""
        path, _, query = head.target.decode("latin-1").partition("?")
        if head.method != b"POST":
            return None
        if path == "/predict":
            name = parse_qs(query).get("model", [next(iter(self.models))])[0]
            route = path
        elif path.startswith("/v2/models/") and path.endswith("/infer"):
            name = path.removeprefix("/v2/models/").removesuffix("/infer")
            route = "/v2/models/{model}/infer"
        else:
            return None
        model = self.models.get(name)
        if model is None or not model.queue.is_full or not model.ready or model.failure or self.is_draining:
            return None
        ids = [value for key, value in head.headers if key == b"x-request-id"]
        entry = Entry.of("POST", ids[0] if ids else None)
        entry.model, entry.status, entry.cause, entry.is_inference = name, 429, CAUSES[429], True
        entry.route = route
        self.metrics.failed(name, entry.cause)
        self.log.add(entry.to_dict())
        error = full(model)
        body = json.dumps({"error": str(error)}).encode()
        return error.status, error.headers | {"x-request-id": entry.request_id}, body

    def find(self, request: Request, name: str | None = None) -> ServedModel:
        """Return the model of a request's path, or of this name. Raises RequestError."""
        name = name or request.path_params["model"]
        version = request.path_params.get("version", VERSION)
        model = self.models.get(name)
        if model is None:
            raise RequestError(
                404, f"Unknown model. Expected: {', '.join(self.models)}. Received: {name[:100]!r}"
            )
        request.scope["entry"].model = model.name
        if version != VERSION:
            raise RequestError(
                404, f"{model.name} has the version {VERSION} only. Received: {version[:40]!r}"
            )
        return model

    def require_ready(self, model: ServedModel) -> None:
        """Raise RequestError if a request for inference cannot be taken now."""
        if self.is_draining:
            raise RequestError(
                503, "The server is draining: it ends.", {"Retry-After": "1", "Connection": "close"}
            )
        model.require_ready()


def full(model: ServedModel) -> RequestError:
    """Return the error of a full queue."""
    return RequestError(
        429, f"The queue of {model.name} is full.", {"Retry-After": str(model.seconds_to_wait)}
    )


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


def _json(values: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(json.dumps(values, allow_nan=False), status, headers, "application/json")


# What the addresses do


def infer_work(model: ServedModel, body: bytes, request: Request) -> tuple[Any, Any, float | None]:
    """Read a request of the protocol, and return what `answer` needs."""
    names = [tensor.name for tensor in model.outputs]
    asked = parse_infer(body, request.headers.get(HEADER_LENGTH), names, model.limits.images)

    def finish(outputs: Outputs) -> Response:
        values = model.values(outputs, (output.name for output in asked.outputs))
        content, length = encode_infer(asked, model.name, values, model.labels)
        if length is None:
            return Response(content, media_type="application/json")
        return Response(content, headers={HEADER_LENGTH: str(length)}, media_type="application/octet-stream")

    return asked.inputs, finish, asked.timeout


def predict_work(model: ServedModel, body: bytes, request: Request) -> tuple[Any, Any, float | None]:
    """Take the body, or the file in its form, as an image, and return what `answer` needs."""
    picture = first_file(body, request.headers.get("content-type", ""))
    topk = request.query_params.get("topk")
    if topk is not None and not (
        topk.isascii()
        and topk.isdecimal()
        and len(topk) <= 9
        and 1 <= int(topk) <= model.predictor.num_classes
    ):
        raise RequestError(
            400, f"topk is a number of classes, 1 to {model.predictor.num_classes}. Received: {topk[:40]!r}"
        )
    entry: Entry = request.scope["entry"]

    def finish(outputs: Outputs) -> Response:
        prediction = model.predict(outputs, None if topk is None else int(topk))
        best = zip(prediction.class_ids, prediction.labels, prediction.probabilities, strict=True)
        classes = [{"class": i, "name": name, "probability": p} for i, name, p in best]
        values = {"model": model.name, "predictions": classes, **extras_of(prediction)}
        return _json(values | {"milliseconds": round(1000 * entry.seconds, 3)})

    return [picture], finish, None


def explain_work(model: ServedModel, body: bytes, request: Request) -> tuple[Any, Any, float | None]:
    """Take the body, or the file in its form, as an image to explain, and return what `answer` needs."""
    picture, explain = first_file(body, request.headers.get("content-type", "")), model.explain
    if explain is None:
        raise RequestError(404, f"{model.name} is an export, without the network that explains its classes.")

    def finish(_: Outputs) -> Response:
        return Response(explain(model.load([picture])), media_type="image/jpeg")

    return [], finish, None


class Addresses:
    """A method for each address."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def routes(self) -> list[Route]:
        """Return the addresses, those of most requests first."""
        model, infer = "/v2/models/{model}", self.infer
        return [
            Route(f"{model}/infer", infer, methods=["POST"]),
            Route("/predict", self.predict, methods=["POST"]),
            Route("/explain", self.explain, methods=["POST"]),
            Route("/", self.page),
            Route("/v2/health/live", self.live),
            Route("/v2/health/ready", self.ready),
            Route("/metrics", self.metrics),
            Route("/v2", self.about),
            Route("/v2/models", self.models),
            *(
                route
                for start in (model, f"{model}/versions/{{version}}")
                for route in (Route(start, self.model), Route(f"{start}/ready", self.model_ready))
            ),
            Route(f"{model}/versions/{{version}}/infer", infer, methods=["POST"]),
        ]

    async def infer(self, request: Request) -> Response:
        model = self.server.find(request)
        max_bytes = None if HEADER_LENGTH in request.headers else MAX_JSON
        return await answer(self.server, model, request, infer_work, max_bytes)

    async def predict(self, request: Request) -> Response:
        return await answer(self.server, self._find_or_first(request), request, predict_work)

    async def explain(self, request: Request) -> Response:
        return await answer(self.server, self._find_or_first(request), request, explain_work)

    def _find_or_first(self, request: Request) -> ServedModel:
        name = request.query_params.get("model") or next(iter(self.server.models))
        return self.server.find(request, name)

    async def page(self, request: Request) -> Response:
        models = {name: model.explain is not None for name, model in self.server.models.items()}
        return Response(page_of(models), headers=HEADERS, media_type="text/html")

    async def live(self, request: Request) -> Response:
        return _json({"live": True})

    async def ready(self, request: Request) -> Response:
        is_ready = self.server.is_ready
        return _json({"ready": is_ready}, 200 if is_ready else 503)

    async def metrics(self, request: Request) -> Response:
        return Response(self.server.metrics.to_text(), headers={"Content-Type": CONTENT_TYPE})

    async def about(self, request: Request) -> Response:
        return _json({"name": "ppcls", "version": ppcls.__version__, "extensions": EXTENSIONS})

    async def models(self, request: Request) -> Response:
        return _json({"models": list(self.server.models)})

    async def model(self, request: Request) -> Response:
        model = self.server.find(request)
        model.require_ready()
        return _json(model.metadata())

    async def model_ready(self, request: Request) -> Response:
        model = self.server.find(request)
        is_ready = model.ready and model.failure is None and not self.server.is_draining
        return _json({"name": model.name, "ready": is_ready}, 200 if is_ready else 503)


class Shell:
    """The outermost layer: gives a request its id, answers errors, and writes the log and the figures."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._router = Router(Addresses(server).routes(), redirect_slashes=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = self  # so that the router raises HTTPException
        ids = [value for name, value in scope["headers"] if name == b"x-request-id"]
        entry = scope["entry"] = Entry.of(scope["method"], ids[0] if ids else None)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                entry.status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", entry.request_id.encode())]
            await send(message)

        try:
            response = await self._respond(scope, receive, send_with_id)
            if response is not None:
                await response(scope, receive, send_with_id)
        except ClientLeft:
            entry.status = CLIENT_LEFT
        finally:
            self._record(scope, entry)

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> Response | None:
        """Let the address answer, or return the error to answer."""
        try:
            await self._router(scope, receive, send)
        except RequestError as error:
            return _json({"error": str(error)}, error.status, error.headers)
        except HTTPException as error:
            return _json({"error": error.detail}, error.status_code, dict(error.headers or {}))
        except ClientLeft:
            raise
        except Exception:  # noqa: BLE001 - the server outlives a request
            print(traceback.format_exc(), file=sys.stderr, flush=True)
            return _json({"error": "internal error"}, 500)
        return None

    def _record(self, scope: Scope, entry: Entry) -> None:
        route = scope.get("route")
        entry.route = None if route is None else route.path
        status = entry.status or 500
        if status >= 400:
            entry.cause = CAUSES.get(status, "other")
        if entry.model is not None and entry.is_inference:
            if status < 400:
                self.server.metrics.answered(entry.model, entry.seconds, entry.waited or 0.0)
            else:
                self.server.metrics.failed(entry.model, entry.cause or "other")
        self.server.log.add(entry.to_dict())
