"""Decode the bytes of image files to pixels. OpenCV decodes JPEG: it is fast, and agrees with Pillow to the
bit (for CMYK within one level). Pillow decodes all other formats.

OpenCV's other decoders are not used. They differ from version to version (4.11 has none for GIF and ignores
a WebP's EXIF rotation), mix alpha into a TIFF's colours, and trust damaged files: a PNG can make them
allocate 2 GB or crash, and the missing part of a BMP is filled in.
"""

import io
import struct

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ppcls.data.opencv import IS_LIMITED, cv2
from ppcls.errors import DataError

# Exceptions that Pillow's readers raise for a damaged file.
_BROKEN = (
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, RuntimeError, LookupError, ArithmeticError),
    *(struct.error, Image.DecompressionBombError),
)


def decode(data: bytes) -> np.ndarray:
    """Decode an image file's bytes to RGB uint8 [H, W, 3], turned upright by its EXIF orientation.

    Returns the first frame of an animation, and the high byte of 16-bit values. Transparency is dropped.
    Raises DataError for bytes that are not an image, a truncated image, or more than MAX_PIXELS pixels. (A
    JPEG that was cut off and then given an end marker cannot be distinguished from a whole one.)
    """
    if not data:
        raise DataError("the file is empty")
    if data[:3] == b"\xff\xd8\xff":
        _refuse_zeros_for_an_end(data)
        if not IS_LIMITED:
            _refuse_too_many_pixels(data)
        try:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        except cv2.error:  # too many pixels
            image = None
        if image is not None:
            return image
    return _decode_pillow(data)


def _refuse_zeros_for_an_end(jpeg: bytes) -> None:
    """Raise DataError for a broken download in a file of full length: both decoders would read its zeros as
    grey."""
    if jpeg[-2:] != b"\0\0":
        return
    scan = 2
    while jpeg[scan : scan + 2] not in (b"\xff\xda", b""):  # over the segments before the pixel data
        scan += 2 + int.from_bytes(jpeg[scan + 2 : scan + 4], "big")
    if jpeg.find(b"\xff\xd9", scan) < 0:
        raise DataError("the image is truncated: it ends in zeros")


def _refuse_too_many_pixels(data: bytes) -> None:
    """Raise DataError if the file's header states too many pixels. Pillow checks this on opening."""
    try:
        Image.open(io.BytesIO(data)).close()
    except Image.DecompressionBombError as error:
        raise DataError(str(error)) from error
    except _BROKEN:  # OpenCV may still read it
        return


def _decode_pillow(data: bytes) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
                raise DataError("32-bit pixels have no known range; save the image with 8 or 16 bits")
            try:
                upright = ImageOps.exif_transpose(image)
            except SyntaxError:  # unreadable EXIF data is ignored, as OpenCV does
                upright = image
            return _to_rgb(upright)
    except UnidentifiedImageError:
        raise DataError("not an image, or of a format that neither OpenCV nor Pillow can read") from None
    except _BROKEN as error:
        raise DataError(str(error) or type(error).__name__) from error


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I"):  # 16 bits; convert("RGB") would clip the values
        return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)
    return np.asarray(image.convert("RGB"))
