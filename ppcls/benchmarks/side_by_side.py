"""Training steps with several kernels, and those of timm on torch, in turns: their speeds and ratios."""

import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from ppcls.benchmarks.train import STEPS_PER_EPOCH, now, synthetic_batches
from ppcls.build import Network
from ppcls.config import Config, KernelsOption
from ppcls.errors import ConfigError, first_line
from ppcls.training.state import TrainState
from ppcls.training.step import train_step

TORCH = Path(__file__).parent / "torch_steps.py"
TIMM = {f"EfficientNetB{number}": f"tf_efficientnet_b{number}" for number in range(8)}
TIMM |= {f"EfficientNetLite{number}": f"tf_efficientnet_lite{number}" for number in range(5)}
TIMM |= {f"ResNeXt101_32x{width}d_wsl": f"resnext101_32x{width}d" for width in (8, 16, 32, 48)}

Steps = Callable[[int], float]  # makes so many steps, and returns the seconds that they took


def measure_side_by_side(
    config: Config,
    build: Callable[[], Network],
    kernels: Sequence[KernelsOption],
    torch: str | None,
    *,
    steps: int,
    rounds: int,
) -> dict[str, Any]:
    """Measure training steps on a drawn batch with each of `kernels` in turns, in `rounds` rounds of `steps`.

    build: returns a new network, one for each. torch: the Python of an environment with torch and timm, which
    makes the steps of timm's network in a process of its own; None for none.
    Returns for each the images a second and the ratios to the first one, by rounds.
    """
    with ExitStack() as stack:
        rows: dict[str, Steps] = {}
        for option in kernels:
            network = build()
            size = network.preprocessing.crop_size
            state, run_on = _steps_on(replace(config, kernels=option), network)
            rows[f"{option}: {state.kernels.name}"] = run_on
        if torch is not None:
            process = stack.enter_context(TorchProcess(torch, config, size))
            rows[process.name] = process.run
        for run in rows.values():
            run(2)  # the first steps allocate memory and create primitives
        seconds: dict[str, list[float]] = {name: [] for name in rows}
        for _ in range(rounds):
            for name, run in rows.items():
                seconds[name].append(run(steps))
    images = config.data.batch_size * config.train.accumulate * steps
    first = next(iter(seconds.values()))
    return {
        name: {
            "images_per_second": _summary([images / taken for taken in own]),
            "ratio": _summary([base / taken for base, taken in zip(first, own, strict=True)]),
        }
        for name, own in seconds.items()
    }


def _summary(values: Sequence[float]) -> dict[str, float]:
    return {"median": median(values), "min": min(values), "max": max(values)}


def _steps_on(config: Config, network: Network) -> tuple[TrainState, Steps]:
    """Return a state over the network, and its steps."""
    state = TrainState(config, network.model, STEPS_PER_EPOCH)
    batches = synthetic_batches(config, network.preprocessing)

    def run(steps: int) -> float:
        state.train_mode()
        start = now()
        for step in range(steps):
            train_step(state, batches, 1e-4, step)
        return now() - start

    return state, run


class TorchProcess:
    """A process that makes steps of timm's network when it is told to: see torch_steps.py."""

    def __init__(self, python: str, config: Config, size: int) -> None:
        """Start it. Raises ConfigError if timm has no such network, or if the process fails."""
        name = config.model.name
        if name not in TIMM:
            raise ConfigError(f"timm has no {name}: leave --beside-torch out. Received: {python}")
        shape = [str(value) for value in (size, config.data.batch_size * config.train.accumulate)]
        command = [python, str(TORCH), TIMM[name], *shape, str(config.model.num_classes)]
        self.python = python
        try:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        except OSError as error:
            raise ConfigError(f"--beside-torch: {python} cannot be run: {error.strerror}.") from error
        self.name = self._ask()

    def __enter__(self) -> "TorchProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()  # it ends with its input

    def run(self, steps: int) -> float:
        """Make steps. Returns the seconds that they took."""
        start = time.perf_counter()
        self._ask(f"{steps}\n")
        return time.perf_counter() - start

    def _ask(self, line: str = "") -> str:
        """Write a line, and return the line that answers it."""
        answer, stdin, stdout = "", self.process.stdin, self.process.stdout
        with suppress(BrokenPipeError):
            if stdin is not None and stdout is not None:
                stdin.write(line)
                stdin.flush()
                answer = stdout.readline().strip()
        if not answer:
            _, errors = self.process.communicate()
            raise ConfigError(
                "--beside-torch needs the Python of an environment with torch and timm. Received: "
                f"{self.python}, which failed: {first_line(RuntimeError(errors))}"
            )
        return answer
