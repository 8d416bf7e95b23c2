"""Standard streams that take every text, and that outlive their reader."""

import errno
import io
import os
import sys
from contextlib import suppress
from typing import Any

STREAMS = {"stdout": 1, "stderr": 2}


class _LastingFile(io.FileIO):
    """A descriptor that drops what is written from its first failure on, and keeps that error."""

    failure: OSError | None = None

    def write(self, data: Any) -> int:
        if self.failure is None:
            try:
                return super().write(data)
            except OSError as error:
                self.failure = error
                sink = os.open(os.devnull, os.O_WRONLY)  # for libraries that write to the descriptor
                os.dup2(sink, self.fileno())
                os.close(sink)
        return len(data)


_files: dict[str, _LastingFile] = {}  # those of the streams that `make_streams_last` replaced


def open_missing_streams() -> None:
    """Open the null device in place of standard streams that the caller closed, as `>&-` does. Otherwise the
    next file to be opened would get the descriptor of one, and what is written to the screen."""
    for number in (0, *STREAMS.values()):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
            os.set_inheritable(number, True)


def make_streams_last() -> None:
    """Replace sys.stdout and sys.stderr: a character that the encoding lacks is written as an escape, and a
    reader that leaves, as `| head` does, ends no run. Streams that the caller replaced stay."""
    open_missing_streams()
    for name, number in STREAMS.items():
        stream, own = getattr(sys, name), getattr(sys, f"__{name}__")
        if stream is not own:
            continue
        encoding, is_line_buffered = "utf-8", True
        if stream is not None:
            with suppress(OSError):
                stream.flush()
            encoding, is_line_buffered = stream.encoding, stream.line_buffering
        _files[name] = _LastingFile(number, "w", closefd=False)
        buffer = io.BufferedWriter(_files[name])
        setattr(
            sys,
            name,
            io.TextIOWrapper(buffer, encoding, errors="backslashreplace", line_buffering=is_line_buffered),
        )


def has_reader() -> bool:
    """Return whether something still takes what is printed."""
    return "stdout" not in _files or _files["stdout"].failure is None


def lost_output() -> str | None:
    """Return why a part of what was printed is lost, None if nothing is or if its reader left."""
    with suppress(OSError):
        sys.stdout.flush()
    failure = _files["stdout"].failure if "stdout" in _files else None
    return None if failure is None or failure.errno == errno.EPIPE else str(failure.strerror or failure)
