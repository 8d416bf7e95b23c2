"""A server under load on this machine, compared with the predictor itself on the same files."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

import numpy as np

from ppcls.commands import command_line
from ppcls.errors import ConfigError, ExportError
from ppcls.inference.predictor import Predictor

LOADING = 600.0  # seconds in which the server must be ready
CLIENTS = 8  # side by side, for the throughput
TIMES = 4  # the overload is this many times the capacity
SAMPLE = 0.25  # seconds between two looks at the memory
PAUSE = 0.5  # seconds between measurements


@dataclass(frozen=True)
class Sizes:
    """Sizes of a benchmark. rounds: of about `seconds` for each measurement. requests: of the overload.
    queue: the server's limit. Raises ConfigError for seconds that cannot be."""

    rounds: int
    seconds: float
    requests: int
    queue: int

    def __post_init__(self) -> None:
        if not 0 < self.seconds < math.inf:
            raise ConfigError(f"--seconds must be more than 0. Received: {self.seconds}")


class ServerProcess:
    """`ppcls serve` in a process of its own, on a free port of this machine."""

    def __init__(self, arguments: Sequence[str], log: Path) -> None:
        """Start it and wait until it is ready. Raises ExportError if it is not."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = log
        command = [sys.executable, "-m", "ppcls", "serve", *arguments, "--port", str(self.port)]
        with log.open("wb") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        end = time.monotonic() + LOADING
        while not self._is_ready():
            if self.process.poll() is not None or time.monotonic() > end:
                self.process.kill()
                raise ExportError(f"The server did not start: {log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.1)

    def _is_ready(self) -> bool:
        try:
            opener = build_opener(ProxyHandler({}))  # not by the proxy of the environment
            with opener.open(f"http://127.0.0.1:{self.port}/v2/health/ready", timeout=5) as answer:
                return answer.status == 200
        except (URLError, OSError):
            return False

    def memory(self) -> float:
        """Return the resident memory of the process in MiB, 0 where the system does not say."""
        try:
            pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        except (OSError, ValueError):
            return 0.0
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def loop_seconds(self) -> float:
        """Return the seconds of the processor that the event loop, which is the first thread, has used; 0
        where the system does not say."""
        try:
            text = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/stat").read_text()
        except OSError:
            return 0.0
        user, system = text.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> int:
        """End it as an orchestrator does, and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)


class LoadProcess:
    """The generator of load.py in a process of its own."""

    def __init__(self, port: int, path: str, files: Sequence[str]) -> None:
        self.port = port
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ppcls.benchmarks.load"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._write({"path": path, "files": list(files)})

    def _write(self, values: dict[str, Any]) -> None:
        if self.process.stdin is not None:
            self.process.stdin.write(json.dumps(values) + "\n")
            self.process.stdin.flush()

    def begin(self, **order: Any) -> None:
        """Begin a run: see `load.run`."""
        self._write({"port": self.port, **order})

    def end(self) -> dict[str, Any]:
        """Return the figures of the run that was begun, the rows as an array [N, 4]. Raises ExportError."""
        line = self.process.stdout.readline() if self.process.stdout is not None else ""
        if not line:
            raise ExportError("The load generator failed: its message is above.")
        figures = json.loads(line)
        figures["rows"] = np.array(sorted(figures["rows"]), float).reshape(-1, 4)
        return figures

    def stop(self) -> None:
        self.process.communicate()  # it ends with its input


def measure_serve(
    predictor: Predictor, server: ServerProcess, load: LoadProcess, files: Sequence[str], sizes: Sizes
) -> dict[str, Any]:
    """Measure `predictor.stream` on the files and the server with CLIENTS clients in turns, then single
    images and one client in turns, then planned arrivals at TIMES the capacity, which is measured right
    before and behind them. predictor: of the model that is served.

    Returns rates in images a second, times in milliseconds and memory in MiB.
    """
    rounds, seconds = sizes.rounds, sizes.seconds
    datas = [Path(file).read_bytes() for file in files]
    _stream(predictor, files, 1.0)  # warm up
    _closed(load, CLIENTS, 1.0)
    rates: dict[str, list[float]] = {"stream": [], "server": []}
    for number in range(rounds):
        for name in list(rates)[:: 1 if number % 2 else -1]:
            time.sleep(PAUSE)
            is_stream = name == "stream"
            rates[name].append(
                _stream(predictor, files, seconds) if is_stream else _closed(load, CLIENTS, seconds)["rate"]
            )
    singles: list[tuple[float, float]] = []
    for _ in range(rounds):
        time.sleep(PAUSE)
        own = _single(predictor, datas, seconds / 2)
        time.sleep(PAUSE)
        singles.append((own, _closed(load, 1, seconds / 2)["p50"]))
    shares = [s / p for s, p in zip(rates["server"], rates["stream"], strict=True)]
    return {
        "images_per_second": {name: _summary(values) for name, values in rates.items()},
        "share_of_stream": _summary(shares),
        "milliseconds_of_one": {
            "predictor": median(own for own, _ in singles),
            "server": median(served for _, served in singles),
        },
        "cost_of_one": _summary([served - own for own, served in singles]),
        "overload": _overload(server, load, sizes),
    }


def _summary(values: Sequence[float]) -> dict[str, float]:
    return {"median": median(values), "min": min(values), "max": max(values)}


def _stream(predictor: Predictor, files: Sequence[str], seconds: float) -> float:
    """Return images a second of the predictor's stream, for about so long."""
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        done += sum(prediction.error is None for prediction in predictor.stream(files))
    return done / (time.perf_counter() - start)


def _single(predictor: Predictor, datas: Sequence[bytes], seconds: float) -> float:
    """Return the median milliseconds of the predictor on the bytes of one file."""
    start = time.perf_counter()
    times: list[float] = []
    while time.perf_counter() - start < seconds:
        began = time.perf_counter()
        predictor(datas[len(times) % len(datas)])
        times.append(1000 * (time.perf_counter() - began))
    return median(times)


def _closed(load: LoadProcess, clients: int, seconds: float) -> dict[str, float]:
    """Return the rate of answers and their median milliseconds, with so many clients. Raises ExportError for
    an answer other than 200."""
    load.begin(clients=clients, seconds=seconds)
    figures = load.end()
    planned, _, answered, status = figures["rows"].T
    if not (status == 200).all():
        found = ", ".join(map(str, sorted({*status.astype(int).tolist()})))
        raise ExportError(
            f"The server answered {found}; 200 was expected. 422 is for a picture that cannot be read: "
            f"{command_line('data', 'check', 'FOLDER')} finds it."
        )
    return {"rate": len(status) / figures["seconds"], "p50": float(np.median(answered - planned)) * 1000}


def _overload(server: ServerProcess, load: LoadProcess, sizes: Sizes) -> dict[str, Any]:
    """Plan arrivals at TIMES the capacity, at random as of clients that know nothing of one another. Each
    latency counts from the planned arrival."""
    before = _closed(load, CLIENTS, sizes.seconds)["rate"]
    rate = TIMES * before
    planned = np.random.RandomState(0).exponential(1 / rate, sizes.requests).cumsum()
    memory, loop = [server.memory()], server.loop_seconds()
    load.begin(planned=planned.tolist())
    end = time.monotonic() + planned[-1]
    while time.monotonic() < end:
        time.sleep(SAMPLE)
        memory.append(server.memory())
    figures = load.end()
    memory.append(server.memory())
    loop = server.loop_seconds() - loop
    capacity = (before + _closed(load, CLIENTS, sizes.seconds)["rate"]) / 2
    arrived, sent, answered, status = figures["rows"].T
    latency = 1000 * (answered - arrived)
    is_good = status == 200
    goodput = is_good.sum() / answered[is_good].max() if is_good.any() else 0.0
    quarter = memory[len(memory) // 4 :]
    return {
        "requests": sizes.requests,
        "capacity": capacity,
        "planned_rate": rate,
        "goodput": float(goodput),
        "share_of_capacity": float(goodput) / capacity,
        "statuses": {int(code): int((status == code).sum()) for code in np.unique(status)},
        "accepted": _latencies(latency[is_good]),
        "rejected": _latencies(latency[status == 429]),
        "accepted_limit": 1000 * 2 * sizes.queue / float(goodput) if goodput else 0.0,
        "memory": {"start": memory[0], "quarter": quarter[0], "peak": max(memory), "end": memory[-1]},
        "loop_processor_share": loop / figures["seconds"],
        "generator": {
            "processor_share": figures["processor_seconds"] / figures["seconds"],
            "lag": _latencies(1000 * (sent - arrived)),
        },
    }


def _latencies(values: np.ndarray) -> dict[str, float] | None:
    if not len(values):
        return None
    names = {"p50": 50, "p99": 99, "max": 100}
    return {name: float(np.percentile(values, share)) for name, share in names.items()}
