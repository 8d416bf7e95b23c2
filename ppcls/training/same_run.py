"""The identity of a run: its config, its data, its start. A resumed run must have the same."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ppcls import distributed
from ppcls.config import Config
from ppcls.config_files import parse_config
from ppcls.data.dataset import Dataset
from ppcls.errors import ConfigError
from ppcls.files import sha256_of
from ppcls.onednn import PADDLE
from ppcls.preprocessing import Preprocessing
from ppcls.processor import MKL_SETTING
from ppcls.weights.load import WeightsInfo

# Options that a resumed run may change: places of files, output, and what only ends a run or keeps it from an
# end. The data's places and the file of weights are among them because their content is compared, the start
# because the state has it.
MAY_CHANGE = {
    *("output_dir", "device", "kernels", "data.num_workers", "data.on_error"),
    *("data.max_unreadable", "data.allow_overlap"),
    *("data.train_root", "data.train_list", "data.eval_root", "data.eval_list", "data.class_names"),
    *("train.start_from", "train.start_variant", "train.start_averaged"),
    *(
        "train.class_weights",
        "train.patience",
        "train.on_nan",
        "train.recompute",
        "train.log_seconds",
        "train.histograms",
    ),
    *("train.keep_last", "train.keep_best", "train.checkpoint_minutes", "train.checkpoint_steps"),
}
NEED_LENGTH = ("cosine", "halving")  # schedules in which a learning rate depends on the length of the run
# Options that are not compared: they concern evaluation.
NOT_COMPARED = {"model.weights", "model.variant", "model.averaged"}
PREPROCESSING = "data.preprocessing."  # compared as resolved


@dataclass(frozen=True)
class RunIdentity:
    """The identity of a run.

    fingerprint: the number of processes, digests of the data and of the classes' weights, the resolved
    preprocessing. start: the record of the weights that training started from; None for random ones.
    kernels: the name of those it runs on.
    """

    config: Config
    fingerprint: dict[str, Any]
    start: WeightsInfo | None
    kernels: str

    def to_header(self) -> dict[str, Any]:
        """Return the header's entries, as JSON has them."""
        text = self.config.to_yaml()
        return {
            "config": text,
            "config_sha256": hashlib.sha256(text.encode()).hexdigest(),
            "meaning": self.fingerprint,
            "bits": environment(self.kernels),
            "start": self.start and self.start.to_dict(),
        }


def take_fingerprint(
    config: Config,
    train_set: Dataset,
    eval_set: Dataset,
    preprocessing: Preprocessing,
    class_weights: np.ndarray | None,
) -> dict[str, Any]:
    """Return what identifies a run beyond its config. class_weights: their values, float64 [C]."""
    weights = None if class_weights is None else hashlib.sha256(class_weights.tobytes()).hexdigest()[:16]
    return {
        "processes": distributed.world_size(),
        "training data": train_set.digest(config.data.train_root),
        "evaluation data": eval_set.digest(config.data.eval_root),
        "preprocessing": preprocessing.to_dict(),
        "values of train.class_weights": weights,
    }


def environment(kernels: str) -> dict[str, Any]:
    """Return what decides the last bits of every number. kernels: the name of those that the network uses."""
    import paddle

    return {
        "Paddle": paddle.__version__,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
        MKL_SETTING: os.environ.get(MKL_SETTING),
        "device": paddle.get_device().partition(":")[0],
        "kernels": kernels,
    }


def check_same_run(identity: RunIdentity, header: dict[str, Any]) -> list[str]:
    """Compare a run with the header of the state that it resumes from, field by field.

    Returns notes on differences that are allowed. Raises ConfigError, with all of them, for differences that
    would make it another run: the network, the data, the batches, the recipe.
    """
    before = _fields(parse_config(yaml.safe_load(header["config"])), header["meaning"])
    now = _fields(identity.config, identity.fingerprint)
    changed = {
        name: f"{name} was {before.get(name)!r}, is {now[name]!r}"
        for name in now
        if before.get(name) != now[name]
    }
    schedule = identity.config.optim.schedule
    needs_length = schedule in NEED_LENGTH
    may_change = MAY_CHANGE if needs_length else MAY_CHANGE | {"train.epochs"}
    refused = [text for name, text in changed.items() if name not in may_change]
    if refused:
        hint = ""
        if needs_length and "train.epochs" in changed:
            hint = f" With optim.schedule={schedule} each learning rate depends on train.epochs."
        raise ConfigError(
            f"This would not be the same run: {'; '.join(refused)}.{hint} Resume with the run's own "
            "train.yaml and number of processes, or start another run: -o output_dir=DIR, without --resume."
        )
    notes = [text for name, text in changed.items() if name != "output_dir"]
    was, is_now = {"kernels": PADDLE} | header["bits"], environment(identity.kernels)
    notes += [
        f"{name} was {was.get(name)}, is {is_now[name]}: the run resumes, but its last bits will differ from "
        "those of an uninterrupted one"
        for name in is_now
        if was.get(name) != is_now[name]
    ]
    return notes


def check_start_file(start: WeightsInfo) -> list[str]:
    """Return a note if the file that training started from is there, but is not the same any more."""
    path = Path(start.path)
    try:
        digest = sha256_of(path) if path.is_file() else start.sha256
    except OSError:  # not needed, so it may be unreadable
        return []
    if digest == start.sha256:
        return []
    return [
        f"{path} is not the file that training started from: its sha256 was {start.sha256[:16]}, is "
        f"{digest[:16]}. The state has all that the run needs of the old one"
    ]


def _fields(config: Config, fingerprint: dict[str, Any]) -> dict[str, Any]:
    """Return the fields to compare: {"train.epochs": 100, "data.preprocessing.crop_size": 224, ...}"""
    found = {
        name: value
        for name, value in _options(config)
        if name not in NOT_COMPARED and not name.startswith(PREPROCESSING)
    }
    resolved = {f"{PREPROCESSING}{name}": value for name, value in fingerprint["preprocessing"].items()}
    rest = {name: value for name, value in fingerprint.items() if name != "preprocessing"}
    found["train.best_by"] = config.train.measure
    return found | resolved | rest


def _options(section: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each option's full name and value."""
    for item in fields(section):
        value = getattr(section, item.name)
        if is_dataclass(value):
            yield from _options(value, f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}", value
