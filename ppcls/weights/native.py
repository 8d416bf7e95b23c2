"""This project's own file of weights: safetensors, whose metadata says what they are.

Keys are the network's own. The metadata holds JSON texts: the format's version, the model, the number of
classes, their names, the preprocessing, and whatever the writer adds.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from ppcls.errors import WeightsError

FORMAT = "ppcls"
VERSION = 1


def write_weights(path: Path, arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> None:
    """Write aside, sync, rename: `path` is the old file or the whole new one, whatever happens."""
    from safetensors.numpy import save_file

    metadata = {"format": FORMAT, "version": str(VERSION)}
    metadata |= {key: json.dumps(value, ensure_ascii=False) for key, value in facts.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file(arrays, aside, metadata)
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def read_weights(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays by key, and the metadata's facts. Raises WeightsError for another or a broken file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise WeightsError(
                    f"{path} is a safetensors file, but not one of this project's: its metadata has no "
                    f"format={FORMAT}. Received: {metadata or 'none'}"
                )
            if int(metadata.get("version", 0)) > VERSION:
                raise WeightsError(
                    f"{path} has format version {metadata['version']}, this ppcls reads up to {VERSION}. "
                    "Upgrade ppcls."
                )
            facts = {k: json.loads(v) for k, v in metadata.items() if k not in ("format", "version")}
            return {key: file.get_tensor(key) for key in file.keys()}, facts
    except (SafetensorError, ValueError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(
            f"{path} is no whole safetensors file: {error}. Copy or download it again."
        ) from error
