"""Draw a batch as a picture: the images as the network sees them, each with its label below."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ppcls.data.loader import Batch
from ppcls.preprocessing import Preprocessing

MOST_IMAGES = 64
GAP, LINE, NARROWEST = 4, 14, 112  # pixels: between images, of a line of text, of a column


def draw_batch(batch: Batch, preprocessing: Preprocessing, names: Sequence[str] | None) -> Image.Image:
    """Draw the batch's first MOST_IMAGES images, denormalised and not resized, in a square grid.

    names: the classes' names, in the labels' order; None: only numbers are shown. Of a mixed image, or one of
    several labels, the two largest shares are shown.
    """
    count, size = min(len(batch.images), MOST_IMAGES), preprocessing.crop_size
    lines = 1 if batch.shares is None else 2
    columns = math.ceil(math.sqrt(count))
    width, height = max(size, NARROWEST) + GAP, size + lines * LINE + GAP
    grid = Image.new("RGB", (columns * width, math.ceil(count / columns) * height), "white")
    pen, font = ImageDraw.Draw(grid), ImageFont.load_default()
    for number in range(count):
        left, top = number % columns * width, number // columns * height
        grid.paste(Image.fromarray(denormalize(batch.images[number], preprocessing)), (left, top))
        for line, text in enumerate(label_lines(batch, number, names)):
            while text and font.getlength(text) > width - GAP:
                text = text[:-1]
            pen.text((left, top + size + line * LINE), text, "black", font)
    return grid


def denormalize(image: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """Invert Normalizer: float32 [3, S, S] to uint8 [S, S, 3]. Values outside 0 to 255 are clipped."""
    mean, std = np.asarray(preprocessing.mean, np.float32), np.asarray(preprocessing.std, np.float32)
    pixels = image.transpose(1, 2, 0) * std + mean
    return np.clip(np.rint(pixels * 255), 0, 255).astype(np.uint8)


def label_lines(batch: Batch, number: int, names: Sequence[str] | None) -> list[str]:
    """Return an image's label, or its two largest shares, one on each line. Letters that the built-in font
    does not have become "?"."""
    if batch.labels is None:
        return []
    if batch.shares is None:
        shares = {int(batch.labels[number]): ""}
    else:
        classes, places = np.unique(batch.labels[number], return_inverse=True)
        parts = np.bincount(places, batch.shares[number])  # a mixed image may have a label twice
        best = [k for k in np.argsort(-parts, kind="stable")[:2] if parts[k] > 0]
        shares = {int(classes[k]): f"{parts[k]:.2f} " for k in best}
    lines = [share + (f"{k} {names[k]}" if names else f"class {k}") for k, share in shares.items()]
    return [line.encode("latin-1", "replace").decode("latin-1") for line in lines]
