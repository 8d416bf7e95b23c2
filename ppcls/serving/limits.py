"""The limits of a server. Each is an option of `ppcls serve`, and the comment behind a field is its help."""

from dataclasses import dataclass
from typing import Annotated

from ppcls.typed import Rule

Count = Annotated[int, Rule("at least 1", lambda value: value >= 1)]
# The system waits for no longer times than some centuries.
Positive = Annotated[float, Rule("more than 0 and at most 1e9", lambda value: 0 < value <= 1e9)]
NotNegative = Annotated[float, Rule("from 0 to 1e9", lambda value: 0 <= value <= 1e9)]


@dataclass(frozen=True)
class Limits:
    queue: Count = 64  # requests that may wait for each model; more are answered 429
    deadline: Positive = 10.0  # seconds; a request that still waits then is answered 504
    body: Positive = 16.0  # MiB of a request's body; a larger one is answered 413
    buffer: Positive = 512.0  # MiB of the bodies of all requests; further ones are answered 429
    pixels: Positive = 50.0  # millions of pixels of a picture; a larger one is answered 413
    images: Count = 32  # pictures of a request; more are answered 413
    upload: Positive = 10.0  # seconds in which a body must arrive; a slower one is answered 408
    idle: Positive = 75.0  # seconds; a connection that has no request for so long is closed
    connections: Count = 512  # at a time; a further one is answered 503
    drain: Positive = 30.0  # seconds after SIGTERM in which the accepted requests are answered
    reopen: Positive = 30.0  # seconds from one attempt to open a model again that has failed to the next
    batch: Count = 2  # pictures of waiting requests that are computed together
    wait: NotNegative = 0.0  # milliseconds that a batch waits for further requests
    streams: Count | None = None  # batches side by side while requests wait; by default as many as cores

    @property
    def body_bytes(self) -> int:
        return int(self.body * 2**20)

    @property
    def buffer_bytes(self) -> int:
        return int(self.buffer * 2**20)
