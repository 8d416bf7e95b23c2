"""States that a run is resumed from: all that its next step depends on, in one file.

Random numbers are not among it: each step draws its own from (seed, epoch, step, rank).
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import yaml

from ppcls import distributed
from ppcls.config import Config, config_of
from ppcls.errors import ConfigError, PpclsError
from ppcls.files import write_aside
from ppcls.processor import MKL_SETTING
from ppcls.training.optimizer import optimizer_state, set_optimizer_state

if TYPE_CHECKING:
    from paddle import Tensor

    from ppcls.training.loop import Trainer

FORMAT, VERSION = "ppcls state", 1
# What a resumed run may have otherwise: where things are, what is written, and what only ends a run or saves
# it from an end. The data's places are here because its content is compared. train.epochs: see below.
MAY_CHANGE = {
    *("output_dir", "device", "data.num_workers", "data.on_error"),
    *("data.train_root", "data.train_list", "data.eval_root", "data.eval_list", "data.class_names"),
    *("train.patience", "train.on_nan", "train.recompute", "train.log_seconds", "train.histograms"),
    *("train.keep_last", "train.keep_best", "train.checkpoint_minutes", "train.checkpoint_steps"),
}


@dataclass
class Sums:
    """Of the running epoch, on one process."""

    losses: float = 0.0
    images: float = 0.0
    skipped: float = 0.0
    seconds: float = 0.0
    waited: float = 0.0  # of the seconds, for data


@dataclass
class Progress:
    """How far a run is."""

    epoch: int = 0  # epochs that are trained, evaluated and in `history`
    step: int = 0  # updates of the running epoch, left-out ones too; all of them: it awaits its evaluation
    skipped_in_a_row: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)  # the lines of metrics.jsonl
    best: dict[str, Any] | None = None  # the best epoch's line


class State(NamedTuple):
    """arrays: "weights/", "ema/" and "optimizer/" with structured names, and "ranks" float64 [processes, N],
    what each has of its own: Sums and batch-norm statistics. facts: the rest, as JSON has it."""

    arrays: dict[str, np.ndarray]
    facts: dict[str, Any]


class DamagedState(PpclsError):
    """A file whose content is not what was written."""


def capture(trainer: "Trainer") -> State | None:
    """The state between two updates; None but on rank 0. All processes must call it together."""
    statistics = [tensor.numpy() for tensor in _statistics(trainer)]
    ranks = distributed.rows_of_ranks(np.concatenate([astuple(trainer.sums), *statistics]))
    if trainer.rank != 0:
        return None
    optimizer = optimizer_state(trainer.optimizer, trainer.model)
    if optimizer:
        trainer.awaiting_update = {}
    groups = {
        "weights": trainer.model.state_dict(),
        "ema": trainer.ema.state() if trainer.ema else {},
        "optimizer": optimizer or trainer.awaiting_update,
    }
    arrays = {f"{group}/{name}": t.numpy() for group, named in groups.items() for name, t in named.items()}
    text = trainer.config.to_yaml()
    facts = {
        "progress": asdict(trainer.progress),
        "ema_updates": trainer.ema.updates if trainer.ema else None,
        "scaler": trainer.precision.state(),
        "config": text,
        "config_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "meaning": trainer.meaning,
        "bits": _bits(),
    }
    return State(arrays | {"ranks": ranks}, facts)


def restore(trainer: "Trainer", state: State) -> list[str]:
    """Have the trainer, which has made no step yet, go on from a state, on every process.

    Returns what should be told: differences that do no harm. Raises ConfigError where the run would become
    another one, PpclsError for the state of another network.
    """
    import paddle

    notes = check_same_run(trainer, state)
    groups: dict[str, dict[str, Any]] = {"weights": {}, "ema": {}, "optimizer": {}}
    for key, array in state.arrays.items():
        group, _, name = key.partition("/")
        if group in groups:
            groups[group][name] = paddle.to_tensor(array)
    own = trainer.model.state_dict()
    shapes, found = ({k: list(t.shape) for k, t in named.items()} for named in (own, groups["weights"]))
    if shapes != found:
        raise PpclsError("The state holds the weights of another network. Resume with the one it came from.")
    for name, tensor in own.items():
        tensor.set_value(groups["weights"][name])
    if trainer.ema:
        trainer.ema.set_state(groups["ema"], state.facts["ema_updates"])
    if groups["optimizer"]:  # there is none before the first update
        set_optimizer_state(trainer.optimizer, trainer.model, groups["optimizer"])
        trainer.awaiting_update = groups["optimizer"]
    trainer.precision.set_state(state.facts["scaler"])
    row = state.arrays["ranks"][trainer.rank]
    start = len(fields(Sums))
    trainer.sums = Sums(*row[:start].tolist())
    for tensor in _statistics(trainer):
        tensor.set_value(row[start : start + tensor.shape[0]].astype(np.float32))
        start += tensor.shape[0]
    trainer.progress = Progress(**state.facts["progress"])
    return notes


def _statistics(trainer: "Trainer") -> "list[Tensor]":
    """Batch norm's, and their averages: between epochs each process has its own."""
    if trainer.ema is None:
        return trainer.statistics
    ids = {id(statistic) for statistic in trainer.statistics}
    names = [name for name, parameter in trainer.ema.parameters.items() if id(parameter) in ids]
    return trainer.statistics + [trainer.ema.averages[name] for name in names]


def what_is_trained(trainer: "Trainer") -> dict[str, Any]:
    """The number of processes, the data and the preprocessing."""
    data = trainer.config.data
    return {
        "processes": trainer.world_size,
        "training data": trainer.train_set.digest(data.train_root),
        "evaluation data": trainer.eval_set.digest(data.eval_root),
        "preprocessing": trainer.spec.to_dict(),
    }


def _bits() -> dict[str, Any]:
    """What moves the last bits of every number."""
    import paddle

    return {
        "Paddle": paddle.__version__,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
        MKL_SETTING: os.environ.get(MKL_SETTING),
        "device": paddle.get_device().partition(":")[0],
    }


def check_same_run(trainer: "Trainer", state: State) -> list[str]:
    """Notes on what differs and may. Raises ConfigError, with all that differs, where it changes what the run
    means: the network, the data, the batches, the recipe."""
    config = trainer.config
    before, now = _options(config_of(yaml.safe_load(state.facts["config"]))), _options(config)
    before |= state.facts["meaning"]
    now |= trainer.meaning
    changed = {
        name: f"{name} was {before[name]!r}, is {now[name]!r}" for name in now if before[name] != now[name]
    }
    may_change = MAY_CHANGE | (set() if config.optim.schedule == "cosine" else {"train.epochs"})
    refused = [text for name, text in changed.items() if name not in may_change]
    if refused:
        hint = ""
        if "train.epochs" in changed and "train.epochs" not in may_change:
            hint = " With optim.schedule=cosine each learning rate depends on train.epochs."
        raise ConfigError(
            f"This would go on as another run: {'; '.join(refused)}.{hint} Resume with what the run began "
            "with, its train.yaml and number of processes, or begin another one: -o output_dir=DIR, without "
            "--resume."
        )
    notes = [text for name, text in changed.items() if name != "output_dir"]
    was, bits = state.facts["bits"], _bits()
    notes += [
        f"{name} was {was.get(name)}, is {bits[name]}: the run goes on, but its bits will differ from those "
        "of an uninterrupted one"
        for name in bits
        if was.get(name) != bits[name]
    ]
    return notes


def _options(config: Config) -> dict[str, Any]:
    """{"train.epochs": 100, "seed": 0, ...}"""
    options: dict[str, Any] = {}
    for name, value in asdict(config).items():
        is_section = name in ("model", "data", "augment", "train", "optim")
        options |= {f"{name}.{key}": item for key, item in value.items()} if is_section else {name: value}
    return options


def state_path(folder: Path, step: int) -> Path:
    """step: updates since the run began."""
    return folder / f"state-{step:09d}.safetensors"


def states_in(folder: Path) -> list[Path]:
    """The oldest first."""
    return sorted(folder.glob("state-*.safetensors"))


def write_state(path: Path, state: State) -> None:
    """Raises PpclsError where it cannot be written; what was there before stays, and nothing half-written."""
    from safetensors.numpy import save_file

    text = json.dumps(state.facts)
    metadata = {"format": FORMAT, "version": str(VERSION), "facts": text}
    metadata["sha256"] = _digest(state.arrays, text)
    with writing(path), write_aside(path) as aside:
        save_file(state.arrays, aside, metadata)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises PpclsError in place of what the system says of a full disk or a folder that is read-only."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise PpclsError(
            f"{path} cannot be written: {error}. The states before are whole. Make room, or give the right "
            "to write there; then go on with --resume auto."
        ) from error


def read_state(path: Path) -> State:
    """Raises DamagedState for a file that is not as it was written, PpclsError for one of something else."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise PpclsError(f"There is no state {path}. Give a file checkpoints/state-*.safetensors, or auto.")
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise DamagedState(f"{path} is damaged ({error}).") from error
    if "facts" not in metadata or "sha256" not in metadata:
        raise PpclsError(f"{path} is no state of a run. Expected: a file checkpoints/state-*.safetensors.")
    if _digest(arrays, metadata["facts"]) != metadata["sha256"]:
        raise DamagedState(f"{path} is damaged (its SHA-256 is another).")
    if int(metadata["version"]) > VERSION:
        raise PpclsError(
            f"{path} has version {metadata['version']}, this ppcls reads {VERSION}. Upgrade ppcls."
        )
    return State(arrays, json.loads(metadata["facts"]))


def _digest(arrays: dict[str, np.ndarray], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def find_state(wanted: str, output: Path, note: Callable[[str], None]) -> Path | None:
    """The state that `--resume` means: "auto" the newest good one in output/checkpoints, None where there is
    none at all; else a file. A damaged one is reported and renamed, so that it counts as one no more.

    Raises PpclsError where all are damaged, and for a file that has newer ones beside it.
    """
    folder = output / "checkpoints"
    found = states_in(folder)
    if wanted != "auto":
        path = Path(wanted)
        newer = [other for other in found if other.name > path.name]
        if newer and path.parent.resolve() == folder.resolve():
            raise ConfigError(
                f"{output} has gone on to {newer[-1].name} since {path.name}. Go on from there, --resume "
                "auto, or from the older state in another folder: -o output_dir=DIR."
            )
        read_state(path)
        return path
    for path in reversed(found):
        try:
            read_state(path)
            return path
        except DamagedState as error:
            os.replace(path, path.with_name(f"{path.name}.damaged"))
            note(f"note: {error} It is now named {path.name}.damaged; trying the state before")
    if found:
        raise PpclsError(f"All states in {folder} are damaged. Start the run again: --overwrite.")
    return None


def prune(folder: Path, keep_last: int, best: Path | None) -> None:
    """Delete all states but the newest ones and the best epoch's."""
    for path in states_in(folder)[:-keep_last]:
        if path != best:
            path.unlink()
