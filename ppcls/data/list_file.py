"""List files: their lines, the paths of their images, and whether the images are there."""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from ppcls.data.files import Files, other_form_hint
from ppcls.data.text import read_lines
from ppcls.errors import DataError

_LABELS = re.compile(r"\d{1,9}(,\d{1,9})*", re.ASCII)
_TRIED = 1000  # files of a list that are looked for when it is opened


def read_list_lines(list_file: Path) -> Iterator[tuple[int, str, tuple[int, ...]]]:
    """Yield the line number, path and labels, in ascending order, of each line that is not blank.

    The labels are the last word of the line, with commas between them, so that paths may contain spaces.
    Backslashes count as slashes. Raises DataError for a file that cannot be read, for a line without a path
    or a label, and for one with a label twice.
    """
    single: dict[str, tuple[int, ...]] = {}  # few words for many lines
    for number, line in enumerate(read_lines(list_file), 1):
        fields = line.rsplit(None, 1)
        if not fields:
            continue
        word = fields[-1]
        labels = single.get(word)
        if labels is None and _LABELS.fullmatch(word):
            labels = tuple(sorted(map(int, word.split(","))))
            if len(labels) == 1:
                single[word] = labels
        if labels is None or len(fields) == 1 or fields[0].endswith(",") or "\0" in line:
            raise DataError(
                f"{list_file}, line {number}: expected 'path label', a whole number as the label, or several "
                f"as in 'path 3,17'. Received: {line.strip()[:200]!r}"
            )
        if len(set(labels)) < len(labels):
            raise DataError(
                f"{list_file}, line {number}: a label is there twice. Expected: each once. Received: {word}"
            )
        yield number, fields[0].lstrip().replace("\\", "/"), labels


def join_paths(root: Path, paths: Iterable[str]) -> list[str]:
    """Return str(root / path) of each path. pathlib, slow for a million, joins those that are not plain."""
    prefix = os.path.join(str(root), "") if str(root) != "." else ""
    return [prefix + path if _is_plain(path) else str(root / path) for path in paths]


def _is_plain(path: str) -> bool:
    """Return whether a path with slashes is relative and has no component that is empty or "."."""
    is_odd = path[0] in "./" or "//" in path or "/./" in path or path.endswith(("/", "/."))
    return os.sep == "/" and not is_odd


def require_some(files: Files, root: Path, cure: str) -> None:
    """Raise DataError if none of 1,000 of a list's files exists. cure: how a user gives another root."""
    if files.list_file is None:
        return
    tried = [files.paths[index] for index in np.unique(np.linspace(0, len(files) - 1, _TRIED, dtype=int))]
    if any(map(os.path.exists, tried)):
        return
    hint = other_form_hint(tried[0])
    first = tried[0].removeprefix(str(root)).lstrip("/")
    homes = [*Path(files.list_file).absolute().parents[:2], *root.absolute().parents[:2]]
    home = next((str(home) for home in homes if not hint and (home / first).is_file()), "DIR")
    raise DataError(
        f"None of {len(tried)} files of {files.list_file} exists; the first would be {tried[0]}{hint}. "
        f"Is {root} the folder of the list's paths? Another one: {cure}{home}."
    )
