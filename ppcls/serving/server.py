"""The server's process: its port, the loading of its models, and its end."""

import asyncio
import gc
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from types import FrameType

import uvicorn

from ppcls.commands import command_line
from ppcls.errors import ConfigError
from ppcls.inference.predictor import Predictor
from ppcls.serving.access_log import AccessLog
from ppcls.serving.app import Shell
from ppcls.serving.connection import MAX_HEAD, Connection
from ppcls.serving.limits import Limits
from ppcls.serving.memory import used_memory
from ppcls.serving.model import Explain
from ppcls.serving.state import Server

BACKLOG = 1024  # connections that the system holds until they are accepted
NEVER = 10**9  # seconds
LEAVE_SECONDS = 2.0  # for answers that are on their way when all else is done
Open = Callable[[], Predictor]
OpenExplainer = Callable[[Predictor], Explain]
Log = Callable[[str], None]


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens. Raises ConfigError if the address cannot be taken."""
    try:
        (family, kind, protocol, _, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"The server cannot listen on {host}, port {port}: {reason}. Give another --port or --host; "
            f"{command_line('serve', 'MODEL', '--port', '0')} takes any free port."
        ) from error
    return listener


def address_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def serve(
    models: Mapping[str, Open],
    listener: socket.socket,
    limits: Limits,
    log: Log,
    explainers: Mapping[str, OpenExplainer] | None = None,
) -> int:
    """Serve the models until SIGTERM or SIGINT, and return the exit code: 0 if all accepted requests were
    answered, 1 if some took longer than `limits.drain`, or a second signal came before. log: receives a line
    for each step. explainers: of the models that have them.

    Raises PpclsError if a model cannot be opened.
    """
    lines = AccessLog()
    server = Server(list(models), limits, lines)
    loader = threading.Thread(target=lambda: process.load(models, explainers or {}), name="load", daemon=True)
    process = _Process(server, log, loader)
    try:
        process.run(sockets=[listener])
    finally:
        lines.close()
    if process.error is not None:
        raise process.error
    return 1 if process.is_cut else 0


class _Process(uvicorn.Server):
    """uvicorn's server, which loads the models while it listens, and drains them before it ends. loader: a
    thread that calls `load`."""

    def __init__(self, server: Server, log: Log, loader: threading.Thread) -> None:
        limits = server.limits
        connection = type(
            "Connection",
            (Connection,),
            {"idle": limits.idle, "most": limits.connections, "refuse": staticmethod(server.refuse)},
        )
        super().__init__(
            uvicorn.Config(
                Shell(server),
                http=connection,
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="error",  # no lines of wrong requests: they are answered
                access_log=False,
                server_header=False,
                proxy_headers=False,
                h11_max_incomplete_event_size=MAX_HEAD,
                timeout_keep_alive=NEVER,  # the connection has its own limit
                timeout_graceful_shutdown=int(LEAVE_SECONDS),
            )
        )
        self._server, self._log, self._loader = server, log, loader
        self._loop: asyncio.AbstractEventLoop | None = None
        self._drain: asyncio.Task | None = None
        self.error: Exception | None = None
        self.is_cut = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        for listener in sockets or ():
            self._log(f"listening on {address_of(listener)}")
        self._loader.start()

    def load(self, models: Mapping[str, Open], explainers: Mapping[str, OpenExplainer]) -> None:
        """Open the models one after the other, in a thread of its own, and later those anew that fail."""
        try:
            for name, open_model in models.items():
                memory = used_memory()
                model, predictor = self._server.models[name], open_model()
                if name in explainers:
                    model.explain = explainers[name](predictor)
                self._log(model.start(predictor, memory))
        except Exception as error:  # noqa: BLE001 - `serve` raises it in the main thread
            self.error = error
            self.should_exit = True
            return
        gc.collect()
        gc.freeze()  # what was loaded stays, and need not be looked through again
        self._take_signals()
        self._log("ready")
        self._reopen_failed()

    def _reopen_failed(self) -> None:
        """Open the engines of models that failed again, from time to time, as long as the process lives."""
        while True:
            time.sleep(self._server.limits.reopen)
            for name, model in self._server.models.items():
                if model.failure is None:
                    continue
                self._log(f"{name} failed: {model.failure} It is opened again.")
                try:
                    model.reopen()
                except Exception as error:  # noqa: BLE001 - it is tried again
                    self._log(f"{name} could not be opened: {error}")
                else:
                    self._log(f"{name} is ready again")

    def _take_signals(self) -> None:
        """Handle signals again: a library that was loaded may have taken them."""
        if self._loop is not None:
            handled = (signal.SIGTERM, signal.SIGINT)
            self._loop.call_soon_threadsafe(
                lambda: [signal.signal(number, self.handle_exit) for number in handled]
            )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain; at a second signal, end at once."""
        if self._server.is_draining or self._loop is None:
            self.is_cut |= self._server.accepted > 0
            self.should_exit = self.force_exit = True
            return
        self._server.is_draining = True
        self._loop.call_soon_threadsafe(self._begin_drain)

    def _begin_drain(self) -> None:
        self._log(f"draining: {self._server.accepted} requests are being answered")
        self._drain = asyncio.ensure_future(self._drain_all())

    async def _drain_all(self) -> None:
        until = time.monotonic() + self._server.limits.drain
        while self._server.accepted and time.monotonic() < until:
            await asyncio.sleep(0.02)
        if self._server.accepted:
            self.is_cut = True
            self._log(f"the time to drain is over: {self._server.accepted} requests were not answered")
        for model in self._server.models.values():
            model.close()
        self.should_exit = True
