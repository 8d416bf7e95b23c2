"""Transform pixels to the network's input: resize, crop and flip in uint8, then normalise with one table
look-up."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from ppcls.config import AugmentConfig
from ppcls.data.augment import RandomErasing, image_operators
from ppcls.data.opencv import MAX_PIXELS, cv2
from ppcls.data.seeding import ERASING, random_state
from ppcls.errors import DataError
from ppcls.preprocessing import Preprocessing

# name: (OpenCV's code, its reach, Pillow's filter). reach: how many source pixels beside a point's own the
# code uses; None: a part of an image is not resized to the same values as in the whole, since on some
# processors OpenCV calls Intel's library for bicubic, which rounds differently.
_INTERPOLATIONS = {
    "bilinear": (cv2.INTER_LINEAR, 1, Image.Resampling.BILINEAR),
    "bicubic": (cv2.INTER_CUBIC, None, Image.Resampling.BICUBIC),
    "area": (cv2.INTER_AREA, 1, Image.Resampling.BOX),
    "lanczos": (cv2.INTER_LANCZOS4, 4, Image.Resampling.LANCZOS),
}
# Above this ratio of the sides, only the part of an image around the crop is resized. This moves some of its
# pixels by a level, few by more. All other images, panoramas too, keep the pixels of the whole.
_LONG_AND_THIN = 16


def resize(image: np.ndarray, height: int, width: int, interpolation: str, antialias: bool) -> np.ndarray:
    """Resize uint8 [H, W, 3] to uint8 [height, width, 3] with OpenCV, or with Pillow if `antialias`."""
    code, _, pillow_filter = _INTERPOLATIONS[interpolation]
    if antialias:
        return np.asarray(Image.fromarray(image).resize((width, height), pillow_filter))
    return cv2.resize(image, (width, height), interpolation=code)


def resized_size(height: int, width: int, short: int) -> tuple[int, int]:
    """Return the height and width whose short side is `short`, rounded half to even, as PaddleClas does."""
    scale = float(short) / min(height, width)
    return int(round(height * scale)), int(round(width * scale))


def resize_short_center_crop(image: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """Resize the short side and crop the centre: uint8 [H, W, 3] to uint8 [crop_size, crop_size, 3].

    Crop offsets are rounded down, as PaddleClas does. Raises DataError for an image that would become too
    large because it is too long and thin.
    """
    size, interpolation = preprocessing.crop_size, preprocessing.interpolation
    height, width = resized_size(image.shape[0], image.shape[1], preprocessing.resize_short)
    if height * width > MAX_PIXELS:
        raise DataError(
            f"{image.shape[1]} x {image.shape[0]} pixels would become {width} x {height}: too long and thin"
        )
    top, left = (height - size) // 2, (width - size) // 2
    if (height, width) != image.shape[:2]:
        if max(height, width) > _LONG_AND_THIN * min(height, width):
            return _resize_part(image, height, width, size, interpolation, preprocessing.antialias)
        if preprocessing.antialias:
            image = resize(image, height, width, interpolation, antialias=True)
        else:
            code, reach, _ = _INTERPOLATIONS[interpolation]
            if reach is None:
                image = cv2.resize(image, (width, height), interpolation=code)
            else:
                scales = height / image.shape[0], width / image.shape[1]
                image = _resize_top_left(image, scales, top + size, left + size, code, reach)
    return image[top : top + size, left : left + size]


def _resize_top_left(
    image: np.ndarray, scales: tuple[float, float], need_height: int, need_width: int, code: int, reach: int
) -> np.ndarray:
    """Return the same pixels as OpenCV's resize by `scales` of the height and width, but only the first rows
    and columns.

    The scale is passed as a factor, so that it is the scale of the whole image. The resized part of the
    image is large enough that its edge does not change the needed pixels.
    """
    rows, columns = (
        min(source, math.ceil((needed + 1) / scale) + reach + 1)
        for source, needed, scale in zip(image.shape, (need_height, need_width), scales, strict=False)
    )
    return cv2.resize(image[:rows, :columns], (0, 0), fx=scales[1], fy=scales[0], interpolation=code)


def _resize_part(
    image: np.ndarray, height: int, width: int, size: int, interpolation: str, antialias: bool
) -> np.ndarray:
    """Return the centre [size, size] of the image resized to [height, width]; resize only what it needs.

    OpenCV has no box of fractions of pixels: the part begins where the resized pixels of the part and of the
    whole image nearly coincide.
    """
    code, reach, pillow_filter = _INTERPOLATIONS[interpolation]
    scales = height / image.shape[0], width / image.shape[1]
    top, left = (height - size) // 2, (width - size) // 2
    if antialias:
        # of the short side all: Pillow rounds a box, which may move its edges to the next pixel
        y, x, rows, columns = (0, left, height, size) if width > height else (top, 0, size, width)
        right, bottom = (x + columns) / scales[1], (y + rows) / scales[0]
        box = (x / scales[1], y / scales[0], min(right, image.shape[1]), min(bottom, image.shape[0]))
        part = np.asarray(Image.fromarray(image).resize((columns, rows), pillow_filter, box))
        return part[top - y : top - y + size, left - x : left - x + size]
    reach = 2 if reach is None else reach
    y, x = (_part_start(offset, scale, reach) for offset, scale in zip((top, left), scales, strict=True))
    top, left = top - round(y * scales[0]), left - round(x * scales[1])
    part = _resize_top_left(image[y:, x:], scales, top + size, left + size, code, reach)
    return part[top : top + size, left : left + size]


def _part_start(offset: int, scale: float, reach: int) -> int:
    """Return a source pixel before those of resized pixel `offset` that nearly begins a resized pixel."""
    last = max(0, math.floor((offset - 1) / scale) - reach - 1)
    starts = range(max(0, last - 1000), last + 1)
    return min(starts, key=lambda start: abs(start * scale - round(start * scale)))


def random_resized_crop(
    image: np.ndarray,
    size: int,
    area: tuple[float, float],
    ratio: tuple[float, float],
    interpolation: str,
    antialias: bool,
    random: np.random.RandomState,
) -> np.ndarray:
    """Crop at random and resize: uint8 [H, W, 3] to uint8 [size, size, 3].

    The crop's share of the image's area is uniform in `area`, the logarithm of its width / height uniform
    in `ratio`. If ten draws do not fit into the image, the crop is the largest centred one whose ratio is
    allowed. Szegedy et al., https://arxiv.org/abs/1409.4842.
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
    """Exchange left and right."""
    return cv2.flip(image, 1)


class EvalTransform:
    """Evaluation's transform, uint8 [H, W, 3] to uint8 [S, S, 3]: resize the short side, crop the centre."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        self.preprocessing = preprocessing

    def __call__(self, image: np.ndarray, index: int) -> np.ndarray:
        return resize_short_center_crop(image, self.preprocessing)


class TrainTransform:
    """Training's transform, uint8 [H, W, 3] to uint8 [S, S, 3]: crop, flip and the augmentation that the
    options ask for. All random numbers depend on (seed, epoch, index) alone; for a further use of an image in
    the epoch, `index` is another number, see loader.load_batches."""

    def __init__(
        self, preprocessing: Preprocessing, augment: AugmentConfig, *, seed: int, epoch: int
    ) -> None:
        self.preprocessing, self.augment = preprocessing, augment
        self.seed, self.epoch = seed, epoch
        self.operators = image_operators(augment, preprocessing)
        self.erasing = RandomErasing(augment.random_erasing, augment.random_erasing_mode)

    def __call__(self, image: np.ndarray, index: int) -> np.ndarray:
        random = random_state(self.seed, self.epoch, index)
        if self.augment.center_crop:
            image = resize_short_center_crop(image, self.preprocessing)
        else:
            image = random_resized_crop(
                image,
                self.preprocessing.crop_size,
                self.augment.crop_area,
                self.augment.crop_ratio,
                self.preprocessing.interpolation,
                self.preprocessing.antialias,
                random,
            )
        image = flip(image) if random.uniform() < self.augment.flip else image
        for operator in self.operators:
            image = operator(image, random)
        return image

    def finish(self, out: np.ndarray, index: int) -> None:
        """Erase a random part of the image float32 [3, S, S], in place, after it is normalised."""
        if self.erasing.probability:
            self.erasing(out, random_state(self.seed, self.epoch, index, ERASING))


class Normalizer:
    """Write (pixel / 255 - mean) / std of each channel into a batch's slot, float32 [3, S, S].

    A table of the 256 values of each channel gives the same bits as the arithmetic in float32.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        pixels = np.arange(256, dtype=np.float32) * np.float32(1.0 / 255.0)
        channels = zip(np.asarray(mean, np.float32), np.asarray(std, np.float32), strict=True)
        self.tables = np.stack([(pixels - m) / s for m, s in channels])

    def __call__(self, image: np.ndarray, out: np.ndarray) -> None:
        if image.shape[:2] != out.shape[1:]:  # OpenCV would write to new memory and not fill the slot
            raise ValueError(f"the image has shape {image.shape}, but the batch's slot has {out.shape}")
        for channel, plane in enumerate(cv2.split(image)):
            cv2.LUT(plane, self.tables[channel], out[channel])
