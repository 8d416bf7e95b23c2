"""The record of a published file, and values that many of them share."""

from dataclasses import dataclass, replace
from typing import Literal

from ppcls.architectures import MODELS
from ppcls.preprocessing import Interpolation, Preprocessing

PYPI = "https://pypi.org/project/"
FileFormat = Literal["paddleclas", "timm", "torchvision", "lukemelas", "wsl", "fixres"]


@dataclass(frozen=True)
class Published:
    """A published file of a model's weights.

    urls: the preferred one, then mirrors and other spellings. file_format: layout and names of the arrays.
    sha256: whole, or its first digits. size: bytes. license: of the weights, not of the code. top1, top5:
    fractions on ImageNet-1k, as accuracy_source reports them. bn_epsilon, padding: for `build_model`; None
    for the network's own.
    """

    tag: str
    urls: tuple[str, ...]
    file_format: FileFormat
    sha256: str | None
    size: int | None
    license: str
    preprocessing: Preprocessing
    top1: float | None
    top5: float | None
    accuracy_source: str
    bn_epsilon: float | None = None
    padding: str | None = None

    @property
    def url(self) -> str:
        return self.urls[0]

    @property
    def package(self) -> str | None:
        """Name of the package on PyPI that holds the file; None if the address is the file's own."""
        return self.url.removeprefix(PYPI) if self.url.startswith(PYPI) else None

    @property
    def file_name(self) -> str:
        """Name of the file in the cache. On Hugging Face all files have the same name."""
        name = self.url.rsplit("/", 1)[-1]
        if name == "model.safetensors":
            return self.tag.rsplit("/", 1)[-1].removesuffix(".safetensors") + ".safetensors"
        return name

    @property
    def terms(self) -> str:
        """The license, as shown to a user before a download."""
        return self.license + (", not for commercial use" if self.license.startswith("CC-BY-NC") else "")


APACHE = "Apache-2.0"
NON_COMMERCIAL = "CC-BY-NC-4.0"

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)


def opencv(resize_short: int, crop_size: int, interpolation: Interpolation) -> Preprocessing:
    """Return preprocessing by OpenCV, without antialiasing."""
    return Preprocessing(resize_short, crop_size, interpolation, False, IMAGENET_MEAN, IMAGENET_STD)


def pillow(resize_short: int, crop_size: int, interpolation: Interpolation) -> Preprocessing:
    """Return preprocessing by Pillow, with antialiasing."""
    return Preprocessing(resize_short, crop_size, interpolation, True, IMAGENET_MEAN, IMAGENET_STD)


def inception(preprocessing: Preprocessing) -> Preprocessing:
    """Return the preprocessing with pixels from -1 to 1, with which AdvProp and Lite were trained."""
    return replace(preprocessing, mean=HALF, std=HALF)


def fraction(percent: float) -> float:
    """Return a percentage as a fraction, without the noise of the division."""
    return round(percent / 100, 5)


def image_size(name: str) -> int:
    """Return the side of a model's images in pixels."""
    return MODELS[name].image_size
