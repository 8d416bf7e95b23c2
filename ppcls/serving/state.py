"""State that all requests to a server share: its models, figures and log, and whether it takes requests."""

import json
from collections.abc import Sequence
from urllib.parse import parse_qs

from starlette.requests import Request

from ppcls.serving.access_log import AccessLog, Entry, cause_of
from ppcls.serving.connection import Head, Refusal
from ppcls.serving.limits import Limits
from ppcls.serving.metrics import Metrics
from ppcls.serving.model import ServedModel
from ppcls.serving.protocol import VERSION, RequestError


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
        return not self.is_draining and all(model.ready for model in self.models.values())

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

    def refuse(self, head: Head) -> Refusal | None:
        """Return the answer to a POST whose head alone says that the queue of its model is full, or None for
        all others: they are read further."""
        path, _, query = head.target.partition("?")
        if path == "/predict":
            name = parse_qs(query).get("model", [next(iter(self.models))])[-1]
            route = path
        elif path.startswith("/v2/models/") and path.endswith("/infer"):
            name = path.removeprefix("/v2/models/").removesuffix("/infer")
            route = "/v2/models/{model}/infer"
        else:
            return None
        model = self.models.get(name)
        if model is None or not model.queue.is_full or not model.ready or self.is_draining:
            return None
        error = full(model)
        entry = Entry.of("POST", head.request_id)
        entry.route, entry.model, entry.status, entry.is_inference = route, name, error.status, True
        self.record(entry)
        body = json.dumps({"error": str(error)}).encode()
        return error.status, error.headers | {"x-request-id": entry.request_id}, body

    def record(self, entry: Entry) -> None:
        """Count a request that was answered or has ended, and log it."""
        status = entry.status or 500
        if status >= 400:
            entry.cause = cause_of(status)
        if entry.model is not None and entry.is_inference:
            if entry.cause is None:
                self.metrics.answered(entry.model, entry.seconds, entry.waited or 0.0)
            else:
                self.metrics.failed(entry.model, entry.cause)
        self.log.add(entry.to_dict())


def full(model: ServedModel) -> RequestError:
    """Return the error of a full queue."""
    return RequestError(
        429, f"The queue of {model.name} is full.", {"Retry-After": str(model.seconds_to_wait)}
    )
