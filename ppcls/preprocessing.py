"""What happens to an image before the network: part of the config, and kept with the weights."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

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
        """What `to_dict` wrote."""
        return cls(**values | {"mean": tuple(values["mean"]), "std": tuple(values["std"])})
