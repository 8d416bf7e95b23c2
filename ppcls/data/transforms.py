"""Pixels to the network's input: resizing, cropping, flipping in uint8, then one table look-up."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from ppcls.data.opencv import MAX_PIXELS, cv2
from ppcls.errors import DataError
from ppcls.preprocessing import Preprocessing

# name: (OpenCV's code, source pixels that it looks at beyond a point's own, Pillow's filter). On some
# processors OpenCV leaves bicubic to Intel's library, where a part differs from the whole by rounding.
_INTERPOLATIONS = {
    "bilinear": (cv2.INTER_LINEAR, 1, Image.Resampling.BILINEAR),
    "bicubic": (cv2.INTER_CUBIC, None, Image.Resampling.BICUBIC),
    "area": (cv2.INTER_AREA, 1, Image.Resampling.BOX),
    "lanczos": (cv2.INTER_LANCZOS4, 4, Image.Resampling.LANCZOS),
}


def resize(image: np.ndarray, height: int, width: int, interpolation: str, antialias: bool) -> np.ndarray:
    """uint8 [H, W, 3] to uint8 [height, width, 3]: OpenCV's resize, with `antialias` Pillow's."""
    code, _, pillow_filter = _INTERPOLATIONS[interpolation]
    if antialias:
        return np.asarray(Image.fromarray(image).resize((width, height), pillow_filter))
    return cv2.resize(image, (width, height), interpolation=code)


def resized_size(height: int, width: int, short: int) -> tuple[int, int]:
    """Height and width with the short side at `short`: PaddleClas's rounding, halves to even."""
    scale = float(short) / min(height, width)
    return int(round(height * scale)), int(round(width * scale))


def resize_short_center_crop(image: np.ndarray, spec: Preprocessing) -> np.ndarray:
    """uint8 [H, W, 3] to uint8 [crop_size, crop_size, 3]. Crop offsets are rounded down, as PaddleClas's."""
    size = spec.crop_size
    height, width = resized_size(image.shape[0], image.shape[1], spec.resize_short)
    if height * width > MAX_PIXELS:
        raise DataError(
            f"{image.shape[1]} x {image.shape[0]} pixels would become {width} x {height}: too long and thin"
        )
    top, left = (height - size) // 2, (width - size) // 2
    if (height, width) != image.shape[:2]:
        if spec.antialias:
            image = resize(image, height, width, spec.interpolation, antialias=True)
        else:
            image = _resize_top_left(image, height, width, top + size, left + size, spec.interpolation)
    return image[top : top + size, left : left + size]


def _resize_top_left(
    image: np.ndarray, height: int, width: int, need_height: int, need_width: int, interpolation: str
) -> np.ndarray:
    """OpenCV's resize to [height, width], bit for bit, but only its first rows and columns as needed.

    The scale is handed over as a factor, so that it stays that of the whole image, and the part of the
    image that is resized reaches far enough beyond the needed pixels for its edge not to be seen.
    """
    code, reach, _ = _INTERPOLATIONS[interpolation]
    if reach is None:
        return cv2.resize(image, (width, height), interpolation=code)
    rows = _source_extent(image.shape[0], height, need_height, reach)
    columns = _source_extent(image.shape[1], width, need_width, reach)
    scale_x, scale_y = width / image.shape[1], height / image.shape[0]
    return cv2.resize(image[:rows, :columns], (0, 0), fx=scale_x, fy=scale_y, interpolation=code)


def _source_extent(source: int, target: int, needed: int, reach: int) -> int:
    """How many of `source` pixels give the first `needed` of `target` resized ones."""
    step = source / target
    return min(source, math.ceil(needed * step + step) + reach + 1)


def random_resized_crop(
    image: np.ndarray,
    size: int,
    area: tuple[float, float],
    ratio: tuple[float, float],
    interpolation: str,
    antialias: bool,
    random: np.random.RandomState,
) -> np.ndarray:
    """uint8 [H, W, 3] to uint8 [size, size, 3]: a crop with a random share of the image's area and a
    random ratio of width to height (uniform in its logarithm); the largest centred crop within the
    ratios if ten draws don't fit. Szegedy et al., https://arxiv.org/abs/1409.4842.
    """
    height, width = image.shape[:2]
    for _ in range(10):
        target = random.uniform(*area) * height * width
        aspect = math.exp(random.uniform(math.log(ratio[0]), math.log(ratio[1])))
        crop_width, crop_height = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = random.randint(height - crop_height + 1)
            left = random.randint(width - crop_width + 1)
            break
    else:
        aspect = min(max(width / height, ratio[0]), ratio[1])
        crop_width = min(width, max(1, round(height * aspect)))
        crop_height = min(height, max(1, round(width / aspect)))
        top, left = (height - crop_height) // 2, (width - crop_width) // 2
    crop = image[top : top + crop_height, left : left + crop_width]
    return resize(crop, size, size, interpolation, antialias)


def flip(image: np.ndarray) -> np.ndarray:
    """Left and right exchanged."""
    return cv2.flip(image, 1)


class Normalizer:
    """(pixel / 255 - mean) / std of each channel, written into a batch's slot as float32 [3, S, S].

    A table for the 256 values of each channel gives the very numbers of the arithmetic in float32.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        pixels = np.arange(256, dtype=np.float32) * np.float32(1.0 / 255.0)
        channels = zip(np.asarray(mean, np.float32), np.asarray(std, np.float32), strict=True)
        self.tables = np.stack([(pixels - m) / s for m, s in channels])

    def __call__(self, image: np.ndarray, out: np.ndarray) -> None:
        if image.shape[:2] != out.shape[1:]:  # OpenCV would write elsewhere, and leave the slot as it was
            raise ValueError(f"the image is {image.shape}, but the batch's slot {out.shape}")
        for channel, plane in enumerate(cv2.split(image)):
            cv2.LUT(plane, self.tables[channel], out[channel])
