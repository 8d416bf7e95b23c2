"""Cache folder, atomic writes, and the run-folder lock."""

import contextlib
import hashlib
import json
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from ppcls.errors import ConfigError, PpclsError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def cache_dir() -> Path:
    """Return the cache folder: PPCLS_HOME, or ppcls in the user's own cache folder.

    Raises PpclsError if there is no home folder.
    """
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


# Folders whose names stand for files that are open, such as /dev/stdout
OPEN_FILES = Path("/dev"), Path("/dev/fd"), Path("/proc/self/fd")


def _must_stay(path: Path) -> bool:
    """Return whether a file is written into, and not replaced by another: a device, a pipe, an open file."""
    return path.exists() and (not path.is_file() or path.parent in OPEN_FILES)


@contextmanager
def write_aside(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`. Without an error, its file is synced and renamed to `path`, with
    the mode that new files have: safetensors makes files that nobody else can read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if _must_stay(path):
        yield path
        return
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.touch()
        mode = aside.stat().st_mode
        yield aside
        if aside.stat().st_mode != mode:
            aside.chmod(mode)
        with aside.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
        _sync_folder(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def require_place(given: Path, option: str, file: str = "") -> None:
    """Raise ConfigError if no file can be written at `given`, or as `file` in the folder `given`, before the
    work whose result it will be."""
    path = given / file
    if path.is_dir():
        problem = f"{path} is a folder"
    elif _must_stay(path):
        return
    else:
        folder = next(parent for parent in path.parents if parent.exists())
        if folder.is_dir() and os.access(folder, os.W_OK | os.X_OK):
            return
        problem = f"nothing can be written in {folder}" if folder.is_dir() else f"{folder} is not a folder"
    raise ConfigError(f"{option} cannot be written: {problem}. Choose another place. Received: {given}")


def sha256_of(path: Path, beat: Callable[[], None] = lambda: None) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits. beat: called after each megabyte."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            beat()
    return digest.hexdigest()


def write_text(path: Path, text: str, errors: str = "strict") -> None:
    """Write a text file in UTF-8, whole or not at all. errors: what becomes of characters that UTF-8 has not,
    such as Python's surrogates for the bytes of an odd file name."""
    with write_aside(path) as aside:
        aside.write_text(text, encoding="utf-8", errors=errors)


def write_json(path: Path, values: Any) -> None:
    """Write a JSON file, whole or not at all. It is valid UTF-8 whatever the names in it are."""
    text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    write_text(path, text, errors="backslashreplace")  # of a surrogate: its escape in JSON too


def _sync_folder(folder: Path) -> None:
    """Sync a folder, so that a new name in it survives a power failure. Only where folders can be synced."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems refuse
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a folder for this process, and create it if necessary. One that was created, and in which nothing
    was written, is removed at the end.

    The lock ends with the context or the process, even one that is killed. Raises ConfigError if another
    process holds it, or if nothing can be written there.
    """
    require_place(folder, "output_dir", "run.lock")
    created = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "run.lock"
    with path.open("a+", encoding="utf-8") as file:
        _lock(file, folder)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # another process has put something there; or Windows
                if created and os.listdir(folder) == [path.name]:
                    path.unlink()
                    for parent in created:
                        parent.rmdir()


def _lock(file: TextIO, folder: Path) -> None:
    """Raise ConfigError if another process has locked the file, or removed it at its end a moment ago."""
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        raise ConfigError(
            f"Another run is writing into {folder}: {file.read().strip() or 'process unknown'}. Wait for its "
            "end or stop it, or choose another folder: -o output_dir=DIR."
        ) from None
    except OSError as error:
        print(f"note: {folder} cannot be locked ({error.strerror})", file=sys.stderr)
    if not os.fstat(file.fileno()).st_nlink:
        raise ConfigError(f"Another run in {folder} ended while this one began. Start it again.")
