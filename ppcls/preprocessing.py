"""Preprocessing of an image for the network. It is part of the config, and is saved with the weights."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

Interpolation = Literal["bilinear", "bicubic", "area", "lanczos"]


@dataclass(frozen=True)
class Preprocessing:
    """Resize the short side to `resize_short` pixels, crop a square of `crop_size` from the centre, and
    normalise pixels / 255 with `mean` and `std` (of red, green, blue).

    antialias: False samples as OpenCV does, True filters over the shrunk area as Pillow does.
    """

    resize_short: int
    crop_size: int
    interpolation: Interpolation
    antialias: bool
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def to_dict(self) -> dict[str, Any]:
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Preprocessing":
        """Return the preprocessing that `to_dict` wrote. Raises ValueError, TypeError or KeyError for other
        values."""
        result = cls(**values | {"mean": tuple(values["mean"]), "std": tuple(values["std"])})
        are_integers = type(result.crop_size) is int and type(result.resize_short) is int
        if not are_integers or not 0 < result.crop_size <= result.resize_short:
            raise ValueError(f"a crop of {result.crop_size} from a short side of {result.resize_short}")
        if result.interpolation not in get_args(Interpolation) or type(result.antialias) is not bool:
            raise ValueError(f"interpolation {result.interpolation!r}, antialias {result.antialias!r}")
        if len(result.mean) != 3 or len(result.std) != 3 or not all(float(s) > 0 for s in result.std):
            raise ValueError(f"mean {result.mean}, std {result.std}")
        return result


def at_size(preprocessing: Preprocessing, crop_size: int) -> Preprocessing:
    """Return the preprocessing with another crop, and the short side in the same ratio to it."""
    short = max(crop_size, round(crop_size * preprocessing.resize_short / preprocessing.crop_size))
    return replace(preprocessing, crop_size=crop_size, resize_short=short)
