"""Cache of exported networks, so that a network is exported once for all runs of the tools."""

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ppcls.config import Config
from ppcls.errors import ExportError, PpclsError
from ppcls.files import cache_dir
from ppcls.inference.artifact import read_artifact
from ppcls.inference.versions import versions

KEPT = 8  # the most recently used
FORGOTTEN_AFTER = 86400.0  # seconds; then the unfinished folder of a killed export is removed


def export_key(config: Config) -> str:
    """Return the name in the cache for the export of a config's network. Downloads model.weights if
    necessary; imports no Paddle.

    It is a hash of the model, the number of classes, the SHA-256 of the weights (without weights the seed),
    the other options that choose weights (model.averaged, model.variant), the published weights that were
    fetched, timm's config.json beside the file, and the versions of all packages that take part. It does not
    depend on preprocessing and class names, because a Predictor can replace those of an export.
    """
    from ppcls.files import sha256_of
    from ppcls.weights.load import locate

    model = config.model
    parts: dict[str, Any] = {"model": model.name, "num_classes": model.num_classes, "versions": versions()}
    parts["embeddings"] = True  # exports of an earlier ppcls had none
    if model.weights is None:
        parts["seed"] = config.seed
    else:
        path, published = locate(model.name, model.weights, model.variant)
        beside = path.with_name("config.json")
        parts |= {
            "sha256": sha256_of(path),
            "variant": model.variant,
            "averaged": model.averaged,
            "published": published and published.tag,
            "config.json": sha256_of(beside) if beside.is_file() else None,
        }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def find_cached(key: str) -> Path | None:
    """Return the folder of the complete export with this key, or None."""
    try:
        folder = cache_dir() / "exported" / key
        read_artifact(folder)
    except PpclsError:  # no home folder, no export, or a damaged one
        return None
    with contextlib.suppress(OSError):  # a cache that cannot be written can still be read
        os.utime(folder)
    return folder


def cached_export(key: str, export: Callable[[Path], object]) -> Path:
    """Return the folder of the export with this key. If there is none, `export` writes it, once for all
    processes that call this. Raises ExportError if the cache cannot be written."""
    from filelock import FileLock

    home = cache_dir() / "exported"
    folder = home / key
    try:
        home.mkdir(parents=True, exist_ok=True)
        with FileLock(str(home / f"{key}.lock")):
            if find_cached(key) is None:
                if folder.exists():
                    shutil.rmtree(folder)
                export(folder)
        _forget_old(home, folder)
    except OSError as error:
        raise ExportError(
            f"The cache {home} cannot be written: {error.strerror or error}. Set PPCLS_HOME to a folder that "
            "can be, or take --engine eager, which needs none."
        ) from error
    return folder


def _forget_old(home: Path, used: Path) -> None:
    """Remove all exports but the KEPT that were used last, and after a day the leftovers of killed ones."""
    ages: dict[Path, float] = {}
    for path in home.iterdir():
        with contextlib.suppress(OSError):  # another process may have moved or removed it
            if path.is_dir():
                ages[path] = time.time() - path.stat().st_mtime
    unfinished = [path for path in ages if path.name.startswith(".")]
    finished = sorted(ages.keys() - unfinished, key=lambda path: ages[path])
    for path in [path for path in unfinished if ages[path] > FORGOTTEN_AFTER] + finished[KEPT:]:
        if path != used:
            shutil.rmtree(path, ignore_errors=True)  # its lock stays: another process may wait for it
