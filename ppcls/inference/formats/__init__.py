"""Formats of exported networks. Importing this imports no converter. Another format is a file here and a line
in FORMATS."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ppcls.errors import ExportError, first_line
from ppcls.inference.formats.format import PLAIN, ExportOptions, quiet
from ppcls.inference.formats.onnx import ONNX
from ppcls.inference.formats.openvino import OPENVINO
from ppcls.inference.formats.paddle import PADDLE
from ppcls.inference.formats.triton import TRITON

if TYPE_CHECKING:
    from paddle import nn

FORMATS = {kind.name: kind for kind in (PADDLE, ONNX, OPENVINO, TRITON)}
INT8_FORMATS = {f"{kind.name}-int8": kind for kind in (ONNX, OPENVINO)}  # and what they are quantised from


def writable_formats(model: "nn.Layer", options: ExportOptions = PLAIN) -> tuple[list[str], dict[str, str]]:
    """Return the formats that can be written here, and for the others the reason why not. Left out are those
    that are written on request only."""
    reasons = {name: kind.why_not(model, options) for name, kind in FORMATS.items() if not kind.on_request}
    missing = {name: reason for name, reason in reasons.items() if reason is not None}
    return [name for name in reasons if name not in missing], missing


def write_formats(
    model: "nn.Layer",
    folder: Path,
    formats: Sequence[str],
    options: ExportOptions,
    log: Callable[[str], None],
) -> dict[str, dict[str, int]]:
    """Write the formats into `folder`; return the files of each, by their paths in it, with their sizes in
    bytes.

    Formats that were needed for a conversion only are removed again. Raises ExportError if a converter fails.
    """
    files: dict[str, dict[str, int]] = {}
    for name in _with_sources(formats):
        log(f"writing {name}")
        before = set(files_in(folder))
        try:
            with quiet():
                FORMATS[name].write(model, folder, options)
        except Exception as error:  # each converter has its own exceptions
            raise ExportError(f"Writing the format {name} failed: {first_line(error)}") from error
        new = sorted(set(files_in(folder)) - before)
        files[name] = {path.relative_to(folder).as_posix(): path.stat().st_size for path in new}
        empty = [file for file, size in files[name].items() if size == 0]
        if empty or not files[name]:
            raise ExportError(f"Writing the format {name} gave {', '.join(empty) or 'no file'}, empty.")
    for name in [name for name in files if name not in formats]:
        for file in files.pop(name):
            (folder / file).unlink()
    return files


def files_in(folder: Path) -> list[Path]:
    """Return all files below a folder."""
    return [path for path in folder.rglob("*") if path.is_file()]


def _with_sources(formats: Sequence[str]) -> list[str]:
    """Return the formats and all that they are converted from, in an order in which they can be written."""
    steps: list[str] = []

    def add(name: str) -> None:
        source = FORMATS[name].made_from()
        if source is not None and source not in steps:
            add(source)
        if name not in steps:
            steps.append(name)

    for name in FORMATS:
        if name in formats:
            add(name)
    return steps
