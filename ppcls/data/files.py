"""Image files: the source of a dataset that reads them."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Files:
    """Source of images, one file each (`ppcls.data.source.Source` says what each method must do).

    An image's name is its path. lines: int64 [N], for each image its line number in `list_file`.
    """

    paths: Sequence[str]
    list_file: str | None = None
    lines: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> bytes:
        path = self.paths[index]
        try:
            with open(path, "rb") as file:
                return file.read()
        except FileNotFoundError as error:
            raise FileNotFoundError(error.errno, f"{error.strerror}{other_form_hint(path)}", path) from None

    def name(self, index: int) -> str:
        return self.paths[index]

    def where(self, index: int) -> str:
        if self.lines is None:
            return self.paths[index]
        return f"{self.paths[index]} ({self.list_file}, line {self.lines[index]})"

    def identity(self, root: str | None) -> bytes:
        """Return the paths below `root`, one on each line."""
        prefix = str(Path(root or "."))
        names = "\n".join(path.removeprefix(prefix) for path in self.paths)
        return names.encode(errors="surrogateescape")

    def select(self, indices: Sequence[int]) -> "Files":
        lines = None if self.lines is None else self.lines[indices]
        return Files([self.paths[index] for index in indices], self.list_file, lines)

    def shuffle(self, indices: np.ndarray, random: np.random.RandomState, parts: int = 1) -> np.ndarray:
        random.shuffle(indices)
        return indices

    @property
    def is_remote(self) -> bool:
        return False

    def prefetch(self, indices: Sequence[int]) -> None:
        """Do nothing: a disk is quick."""


def other_form_hint(path: str) -> str:
    """Return the end of an error about a missing file: that its name is there in another Unicode form."""
    parts = () if path.isascii() else Path(path).parts
    forms: tuple[tuple[Literal["NFC", "NFD"], str], ...] = (("NFC", "composed"), ("NFD", "decomposed"))
    for form, letters in forms:
        for start in range(len(parts)):
            other = Path(*parts[:start], *(unicodedata.normalize(form, part) for part in parts[start:]))
            if str(other) != path and other.exists():
                return (
                    f"; the same name with {letters} letters ({form}) is there: macOS decomposes letters "
                    "with accents. Write both names in the same Unicode form"
                )
    return ""
