"""One connection of HTTP/1.1: uvicorn's, with limits for clients that are too many, too slow or silent."""

import json
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

# Keys of a request's scope: whether its client has gone, and a function that is called when it goes.
IS_LOST, ON_LOST = "ppcls.is_lost", "ppcls.on_lost"
MAX_HEAD = 1 << 16  # bytes of a request's line and headers
LATER = (b"connection", b"expect")  # headers of requests that are not refused by their head alone
CHECKS = 4  # in the time that a connection may be idle


# Returns the answer to a request that is refused by its head alone, or None.
RefuseHead = Callable[[h11.Request], tuple[int, Mapping[str, str], bytes] | None]


class _Heads(h11.Connection):
    """The bytes of a connection as events. A request that `refuse` answers is written at once, its body is
    thrown away, and nobody else sees it: under an overload most requests are such, and must cost little."""

    refuse: RefuseHead
    write: Callable[[bytes], None]
    _is_refused = False

    def next_event(self) -> Any:
        while True:
            event = super().next_event()
            if self._is_refused:
                if isinstance(event, h11.EndOfMessage):
                    self._is_refused = False
                    self.start_next_cycle()
                elif not isinstance(event, h11.Data):
                    return event
            elif isinstance(event, h11.Request) and (answer := self._answer(event)) is not None:
                self._is_refused = True
                self.write(answer)
            else:
                return event

    def _answer(self, request: h11.Request) -> bytes | None:
        if request.http_version != b"1.1" or any(name in LATER for name, _ in request.headers):
            return None
        refused = self.refuse(request)
        if refused is None:
            return None
        status, headers, body = refused
        return _encode(self, status, headers, body)


def _encode(connection: h11.Connection, status: int, headers: Mapping[str, str], body: bytes) -> bytes:
    """Return the bytes of an answer."""
    fields = {"content-type": "application/json", "content-length": str(len(body)), **headers}
    reason = HTTPStatus(status).phrase.encode()
    head = h11.Response(status_code=status, headers=list(fields.items()), reason=reason)
    parts = [connection.send(event) for event in (head, h11.Data(data=body), h11.EndOfMessage())]
    return b"".join(part for part in parts if part)


class Connection(H11Protocol):
    """A connection without a request in work for `idle` seconds is closed, whether it is silent, sends a head
    slowly, or the rest of a body that was answered already. So is one whose client does not take its answer.
    """

    idle = 75.0
    most = 512
    refuse_head: RefuseHead = staticmethod(lambda head: None)

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.conn = _Heads(h11.SERVER, MAX_HEAD)
        self.conn.refuse, self.conn.write = self.refuse_head, self._write_refusal
        self._since: float | None = time.monotonic()  # None: a request is in work, and its answer flows
        self._timer = self.loop.call_later(self.idle / CHECKS, self._check)
        if len(self.connections) > self.most:
            self._refuse(503, f"The server has {self.most} connections, which is its limit.")

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        super().connection_lost(exc)
        if self._has_request():
            scope: Any = self.scope
            scope[IS_LOST] = True
            scope[ON_LOST]()

    def handle_events(self) -> None:
        super().handle_events()
        scope: Any = self.scope
        if scope is not None and IS_LOST not in scope:
            scope |= {IS_LOST: False, ON_LOST: lambda: None}
        if self._has_request() and not self.flow.write_paused:
            self._since = None

    def on_response_complete(self) -> None:
        self._since = time.monotonic()
        super().on_response_complete()

    def pause_writing(self) -> None:
        self._since = time.monotonic()
        super().pause_writing()

    def resume_writing(self) -> None:
        self._since = None if self._has_request() else time.monotonic()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, msg)

    def _has_request(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _check(self) -> None:
        if self._since is not None and time.monotonic() - self._since > self.idle:
            self.transport.abort()
        else:
            self._timer = self.loop.call_later(self.idle / CHECKS, self._check)

    def _write_refusal(self, answer: bytes) -> None:
        self._since = time.monotonic()
        self.transport.write(answer)

    def _refuse(self, status: int, reason: str) -> None:
        """Answer an error outside of a request, and close."""
        body = json.dumps({"error": reason}).encode()
        try:
            self.transport.write(_encode(self.conn, status, {"connection": "close"}, body))
        except h11.LocalProtocolError:  # in the middle of another answer
            pass
        self.transport.close()
