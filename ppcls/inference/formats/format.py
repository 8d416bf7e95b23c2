"""The record that describes a format, and tools for converters."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ppcls.config import Activation
from ppcls.errors import ConfigError
from ppcls.streams import open_missing_streams

if TYPE_CHECKING:
    from paddle import nn

    from ppcls.data.dataset import Dataset

FEWEST_PICTURES = 20  # with fewer, agreement says little
Int8For = Literal["any", "vnni"]


@dataclass(frozen=True)
class Int8Options:
    """Options of the int8 forms of an export. Raises ConfigError for values that cannot be.

    dataset: pictures like those that the network will see; labels are not used. images: how many are drawn
    from them; one half calibrates, the other tests, and the other way round. agreement: share of them for
    which the same class as the network's must come first. made_for: "any" processor, where weights take 7 of
    the 8 bits, or those with "vnni", all 8. minutes: limit of accuracy control, the last rung; None: without.
    on_error: "fail" or "skip", for unreadable pictures.
    """

    dataset: "Dataset"
    images: int = 300
    agreement: float = 0.95
    made_for: Int8For = "any"
    minutes: float | None = None
    on_error: str = "fail"

    def __post_init__(self) -> None:
        if min(self.images, len(self.dataset)) < FEWEST_PICTURES:
            raise ConfigError(
                f"--int8 needs at least {FEWEST_PICTURES} pictures. Received: {len(self.dataset)}, and "
                f"--int8-images {self.images}"
            )
        if not 0.5 <= self.agreement < 1:
            raise ConfigError(f"--int8-agreement must be from 0.5 to below 1. Received: {self.agreement}")
        if self.minutes is not None and not self.minutes > 0:
            raise ConfigError(f"--int8-minutes must be more than 0. Received: {self.minutes}")


@dataclass(frozen=True)
class ExportOptions:
    """Options of an export. Raises ConfigError for sizes below 1.

    softmax: it returns probabilities instead of logits, by the network's activation; of one with a sigmoid
    these are the sigmoids. embeddings: it returns these too, as a second output.
    fp16: the weights are stored in half precision. opset: of ONNX, None for the usual one. batch_size,
    image_size: the only ones that it takes, None for any. activation: of the network. labels: the classes'
    names, for formats that list them; `export_model` sets both. int8: of its int8 forms; None: it has none.
    """

    softmax: bool = False
    embeddings: bool = False
    fp16: bool = False
    opset: int | None = None
    batch_size: int | None = None
    image_size: int | None = None
    activation: Activation = "softmax"
    labels: tuple[str, ...] = ()
    int8: Int8Options | None = None

    def __post_init__(self) -> None:
        if self.int8 is not None and self.fp16:
            raise ConfigError("--int8 is made from float32 weights. Leave --fp16 or --int8 out.")
        for option, value in (("--batch-size", self.batch_size), ("--image-size", self.image_size)):
            if value is not None and value < 1:
                raise ConfigError(f"{option} must be at least 1. Received: {value}")


PLAIN = ExportOptions()


@dataclass(frozen=True)
class Format:
    """A format of exported networks.

    endings: of the one file that engines open. checked_with: the engine that compares an export with the
    network. packages: whose versions an export records. made_from: the format that the converter reads on
    this machine's Paddle, None for the network itself. why_not: returns the reason why the format cannot be
    written here with these options, and the cure, or None. write: writes the network into a folder that
    already holds `made_from`. on_request: written only if it is named.
    """

    name: str
    endings: tuple[str, ...]
    checked_with: str
    packages: tuple[str, ...]
    made_from: Callable[[], str | None]
    why_not: "Callable[[nn.Layer, ExportOptions], str | None]"
    write: "Callable[[nn.Layer, Path, ExportOptions], None]"
    on_request: bool = False


def is_paddle2() -> bool:
    """Return whether the installed Paddle is of version 2."""
    import paddle

    return paddle.__version__.startswith("2.")


def program_in(folder: Path) -> Path:
    """Return the Paddle program in a folder."""
    return next(path for name in ("inference.json", "inference.pdmodel") if (path := folder / name).exists())


def missing_packages(packages: dict[str, str]) -> str | None:
    """Return which of `packages`, with the extras that bring them, are not installed, and the cure."""
    missing = [package for package in packages if find_spec(package) is None]
    if not missing:
        return None
    extras = ",".join(sorted({packages[package] for package in missing}))
    return f"{' and '.join(missing)} not installed: pip install 'ppcls[{extras}]'."


@contextmanager
def quiet() -> Iterator[None]:
    """Discard the output of converters, on the screen and in a notebook, which has other streams. Exceptions
    pass."""
    open_missing_streams()
    streams = [stream for stream in (sys.stdout, sys.stderr) if stream is not None]
    for stream in streams:
        stream.flush()
    saved = os.dup(1), os.dup(2)
    with open(os.devnull, "w") as sink, redirect_stdout(sink), redirect_stderr(sink):
        os.dup2(sink.fileno(), 1)
        os.dup2(sink.fileno(), 2)
        try:
            yield
        finally:
            for stream in streams:
                stream.flush()
            for number, copy in enumerate(saved, 1):
                os.dup2(copy, number)
                os.close(copy)
