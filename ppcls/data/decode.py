"""Decode the bytes of image files to pixels. OpenCV decodes JPEG: it is fast, and agrees with Pillow to the
bit (for CMYK within one level). Pillow decodes all other formats.

OpenCV's other decoders are not used. They differ from version to version (4.11 has none for GIF and ignores
a WebP's EXIF rotation), mix alpha into a TIFF's colours, and trust damaged files: a PNG can make them
allocate 2 GB or crash, and the missing part of a BMP is filled in.
"""

import io
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from ppcls.data import formats, side_data
from ppcls.data.opencv import IS_LIMITED, MAX_PIXELS, cv2
from ppcls.errors import DataError

_JPEG_FLAGS = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
_JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # markers of the segments that state the size
_JPEG_FRAME = re.compile(b"\xff[" + bytes(_JPEG_FRAMES) + b"]", re.DOTALL)
_BAND = 1 << 22  # pixels that are copied out of Pillow's memory at a time
_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_SAMPLE = 258, 262, 339  # tags
_NO_RANGE = {2: "signed ", 3: "floating-point "}  # kinds of a TIFF's samples
UNREADABLE = (DataError, OSError, MemoryError)  # of reading and decoding an image


def reason_of(error: Exception) -> str:
    """Return why an image cannot be read, in a few words. error: one of UNREADABLE."""
    if isinstance(error, MemoryError):
        return "out of memory while the file is read"
    return getattr(error, "strerror", None) or str(error)


def decode(data: bytes, where: str = "") -> np.ndarray:
    """Decode an image file's bytes to RGB uint8 [H, W, 3], turned upright as its EXIF or XMP data state.

    Returns the first frame of an animation, and the high byte of 16-bit values. Transparency is dropped.
    where: what Pillow's warnings call the image.
    Raises DataError, and nothing else, for bytes that are not an image, a truncated image, more than
    MAX_PIXELS pixels or too little memory. (A JPEG that was cut off and then given an end marker cannot be
    distinguished from a whole one.)
    """
    if not data:
        raise DataError("the file is empty")
    image = _decode_opencv(data) if data.startswith(side_data.JPEG) else None
    if image is not None:
        orientation = side_data.jpeg_orientation(data)
    else:
        with _name_warnings(where):
            image, orientation = _decode_pillow(data)
    try:
        return side_data.turn_upright(image, orientation)
    except cv2.error as error:
        raise DataError(f"out of memory at {image.shape[1]} x {image.shape[0]} pixels") from error


def find_jpeg_damage(data: bytes) -> str | None:
    """Return why Pillow refuses the pixels of a JPEG file; None if it reads them, or for another format.

    OpenCV fills up corrupt pixel data and returns an image.
    """
    if data.startswith(side_data.JPEG):
        try:
            with _open_pillow(side_data.separate(data).pixels) as image:
                image.draft(None, (1, 1))  # at an eighth of the size: quicker, and all data are read
                image.load()
        except DataError as error:
            return str(error)
    return None


def count_pixels(data: bytes) -> int | None:
    """Return how many pixels an image file states in its header; None for a header that cannot be read."""
    if data.startswith(side_data.JPEG):
        frames = [start for marker, start, _ in side_data.jpeg_segments(data) if marker in _JPEG_FRAMES]
        frames = frames or [
            found.start() for found in _JPEG_FRAME.finditer(data)
        ]  # as decoders search for it
        sizes = [(data[at + 5 : at + 7], data[at + 7 : at + 9]) for at in frames]
        return max((int.from_bytes(h, "big") * int.from_bytes(w, "big") for h, w in sizes), default=None)
    try:
        with _open_pillow(data) as image:
            return image.width * image.height
    except DataError as error:
        is_too_large = isinstance(error.__cause__, Image.DecompressionBombError)
        return MAX_PIXELS + 1 if is_too_large else None


def _decode_opencv(jpeg: bytes) -> np.ndarray | None:
    _refuse_zeros_for_an_end(jpeg)
    if not IS_LIMITED:
        _refuse_too_many_pixels(jpeg)
    try:
        return cv2.imdecode(np.frombuffer(jpeg, np.uint8), _JPEG_FLAGS)
    except cv2.error:  # too many pixels, or too little memory
        return None


def _refuse_zeros_for_an_end(jpeg: bytes) -> None:
    """Raise DataError for a broken download in a file of full length: both decoders would read its zeros as
    grey."""
    if jpeg[-2:] != b"\0\0":
        return
    ends = [start for _, start, _ in side_data.jpeg_segments(jpeg)]
    if jpeg.find(b"\xff\xd9", ends[-1] if ends else 0) < 0:
        raise DataError("the image is truncated: it ends in zeros")


def _refuse_too_many_pixels(data: bytes) -> None:
    """Raise DataError if the file's header states too many pixels. Pillow checks this on opening."""
    try:
        with _open_pillow(data):
            pass
    except DataError as error:
        if isinstance(error.__cause__, Image.DecompressionBombError):
            raise  # what else Pillow refuses, OpenCV may still read


def _decode_pillow(data: bytes) -> tuple[np.ndarray, int]:
    """Return the image as it is stored, and its orientation."""
    other = formats.name_other(data)
    if other is not None:
        raise DataError(other)
    pixels, exifs, xmps = side_data.separate(data)
    with _open_pillow(pixels) as image:
        if image.format == "JPEG2000":
            _refuse_cut_jpeg2000(data)
        image.load()
        exifs += _as_bytes(image, "exif")
        xmps += _as_bytes(image, "xmp", "XML:com.adobe.xmp")
        rgb = _to_rgb(image)
    return rgb, side_data.find_orientation(exifs, xmps)


def _refuse_cut_jpeg2000(data: bytes) -> None:
    """Raise DataError if the pixels' box has no end marker. Pillow reads a part of them, as a blurred
    image."""
    if data.find(b"\xff\xd9", max(0, data.find(b"jp2c"))) < 0:
        raise DataError("the image is truncated: its end marker is missing")


@contextmanager
def _open_pillow(data: bytes) -> Iterator[Image.Image]:
    """Open an image with Pillow. All exceptions, also those of the block, become DataError: Pillow's readers
    meet damage unprepared, and raise what they happen to."""
    size = "an unknown size"
    try:
        with Image.open(io.BytesIO(data), formats=formats.read_formats()) as image:
            size = f"{image.width} x {image.height} pixels"
            yield image
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(formats.name_unread(data)) from None
    except MemoryError as error:
        raise DataError(f"out of memory at {size}") from error
    except Exception as error:
        raise DataError(str(error) or type(error).__name__) from error


def _as_bytes(image: Image.Image, *keys: str) -> list[bytes]:
    values = (image.info.get(key) for key in keys)
    texts = (value.encode(errors="replace") if isinstance(value, str) else value for value in values)
    return [text for text in texts if isinstance(text, bytes)]


def _to_rgb(image: Image.Image) -> np.ndarray:
    """Return a loaded image's pixels, uint8 [H, W, 3]. Bands of it are converted one after the other, so that
    a large image is in memory twice, not four times."""
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    bits, sample = tags.get(_TIFF_BITS, (16,))[0], tags.get(_TIFF_SAMPLE, (1,))[0]
    is_deep = image.mode.startswith("I")  # more than 8 bits of grey
    if image.mode == "F" or (is_deep and (bits > 16 or sample in _NO_RANGE)):
        bits, name = (bits, _NO_RANGE.get(sample, "")) if tags else (32, _NO_RANGE[3])
        raise DataError(f"{bits}-bit {name}pixels have no known range; save the image with 8 or 16 bits")
    out = np.empty((image.height, image.width, 3), np.uint8)
    if not out.size:
        raise DataError("the image has no pixels")
    rows = max(1, _BAND // image.width)
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        if is_deep:  # convert("RGB") would clip the values
            out[top : top + rows] = (np.asarray(band) >> (bits - 8))[..., None]
        else:
            out[top : top + rows] = np.asarray(band if band.mode == "RGB" else band.convert("RGB"))
    is_negative = is_deep and tags.get(_TIFF_PHOTOMETRIC) == 0  # which Pillow passes over
    return cv2.bitwise_not(out) if is_negative else out


_decoded = threading.local()  # its `where`: what warnings call the image that this thread decodes


@contextmanager
def _name_warnings(where: str) -> Iterator[None]:
    """Have this thread's warnings begin with the image's name."""
    global _show_unnamed
    if where and warnings.showwarning is not _show_named:
        _show_unnamed, warnings.showwarning = warnings.showwarning, _show_named
    _decoded.where = where
    try:
        yield
    finally:
        _decoded.where = ""


_show_unnamed = warnings.showwarning


def _show_named(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    where = getattr(_decoded, "where", "")
    named = category(f"{where}: {message}") if where else message
    _show_unnamed(named, category, filename, lineno, file, line)
