"""What happens to an image before the network: part of the config, and kept with the weights."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

Interpolation = Literal["bilinear", "bicubic", "area", "lanczos"]


@dataclass(frozen=True)
class Preprocessing:
    """The short side resized to `resize_short` pixels, a square of `crop_size` cut from the centre,
    pixels / 255 normalised with `mean` and `std` (of red, green, blue).

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
        """What `to_dict` wrote. Raises ValueError, TypeError or KeyError for anything else."""
        spec = cls(**values | {"mean": tuple(values["mean"]), "std": tuple(values["std"])})
        are_whole = type(spec.crop_size) is int and type(spec.resize_short) is int
        if not are_whole or not 0 < spec.crop_size <= spec.resize_short:
            raise ValueError(f"a crop of {spec.crop_size} from a short side of {spec.resize_short}")
        if spec.interpolation not in get_args(Interpolation) or type(spec.antialias) is not bool:
            raise ValueError(f"interpolation {spec.interpolation!r}, antialias {spec.antialias!r}")
        if len(spec.mean) != 3 or len(spec.std) != 3 or not all(float(s) > 0 for s in spec.std):
            raise ValueError(f"mean {spec.mean}, std {spec.std}")
        return spec


def at_size(spec: Preprocessing, crop_size: int) -> Preprocessing:
    """The same with another crop, and the short side in the same ratio to it."""
    short = max(crop_size, round(crop_size * spec.resize_short / spec.crop_size))
    return replace(spec, crop_size=crop_size, resize_short=short)
