"""The server's addresses, as an ASGI application. Its loop moves bytes only: workers decode and compute."""

import json
import sys
import traceback
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import Message, Receive, Scope, Send

import ppcls
from ppcls.serving.access_log import CLIENT_LEFT, Entry
from ppcls.serving.intake import ClientLeft, answer
from ppcls.serving.jobs import Outputs
from ppcls.serving.metrics import CONTENT_TYPE
from ppcls.serving.model import ServedModel, extras_of
from ppcls.serving.multipart import first_file
from ppcls.serving.page import HEADERS, page_of
from ppcls.serving.protocol import HEADER_LENGTH, MAX_JSON, RequestError, encode_infer, parse_infer
from ppcls.serving.state import Server

EXTENSIONS = ["binary_tensor_data", "classification"]


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
        is_ready = model.ready and not self.server.is_draining
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
            route = scope.get("route")
            entry.route = None if route is None else route.path
            self.server.record(entry)

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> Response | None:
        """Let the address answer, or return the error to answer."""
        try:
            await self._router(scope, receive, send)
        except RequestError as error:
            # The frames of its traceback hold the pictures, and by the job's future the error: a circle,
            # which the garbage collector finds late.
            error.__traceback__ = error.__cause__ = error.__context__ = None
            return _json({"error": str(error)}, error.status, error.headers)
        except HTTPException as error:
            return _json({"error": error.detail}, error.status_code, dict(error.headers or {}))
        except ClientLeft:
            raise
        except Exception:  # noqa: BLE001 - the server outlives a request
            print(traceback.format_exc(), file=sys.stderr, flush=True)
            return _json({"error": "internal error"}, 500)
        return None
