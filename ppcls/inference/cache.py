"""Exports that the tools make for themselves, kept so that the next run needs none."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ppcls.errors import ExportError
from ppcls.files import cache_dir
from ppcls.inference.artifact import read_artifact

KEPT = 8  # the most recently used


def cached_export(facts: Any, export: Callable[[Path], object]) -> Path:
    """The folder of the export that `facts` (anything JSON can hold) stand for; `export` writes it if it
    isn't there yet. They must name all that it depends on, the versions of the converters included."""
    from filelock import FileLock

    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    home = cache_dir() / "exported"
    folder = home / digest
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(str(home / f"{digest}.lock")):
        try:
            read_artifact(folder)
        except ExportError:
            if folder.exists():
                shutil.rmtree(folder)
            export(folder)
        os.utime(folder)
    _forget_old(home, keep=folder)
    return folder


def _forget_old(home: Path, keep: Path) -> None:
    """Remove what was not used lately, and what killed exports have left for a day."""
    for path in home.glob(".*"):
        if path.is_dir() and time.time() - path.stat().st_mtime > 86400:
            shutil.rmtree(path, ignore_errors=True)
    folders = [path for path in home.iterdir() if path.is_dir() and not path.name.startswith(".")]
    for folder in sorted(folders, key=lambda path: path.stat().st_mtime, reverse=True)[KEPT:]:
        if folder != keep:
            shutil.rmtree(folder, ignore_errors=True)  # its lock stays: another process may wait for it
