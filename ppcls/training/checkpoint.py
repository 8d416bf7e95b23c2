"""Files of states that a run is resumed from: write, read, find, prune."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ppcls.config_files import CHECKPOINTS
from ppcls.errors import ConfigError, PpclsError
from ppcls.files import write_aside
from ppcls.format1 import convert_config
from ppcls.training.state import SavedState

# Version 2 keeps the record of the start file ("start") and has today's options in "config".
FORMAT, VERSION = "ppcls state", 2
HEADER = "facts"  # the header's key in a file's metadata


class DamagedState(PpclsError):
    """A file whose content has changed since it was written."""


def state_path(folder: Path, step: int) -> Path:
    """Return the path of a state. step: updates since the run began."""
    return folder / f"state-{step:09d}.safetensors"


def states_in(folder: Path) -> list[Path]:
    """Return the states in a folder, the oldest first."""
    return sorted(folder.glob("state-*.safetensors"))


def write_state(path: Path, state: SavedState) -> None:
    """Write a state, whole or not at all. Raises PpclsError if it cannot be written, or has a value that is
    not finite, since no run could continue from it."""
    from safetensors.numpy import save_file

    broken = [name for name, array in state.arrays.items() if not np.isfinite(array).all()]
    if broken:
        raise PpclsError(
            f"{path.name} is not saved: {len(broken)} of its {len(state.arrays)} arrays have values that "
            f"are not finite, the first of them {broken[0]}. Resume from the previous state: --resume auto. "
            "If it ends here again, add -o train.on_nan=skip, or start another run with a lower optim.lr."
        )
    text = json.dumps(state.header)
    metadata = {"format": FORMAT, "version": str(VERSION), HEADER: text}
    metadata["sha256"] = _digest(state.arrays, text)
    with writing(path), write_aside(path) as aside:
        save_file(state.arrays, aside, metadata)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise PpclsError in place of the system's error about a full disk or a read-only folder."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise PpclsError(
            f"{path} cannot be written: {error}. The earlier states are whole. Make room, or allow writing "
            "there; then resume with --resume auto."
        ) from error


def read_state(path: Path) -> SavedState:
    """Read a state; one of version 1 is converted.

    Raises DamagedState if the file is not as it was written, PpclsError for a file of another kind.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        state = "is a folder, not a state" if path.is_dir() else "does not exist"
        raise PpclsError(
            f"{path} {state}. Give a file checkpoints/state-*.safetensors to --resume, or auto for the "
            "newest one in output_dir."
        )
    with path.open("rb") as file:
        head = file.read(9)
    # Safetensors begin with the length of their header and a brace. A file with a state's name is damaged.
    if not path.match("state-*.safetensors") and head[4:] != b"\0\0\0\0{":
        raise PpclsError(
            f"{path} is not the state of a run, but another kind of file. Give a file "
            "checkpoints/state-*.safetensors to --resume; weights to start a new run from are given as "
            "train.start_from."
        )
    try:
        with safe_open(path, "numpy") as opened:
            metadata = opened.metadata() or {}
            arrays = {name: opened.get_tensor(name) for name in opened.keys()}
    except SafetensorError as error:
        raise DamagedState(f"{path} is damaged ({error}).") from error
    if HEADER not in metadata or "sha256" not in metadata:
        raise PpclsError(
            f"{path} is not the state of a run. Expected: a file checkpoints/state-*.safetensors."
        )
    if _digest(arrays, metadata[HEADER]) != metadata["sha256"]:
        raise DamagedState(f"{path} is damaged (its content does not match its SHA-256).")
    version = int(metadata["version"])
    if version > VERSION:
        raise PpclsError(f"{path} has version {version}, this ppcls reads up to {VERSION}. Upgrade ppcls.")
    header = json.loads(metadata[HEADER])
    return SavedState(arrays, _convert_header(header) if version == 1 else header)


def _convert_header(header: dict[str, Any]) -> dict[str, Any]:
    """Return a header of version 1 with today's options in its config.

    It has no "start" if the run began from a file, of which version 1 kept no record.
    """
    tree = convert_config(yaml.safe_load(header["config"]), of_training=True)
    text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
    header = header | {"config": text, "config_sha256": hashlib.sha256(text.encode()).hexdigest()}
    return header if tree["train"]["start_from"] else header | {"start": None}


def _digest(arrays: dict[str, np.ndarray], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def find_state(requested: str, output: Path, log: Callable[[str], None]) -> Path | None:
    """Return the path of the state that `--resume` requests.

    "auto" is the newest good state in the run's folder `output`; None if there is no state at all. A damaged
    state is logged and renamed, so that it is not found again.
    Raises PpclsError if all are damaged, or for a file that has newer states beside it.
    """
    folder = output / CHECKPOINTS
    found = states_in(folder)
    if requested != "auto":
        path = Path(requested)
        newer = [other for other in found if other.name > path.name]
        if path.is_file() and newer and path.parent.resolve() == folder.resolve():
            raise ConfigError(
                f"{output} has a newer state than {path.name}: {newer[-1].name}. Resume from the newest one, "
                "--resume auto, or from the older one in another folder: -o output_dir=DIR."
            )
        read_state(path)
        return path
    for path in reversed(found):
        try:
            read_state(path)
            return path
        except DamagedState as error:
            os.replace(path, path.with_name(f"{path.name}.damaged"))
            log(f"note: {error} It is now named {path.name}.damaged; trying the state before it")
    if found:
        raise PpclsError(f"All states in {folder} are damaged. Start the run again: --overwrite.")
    return None


def prune(folder: Path, keep_last: int, best: Path | None) -> None:
    """Delete all states except for the newest ones and the best epoch's."""
    for path in states_in(folder)[:-keep_last]:
        if path != best:
            path.unlink()
