"""Augment training images: AutoAugment, RandAugment, colour jitter, random erasing.

All random numbers come from a RandomState that the caller passes. AutoAugment: Cubuk et al.,
https://arxiv.org/abs/1805.09501; RandAugment: Cubuk et al., https://arxiv.org/abs/1909.13719. Operators are
Pillow's if Pillow has them. Magnitudes go from 0 to 10.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from ppcls.config import AugmentConfig
from ppcls.preprocessing import Preprocessing

Operator = Callable[[np.ndarray, np.random.RandomState], np.ndarray]


class Canvas(NamedTuple):
    """Settings of operators that move pixels: the resampling filter, and the colour of empty places."""

    resample: Image.Resampling
    fill: tuple[int, int, int]


class Step(NamedTuple):
    """An operator's name, the probability that it is applied, and its magnitude."""

    name: str
    probability: float
    magnitude: float


# From tensorflow/tpu, models/official/efficientnet/autoaugment.py, which trains EfficientNet with it. One of
# the 25 pairs is drawn for each image. TranslateY is a share of the height, as in timm: TensorFlow's 225
# pixels would move most images out of view.
V0 = tuple(
    (Step(*first), Step(*second))
    for first, second in (
        (("Equalize", 0.8, 1), ("ShearY", 0.8, 4)),
        (("Color", 0.4, 9), ("Equalize", 0.6, 3)),
        (("Color", 0.4, 1), ("Rotate", 0.6, 8)),
        (("Solarize", 0.8, 3), ("Equalize", 0.4, 7)),
        (("Solarize", 0.4, 2), ("Solarize", 0.6, 2)),
        (("Color", 0.2, 0), ("Equalize", 0.8, 8)),
        (("Equalize", 0.4, 8), ("SolarizeAdd", 0.8, 3)),
        (("ShearX", 0.2, 9), ("Rotate", 0.6, 8)),
        (("Color", 0.6, 1), ("Equalize", 1.0, 2)),
        (("Invert", 0.4, 9), ("Rotate", 0.6, 0)),
        (("Equalize", 1.0, 9), ("ShearY", 0.6, 3)),
        (("Color", 0.4, 7), ("Equalize", 0.6, 0)),
        (("Posterize", 0.4, 6), ("AutoContrast", 0.4, 7)),
        (("Solarize", 0.6, 8), ("Color", 0.6, 9)),
        (("Solarize", 0.2, 4), ("Rotate", 0.8, 9)),
        (("Rotate", 1.0, 7), ("TranslateY", 0.8, 9)),
        (("ShearX", 0.0, 0), ("Solarize", 0.8, 4)),
        (("ShearY", 0.8, 0), ("Color", 0.6, 4)),
        (("Color", 1.0, 0), ("Rotate", 0.6, 2)),
        (("Equalize", 0.8, 4), ("Equalize", 0.0, 8)),
        (("Equalize", 1.0, 4), ("AutoContrast", 0.6, 2)),
        (("ShearY", 0.4, 7), ("SolarizeAdd", 0.6, 7)),
        (("Posterize", 0.8, 2), ("Solarize", 0.6, 10)),
        (("Solarize", 0.6, 8), ("Equalize", 0.6, 1)),
        (("Color", 0.8, 6), ("Rotate", 0.4, 5)),
    )
)

# RandAugment's operators, their probability and their highest magnitude in two published implementations:
# timm's, and tensorflow/tpu's, which also has Cutout.
_COMMON = (
    *("AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "SolarizeAdd", "Color"),
    *("Contrast", "Brightness", "Sharpness", "ShearX", "ShearY", "TranslateX", "TranslateY"),
)
RAND_SETS = {"timm": (_COMMON, 0.5, 10.0), "tf": ((*_COMMON, "Cutout"), 1.0, 30.0)}


def _enhancement(level: float) -> float:
    return level * 1.8 + 0.1


# Each operator's strength, from magnitude / 10. Operators without an entry have only one strength.
_STRENGTHS: dict[str, Callable[[float], float]] = {
    "Rotate": lambda level: level * 30,  # degrees
    "ShearX": lambda level: level * 0.3,  # columns for each row
    "ShearY": lambda level: level * 0.3,
    "TranslateX": lambda level: level * 0.45,  # share of the width: 100 of 224 pixels at magnitude 10
    "TranslateY": lambda level: level * 0.45,
    "Posterize": lambda level: min(8, int(level * 4)),  # bits kept; 0 gives black
    "Solarize": lambda level: min(256, int(level * 256)),  # this value and higher ones are inverted
    "SolarizeAdd": lambda level: int(level * 110),  # added to values below 128
    "Color": _enhancement,  # 0: grey, 1: the image
    "Contrast": _enhancement,
    "Brightness": _enhancement,
    "Sharpness": _enhancement,
    "Cutout": lambda level: level * 40 / 224,  # half the square's side, as a share of the image's
}
_SIGNED = {"Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"}  # both directions are equally likely

_ENHANCERS: dict[str, Callable[[Image.Image], Any]] = {
    "Color": ImageEnhance.Color,
    "Contrast": ImageEnhance.Contrast,
    "Brightness": ImageEnhance.Brightness,
    "Sharpness": ImageEnhance.Sharpness,
}


def draw_strength(name: str, magnitude: float, random: np.random.RandomState) -> float:
    """Return the operator's strength for a magnitude, with a random sign if it has two directions."""
    strength = _STRENGTHS[name](magnitude / 10) if name in _STRENGTHS else 0.0
    return -strength if name in _SIGNED and random.uniform() < 0.5 else strength


def apply_operator(
    image: Image.Image, name: str, strength: float, canvas: Canvas, random: np.random.RandomState
) -> Image.Image:
    """Apply an operator to an RGB image, which keeps its size. strength: as `draw_strength` returns it.
    random: for Cutout, which draws its place."""
    match name:
        case "AutoContrast":
            return ImageOps.autocontrast(image)
        case "Equalize":
            return ImageOps.equalize(image)
        case "Invert":
            return ImageOps.invert(image)
        case "Posterize":
            kept = 256 - 2 ** (8 - int(strength))
            return image.point([value & kept for value in range(256)] * 3)
        case "Solarize":
            return ImageOps.solarize(image, int(strength))
        case "SolarizeAdd":
            values = np.arange(256)
            table = np.where(values < 128, np.minimum(values + int(strength), 255), values)
            return image.point(table.tolist() * 3)
        case "Color" | "Contrast" | "Brightness" | "Sharpness":
            return _ENHANCERS[name](image).enhance(strength)
        case "Rotate":
            return image.rotate(strength, canvas.resample, fillcolor=canvas.fill)
        case "ShearX":
            return _affine(image, (1, strength, 0, 0, 1, 0), canvas)
        case "ShearY":
            return _affine(image, (1, 0, 0, strength, 1, 0), canvas)
        case "TranslateX":
            return _affine(image, (1, 0, strength * image.width, 0, 1, 0), canvas)
        case "TranslateY":
            return _affine(image, (1, 0, 0, 0, 1, strength * image.height), canvas)
        case "Cutout":
            return _cutout(image, strength, canvas, random)
    raise ValueError(f"there is no operator {name!r}")


def _affine(image: Image.Image, matrix: tuple[float, ...], canvas: Canvas) -> Image.Image:
    """Transform an image. matrix: maps a place in the result to the place in the image that is seen there."""
    method = Image.Transform.AFFINE
    return image.transform(image.size, method, matrix, canvas.resample, fillcolor=canvas.fill)


def _cutout(
    image: Image.Image, strength: float, canvas: Canvas, random: np.random.RandomState
) -> Image.Image:
    """Fill a square around a random pixel, clipped to the image. https://arxiv.org/abs/1708.04552"""
    row, column = random.randint(image.height), random.randint(image.width)
    down, right = round(strength * image.height), round(strength * image.width)
    box = (max(0, column - right), max(0, row - down), column + right, row + down)
    image = image.copy()
    if down and right:
        image.paste(canvas.fill, box)
    return image


def run_steps(
    image: np.ndarray, steps: Sequence[Step], canvas: Canvas, random: np.random.RandomState
) -> np.ndarray:
    """Apply each step to uint8 [H, W, 3] with its probability."""
    picture = Image.fromarray(image)
    for name, probability, magnitude in steps:
        if random.uniform() < probability:
            strength = draw_strength(name, magnitude, random)
            picture = apply_operator(picture, name, strength, canvas, random)
    return np.asarray(picture)


@dataclass(frozen=True)
class AutoAugment:
    """Apply both steps of a random pair of the policy to uint8 [H, W, 3]."""

    canvas: Canvas
    policy: Sequence[Sequence[Step]] = V0

    def __call__(self, image: np.ndarray, random: np.random.RandomState) -> np.ndarray:
        return run_steps(image, self.policy[random.randint(len(self.policy))], self.canvas, random)


@dataclass(frozen=True)
class RandAugment:
    """Apply `layers` operators of a set, drawn with replacement, to uint8 [H, W, 3]. Each magnitude is
    `magnitude`, or drawn around it with the standard deviation `magnitude_std`, as in timm."""

    canvas: Canvas
    operators: Literal["timm", "tf"]
    layers: int
    magnitude: float
    magnitude_std: float = 0.0

    def __call__(self, image: np.ndarray, random: np.random.RandomState) -> np.ndarray:
        return run_steps(image, [self._draw_step(random) for _ in range(self.layers)], self.canvas, random)

    def _draw_step(self, random: np.random.RandomState) -> Step:
        names, probability, highest = RAND_SETS[self.operators]
        name, magnitude = names[random.randint(len(names))], self.magnitude
        if self.magnitude_std:
            magnitude = min(max(random.normal(magnitude, self.magnitude_std), 0.0), highest)
        return Step(name, probability, magnitude)


@dataclass(frozen=True)
class ColorJitter:
    """Change brightness, contrast and saturation of uint8 [H, W, 3], in random order. Each factor is uniform
    between 1 - amount (at least 0) and 1 + amount."""

    amounts: tuple[float, float, float]

    def __call__(self, image: np.ndarray, random: np.random.RandomState) -> np.ndarray:
        picture = Image.fromarray(image)
        for number in random.permutation(3):
            amount = self.amounts[number]
            factor = random.uniform(max(0.0, 1 - amount), 1 + amount)
            if amount:
                picture = _ENHANCERS[("Brightness", "Contrast", "Color")[number]](picture).enhance(factor)
        return np.asarray(picture)


@dataclass(frozen=True)
class RandomErasing:
    """Erase a random rectangle of a normalised image float32 [3, H, W], in place, as timm does.

    mode: "zero" fills it with 0, the mean colour; "pixel" with normal noise of standard deviation 1. The
    share of the area and the logarithm of height / width are uniform in timm's ranges. Nothing is erased if
    ten draws do not fit into the image. Zhong et al., https://arxiv.org/abs/1708.04896.
    """

    probability: float
    mode: Literal["zero", "pixel"]
    area: tuple[float, float] = (0.02, 1 / 3)
    ratio: tuple[float, float] = (0.3, 1 / 0.3)

    def __call__(self, image: np.ndarray, random: np.random.RandomState) -> None:
        if random.uniform() >= self.probability:
            return
        _, rows, columns = image.shape
        for _ in range(10):
            target = random.uniform(*self.area) * rows * columns
            ratio = math.exp(random.uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
            height, width = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
            if height < rows and width < columns:
                top, left = random.randint(rows - height + 1), random.randint(columns - width + 1)
                block = image[:, top : top + height, left : left + width]
                block[...] = random.standard_normal(block.shape) if self.mode == "pixel" else 0
                return


def image_operators(config: AugmentConfig, preprocessing: Preprocessing) -> list[Operator]:
    """Return the operators that the options ask for, in the order in which they are applied to a crop.

    By default there are none. Pixels are moved with the nearest to the preprocessing's interpolation,
    bilinear or bicubic. Empty places get the mean colour, which normalises to 0.
    """
    is_linear = preprocessing.interpolation in ("bilinear", "area")
    resample = Image.Resampling.BILINEAR if is_linear else Image.Resampling.BICUBIC
    red, green, blue = (min(max(round(value * 255), 0), 255) for value in preprocessing.mean)
    canvas = Canvas(resample, (red, green, blue))
    operators: list[Operator] = []
    if config.auto_augment is not None:
        operators.append(AutoAugment(canvas))
    if config.rand_augment is not None:
        layers, magnitude, deviation = config.rand_layers, config.rand_magnitude, config.rand_magnitude_std
        operators.append(RandAugment(canvas, config.rand_augment, layers, magnitude, deviation))
    if any(config.color_jitter):
        operators.append(ColorJitter(config.color_jitter))
    return operators
