"""File bytes to pixels. OpenCV decodes JPEG, where it is fast and agrees with Pillow to the bit (for CMYK
within a level); Pillow decodes all else.

OpenCV's other decoders differ from version to version (4.11 has none for GIF and overlooks a WebP's EXIF
rotation), mix alpha into a TIFF's colours, and trust damaged files: a PNG can make them take 2 GB or crash,
a BMP is filled in.
"""

import io
import struct

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ppcls.data.opencv import IS_LIMITED, cv2
from ppcls.errors import DataError

# What Pillow's readers raise for a damaged file.
_BROKEN = (
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, RuntimeError, LookupError, ArithmeticError),
    *(struct.error, Image.DecompressionBombError),
)


def decode(data: bytes) -> np.ndarray:
    """An image file's bytes as uint8 [H, W, 3], red first, turned upright as its EXIF data says.

    Of an animation the first frame; of 16 bits the high byte; transparency is dropped. Raises DataError
    for bytes that are no image, a truncated image, or one of more than MAX_PIXELS pixels. (A JPEG that was
    cut off and then given an end marker can't be told from a whole one.)
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
    """Raise DataError for a download that broke off in a file of full length: both decoders would take the
    zeros for grey."""
    if jpeg[-2:] != b"\0\0":
        return
    scan = 2
    while jpeg[scan : scan + 2] not in (b"\xff\xda", b""):  # over the segments before the pixel data
        scan += 2 + int.from_bytes(jpeg[scan + 2 : scan + 4], "big")
    if jpeg.find(b"\xff\xd9", scan) < 0:
        raise DataError("the image is truncated: zeros stand in place of its end")


def _refuse_too_many_pixels(data: bytes) -> None:
    """Raise DataError by the size that a file's header states, which Pillow checks when it opens one."""
    try:
        Image.open(io.BytesIO(data)).close()
    except Image.DecompressionBombError as error:
        raise DataError(str(error)) from error
    except _BROKEN:  # OpenCV may read it nevertheless
        return


def _decode_pillow(data: bytes) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
                raise DataError("32-bit pixels have no known range; save the image with 8 or 16 bits")
            try:
                upright = ImageOps.exif_transpose(image)
            except SyntaxError:  # EXIF data that can't be read turn nothing, as OpenCV has it
                upright = image
            return _to_rgb(upright)
    except UnidentifiedImageError:
        raise DataError("this is no image, or of a kind that neither OpenCV nor Pillow can read") from None
    except _BROKEN as error:
        raise DataError(str(error) or type(error).__name__) from error


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I"):  # 16 bits, whose conversion to RGB would clip
        return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)
    return np.asarray(image.convert("RGB"))
