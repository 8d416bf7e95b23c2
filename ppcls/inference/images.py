"""Images as a Predictor takes them: files, bytes, PIL images and arrays."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ppcls.data.folders import find_images
from ppcls.errors import DataError

OneImage = str | Path | bytes | Image.Image | np.ndarray
Images = OneImage | Sequence[OneImage]
FORMS = "a file, its bytes, a PIL image, or an array uint8 [H, W, 3] (red first) or [H, W] (grey)"
PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")  # of PIL images that PNG holds as they are


def list_images(images: Images) -> tuple[list[OneImage], bool]:
    """Return the images, files as str, and whether they were given as one. Raises DataError for a folder
    without images, and for another kind of object."""
    if isinstance(images, (str, Path)) and not Path(images).is_file():
        return [*find_images(str(images))], False
    if isinstance(images, OneImage) and not (isinstance(images, np.ndarray) and images.ndim == 4):
        return [str(images) if isinstance(images, Path) else images], True
    for image in images if isinstance(images, (Sequence, np.ndarray)) else [images]:
        if not isinstance(image, OneImage):
            raise DataError(
                f"Expected: {FORMS}; a list of these, a folder or a glob pattern. Received: "
                f"{type(image).__name__}"
            )
    return [str(image) if isinstance(image, Path) else image for image in images], False


def as_rgb(image: np.ndarray) -> np.ndarray:
    """Return an array as uint8 [H, W, 3]. Raises DataError for one that is not an image."""
    is_grey = image.ndim == 2 or image.shape[2:] == (1,)
    if image.dtype != np.uint8 or not (is_grey or image.shape[2:] == (3,)) or 0 in image.shape:
        raise DataError(
            "An image as an array is uint8 [H, W, 3], red first, or [H, W], and not empty (for normalised "
            f"batches: predictor.logits). Received: {image.dtype} {list(image.shape)}"
        )
    return np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2) if is_grey else image


def _has_16_bits(image: Image.Image) -> bool:
    values = np.asarray(image)
    return values.min() >= 0 and values.max() < 1 << 16


def bytes_of(image: str | Path | bytes | Image.Image) -> bytes:
    """Return the bytes of an image file; of a PIL image those of a PNG, so that all kinds of pixels and the
    orientation have the meaning that they have in files."""
    if isinstance(image, bytes):
        return image
    if not isinstance(image, Image.Image):
        return Path(image).read_bytes()
    exif, buffer = image.info.get("exif", b""), io.BytesIO()
    if image.mode.startswith("I") and _has_16_bits(image):
        image = image if image.mode == "I;16" else image.convert("I").convert("I;16")
    elif image.mode in ("I", "F"):  # values of no known range: refused, as their file is
        image.save(buffer, "tiff")
        return buffer.getvalue()
    elif image.mode not in PNG_MODES:
        image = image.convert("RGB")
    image.save(buffer, "png", exif=exif, compress_level=0)
    return buffer.getvalue()
