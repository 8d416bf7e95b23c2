"""File bytes to pixels. OpenCV decodes; Pillow takes what OpenCV can't read, or reads differently
from one version to the next."""

import io
import struct
import warnings

import cv2
import numpy as np
from PIL import Image, ImageOps

from ppcls.errors import DataError

_PILLOW_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    struct.error,
    Image.DecompressionBombError,
)


def decode(data: bytes) -> np.ndarray:
    """An image file's bytes as uint8 [H, W, 3], red first, turned upright as its EXIF data says.

    Of an animation the first frame; of 16 bits the high byte; transparency is dropped. Raises DataError
    for bytes that are no image, a truncated image, or one of more than MAX_PIXELS pixels.
    """
    if not data:
        raise DataError("the file is empty")
    if _is_webp_or_gif(data):
        return _decode_pillow(data)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error:
        image = None
    return _decode_pillow(data) if image is None else image


def _is_webp_or_gif(data: bytes) -> bool:
    """OpenCV 4.11 reads no GIF, and ignores the EXIF rotation of a WebP."""
    return data[:3] == b"GIF" or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")


def _decode_pillow(data: bytes) -> np.ndarray:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as image:
                return _to_rgb(ImageOps.exif_transpose(image))
    except Image.DecompressionBombWarning:
        raise DataError("the image has more pixels than Pillow opens safely") from None
    except _PILLOW_ERRORS as error:
        raise DataError(
            str(error).replace("<_io.BytesIO object at", "(bytes at") or type(error).__name__
        ) from error


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I"):  # 16 bits, whose conversion to RGB would clip
        grey = np.asarray(image)
        if grey.min(initial=0) < 0 or grey.max(initial=0) > 65535:
            raise DataError(f"grey values from {grey.min()} to {grey.max()} have no meaning as a picture")
        return np.repeat((grey.astype(np.uint16) >> 8).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode == "F":
        raise DataError("floating-point pixels have no known range; save the image with 8 or 16 bits")
    return np.asarray(image.convert("RGB"))
