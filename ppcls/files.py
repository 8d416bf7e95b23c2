"""Where the project keeps files of its own, and how it writes any: whole or not at all."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ppcls.errors import PpclsError


def cache_dir() -> Path:
    """PPCLS_HOME, or ppcls in the user's cache folder."""
    if home := os.environ.get("PPCLS_HOME"):
        return Path(home).expanduser().absolute()
    if sys.platform == "win32":
        folder, default = os.environ.get("LOCALAPPDATA"), "~/AppData/Local"
    else:
        folder, default = os.environ.get("XDG_CACHE_HOME"), "~/.cache"
    try:
        return Path(folder or default).expanduser() / "ppcls"
    except RuntimeError as error:
        raise PpclsError(f"The cache has no place: {error} Set PPCLS_HOME to a folder.") from error


@contextmanager
def write_aside(path: Path) -> Iterator[Path]:
    """A place to write to, whose file is synced and moved to `path` if nothing goes wrong."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield aside
        with aside.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
