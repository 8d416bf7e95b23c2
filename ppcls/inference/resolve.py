"""Resolve the name that a user predicts with: a model, a YAML file, a training run or an export; for Python
and the commands alike. Imports no Paddle."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ppcls.commands import same_command
from ppcls.config import Config
from ppcls.config_files import find_run, is_export, load_config, parse_config, run_of_checkpoint
from ppcls.errors import ConfigError
from ppcls.inference.artifact import read_artifact


class Resolved(NamedTuple):
    """config: all options. export: the folder of the exported network that runs; None: the network that the
    config describes runs, with model.weights."""

    config: Config
    export: Path | None


def resolve_model(
    name: str | Path | None,
    overrides: Sequence[str] = (),
    exported: str | Path | None = None,
    *,
    to_train: bool = False,
) -> Resolved:
    """Return what `name` means: a model by its name, a YAML file, the folder of a training run (or
    weights in its checkpoints), or the folder of an export.

    exported: the folder of an export; `name` then gives the options of its data, or is None. to_train: keep
    data.class_names of a run, which its weights do not bring to a training.
    Raises ConfigError or ExportError, with what to give instead.
    """
    if name is not None and is_export(name):
        if exported is not None:
            raise ConfigError(f"Two exported models are given. Received: {name} and {exported}. Give one.")
        name, exported = None, name
    if exported is not None:
        return _with_export(Path(exported), name, overrides)
    if name is None:
        raise ConfigError(
            "No model is given. Expected: MODEL, which is the name of one, such as EfficientNetLite0, a YAML "
            "file, the folder of a training run, or the folder of an export."
        )
    config = load_config(name, overrides)
    return Resolved(config if to_train else _with_own_names(config, overrides), None)


def _with_own_names(config: Config, overrides: Sequence[str]) -> Config:
    """Return the config of a run without data.class_names: its weights have the names that it was trained
    with, and the file may have changed since. An override of it counts."""
    weights = config.model.weights
    is_given = any(
        override.partition("=")[0].strip() in ("data", "data.class_names") for override in overrides
    )
    if is_given or weights is None or run_of_checkpoint(Path(weights)) is None:
        return config
    return replace(config, data=replace(config.data, class_names=None))


def _with_export(folder: Path, name: str | Path | None, overrides: Sequence[str]) -> Resolved:
    """Return the config for an exported model, and its folder.

    name: of the config for its data, or None for the defaults. Raises ConfigError for another network, and
    for an override of the network, which an export has in its files."""
    if not is_export(folder) and find_run(folder):
        raise ConfigError(
            f"{folder} is the folder of a training run, not of an exported model. Give it without "
            f"--exported: {same_command(folder)}"
        )
    artifact = read_artifact(folder)
    model = {"name": artifact.model, "num_classes": artifact.num_classes}
    own = parse_config({"model": dict(model)}).model
    config = parse_config({"model": dict(model)}, overrides) if name is None else load_config(name, overrides)
    for option in model if name is not None else vars(own):
        given, expected = getattr(config.model, option), getattr(own, option)
        if given != expected:
            raise ConfigError(
                f"model.{option} is {given}, but the exported model {folder} has its network and its weights "
                f"in its files, with {expected}. Leave model.{option} out, or give the run or the "
                "config instead."
            )
    return Resolved(config, folder)
