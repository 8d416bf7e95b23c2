"""Calibration of an export: what `eval --calibrate` found about its answers, as it travels in inference.yml.

Imports no Paddle.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from ppcls.commands import command_line
from ppcls.errors import ConfigError, why_unreadable
from ppcls.preprocessing import Preprocessing

CALIBRATION = "calibration.json"
VERSION = 1


@dataclass(frozen=True)
class Calibration:
    """Values that make a network's probabilities mean what they say.

    temperature: divides the logits before the softmax. threshold: the least probability of the likeliest
    class at which a prediction is sure; None if no threshold keeps `max_error`. answered: the share of the
    images that were sure. max_error: the error rate among sure predictions, kept with 95% confidence on
    images of the same kind. images: how many it was measured on. energy: quantiles of
    log(sum(exp(logits))) of these images, by their share, {} for a network with the softmax inside.
    precision: that it was measured in, see Predictor.precision; in another one it is not used.
    """

    temperature: float
    threshold: float | None
    answered: float
    max_error: float
    images: int
    energy: Mapping[str, float]
    precision: str = "float32"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "Calibration":
        """Raises KeyError, TypeError or ValueError for values that are not a calibration's."""
        threshold = values["threshold"]
        found = Calibration(
            temperature=float(values["temperature"]),
            threshold=None if threshold is None else float(threshold),
            answered=float(values["answered"]),
            max_error=float(values["max_error"]),
            images=int(values["images"]),
            energy={str(share): float(value) for share, value in values["energy"].items()},
            precision=str(values["precision"]),
        )
        if not 0 < found.temperature < float("inf"):
            raise ValueError(f"temperature {found.temperature}")
        return found


@dataclass(frozen=True)
class Subject:
    """The network that a calibration is of. parameters_sha256: its fingerprint."""

    parameters_sha256: str
    preprocessing: Preprocessing

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"preprocessing": self.preprocessing.to_dict()}


def read_calibration(path: Path, subject: Subject, precisions: Sequence[str]) -> Calibration:
    """Read the file that `eval --calibrate` wrote, for an export of `subject` that can run in `precisions`.
    Raises ConfigError, with what to do, for another file, and for the calibration of another network."""
    again = f"Make one: {command_line('eval', 'MODEL', '--calibrate')}."
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["format_version"] > VERSION:
            raise ConfigError(f"{path} was written by a newer ppcls. Upgrade ppcls.")
        theirs, found = values["subject"], Calibration.from_dict(values["calibration"])
        parts = {name: theirs[name] for name in subject.to_dict()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"{path} is not a calibration ({why_unreadable(error)}). Expected: the {CALIBRATION} that an "
            f"evaluation with --calibrate writes. {again}"
        ) from error
    for name, own in subject.to_dict().items():
        if parts[name] != own:
            _refuse(path, name, parts[name], own)
    if found.precision not in precisions:
        _refuse(path, "precision", found.precision, " and ".join(precisions))
    return found


def _refuse(path: Path, name: str, theirs: Any, own: Any) -> NoReturn:
    if name == "precision":
        what, cure = (
            f"a network in {theirs}, and this export is in {own}",
            "Export without --calibration, evaluate that export with --calibrate, and export again with what "
            "it wrote",
        )
    elif name == "preprocessing":
        what = f"images that are prepared otherwise: {theirs}, and this export prepares them as {own}"
        cure = "Evaluate with --calibrate and the same options of data.preprocessing"
    else:
        what = f"other weights: {theirs!s:.12}, and this export has {own:.12}"
        cure = "Evaluate these weights with --calibrate"
    raise ConfigError(
        f"{path} is a calibration for {what}. {cure}: {command_line('eval', 'MODEL', '--calibrate')}; or "
        "export without it: --calibration none."
    )
