"""One connection of HTTP/1.1: uvicorn's, with limits for clients that are too many, too slow or silent, and a
short way to refuse requests."""

import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

# Keys of a request's scope: whether its client has gone, and a function that is called when it goes.
IS_LOST, ON_LOST = "ppcls.is_lost", "ppcls.on_lost"
MAX_HEAD = 1 << 16  # bytes of a request's line and headers
CHECKS = 4  # in the time that a connection may be idle
_HEAD = re.compile(rb"POST (/[!-~]*) HTTP/1\.1\r\n((?:[\w-]+:[\t -~]*\r\n){1,64})\r\n", re.ASCII)
_FIELD = re.compile(rb"([\w-]+):[\t ]*([\t -~]*?)[\t ]*\r\n", re.ASCII)
# Headers of requests that take the long way: their bodies have no length, or the answer depends on more.
_OTHER = {b"connection", b"expect", b"transfer-encoding", b"upgrade"}


@dataclass(frozen=True)
class Head:
    """The request line and the headers of a POST. target: its path and query. length: of these bytes.
    content: of the bytes of its body."""

    target: str
    request_id: bytes | None
    length: int
    content: int

    @staticmethod
    def of(data: bytes) -> "Head | None":
        """Return the head with which the data begins, if it is whole and as simple as nearly all are. All
        others are h11's to read."""
        found = _HEAD.match(data)
        if found is None:
            return None
        listed = _FIELD.findall(found[2])
        fields = {name.lower(): value for name, value in listed}
        content = fields.get(b"content-length", b"")
        if len(fields) < len(listed) or b"host" not in fields or fields.keys() & _OTHER:
            return None
        if not content.isdigit() or len(content) > 18:
            return None
        return Head(found[1].decode(), fields.get(b"x-request-id"), found.end(), int(content))


Refusal = tuple[int, Mapping[str, str], bytes]  # an answer's status, headers and body
# Returns the answer to a request that is refused by its head alone, or None.
Refuse = Callable[[Head], Refusal | None]


def _encode(status: int, headers: Mapping[str, str], body: bytes) -> bytes:
    """Return the bytes of an answer."""
    fields = {"content-type": "application/json", "content-length": str(len(body)), **headers}
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", *map(": ".join, fields.items()), "", ""]
    return "\r\n".join(lines).encode() + body


class Connection(H11Protocol):
    """A connection without a request in work for `idle` seconds is closed, whether it is silent, sends a head
    slowly, or the rest of a body that was answered already. So is one whose client does not take its answer.

    Under an overload most requests are refused, and must cost little: one that `refuse` answers is answered
    at once, and its body is thrown away as it comes. Neither h11 nor the application sees it.
    """

    idle = 75.0
    most = 512
    refuse: Refuse = staticmethod(lambda head: None)
    _unread = 0  # bytes of a refused request's body that are still to come

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._since: float | None = time.monotonic()  # None: a request is in work, and its answer flows
        self._timer = self.loop.call_later(self.idle / CHECKS, self._check)
        if len(self.connections) > self.most:
            self._close_with(503, f"The server has {self.most} connections, which is its limit.")

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()  # after a reset, uvicorn's timer would keep it for good
        if self._has_request():
            scope: Any = self.scope
            scope[IS_LOST] = True
            scope[ON_LOST]()

    def data_received(self, data: bytes) -> None:
        while self._unread or self._is_at_a_head():
            skipped = min(self._unread, len(data))
            self._unread -= skipped
            data = data[skipped:]
            if not data:
                return
            # answers that the client does not take would fill memory: h11 reads no further ones
            head = None if self.flow.write_paused else Head.of(data)
            refusal = None if head is None else self.refuse(head)
            if head is None or refusal is None:
                break
            self._since = time.monotonic()
            self.transport.write(_encode(*refusal))
            self._unread, data = head.content, data[head.length :]
        super().data_received(data)

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
        self._close_with(400, msg)

    def _has_request(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _is_at_a_head(self) -> bool:
        """Whether the next byte begins a request."""
        return (
            not self._has_request() and self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]
        )

    def _check(self) -> None:
        if self._since is not None and time.monotonic() - self._since > self.idle:
            self.transport.abort()
        else:
            self._timer = self.loop.call_later(self.idle / CHECKS, self._check)

    def _close_with(self, status: int, reason: str) -> None:
        """Answer an error outside of a request, and close."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # not in the middle of another answer
            body = json.dumps({"error": reason}).encode()
            self.transport.write(_encode(status, {"connection": "close"}, body))
        self.transport.close()
