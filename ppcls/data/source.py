"""The protocol of a source of images."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np


class Source(Protocol):
    """Encoded images in a fixed order. `ppcls.data.files.Files` is one; another kind is a class in a file of
    its own beside it. Several threads call these methods at the same time."""

    @property
    def is_remote(self) -> bool:
        """Whether reads wait for a network, so that it is worth knowing early what will be read."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes:
        """Return an image's bytes, as an image file has them. Raises OSError, as open() does."""

    def name(self, index: int) -> str:
        """Return what tables and reports call the image, such as its path."""

    def where(self, index: int) -> str:
        """Return what error messages call the image: its name, and for a list its line."""

    def identity(self, root: str | None) -> bytes:
        """Return bytes that say which images these are, and in which order. They must stay the same when
        the data moves; `root` is the folder that it is in now."""

    def select(self, indices: Sequence[int]) -> "Source":
        """Return a source of these images, in this order."""

    def shuffle(self, indices: np.ndarray, random: np.random.RandomState, parts: int = 1) -> np.ndarray:
        """Return indices int64 [N] in random order; i + k * len(self) stands for a further use of image i.
        They may be changed in place. A source that reads neighbours together keeps them together, for each
        of `parts` processes, which takes every image p + k * parts."""

    def prefetch(self, indices: Sequence[int]) -> None:
        """Begin to fetch images that will be read soon. A source that is quick does nothing."""
