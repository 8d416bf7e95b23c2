"""Encoded images: one of each kind that is read, with the pixels that went in."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

from ppcls.data.formats import read_formats

HEIGHT, WIDTH = 23, 31
RANDOM = np.random.RandomState(0)
COARSE = RANDOM.randint(0, 256, (5, 7, 3)).astype(np.uint8)
RGB = np.array(Image.fromarray(COARSE).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
ALPHA = RANDOM.randint(0, 256, (HEIGHT, WIDTH)).astype(np.uint8)
GREY = RGB[..., 1].copy()
BITS = GREY > 127
INDICES = RANDOM.randint(0, 16, (HEIGHT, WIDTH)).astype(np.uint8)
PALETTE = RANDOM.randint(0, 256, (16, 3)).astype(np.uint8)
GREY16 = RANDOM.randint(0, 65536, (HEIGHT, WIDTH)).astype(np.uint16)
RGB16 = RANDOM.randint(0, 65536, (HEIGHT, WIDTH, 3)).astype(np.uint16)


def encode(image, kind, **options):
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def with_palette():
    image = Image.new("P", (WIDTH, HEIGHT))
    image.putdata(INDICES.ravel().tolist())
    image.putpalette(PALETTE.ravel().tolist())
    return image


def chunk(name, content=b""):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width, height, depth, colour, rows, interlaced=0):
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND"))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def png16(pixels):
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    return png(WIDTH, HEIGHT, 16, 2 if pixels.ndim == 3 else 0, rows)


def interlaced_png():
    passes = (
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    )
    parts = (RGB[top::down, left::right] for left, top, right, down in passes)
    rows = b"".join(b"\0" + row.tobytes() for part in parts for row in part)
    return png(WIDTH, HEIGHT, 8, 2, rows, interlaced=1)


def bmp(width, height, depth, compression, content, palette=b""):
    start = 54 + len(palette)
    size = (40, width, height, 1, depth, compression, len(content), 0, 0, len(palette) // 4, 0)
    return (
        b"BM"
        + struct.pack("<IHHI", start + len(content), 0, 0, start)
        + struct.pack("<IiiHHIIiiII", *size)
        + (palette + content)
    )


def top_down_bmp():
    rows = b"".join(row[:, ::-1].tobytes() + bytes(-3 * WIDTH % 4) for row in RGB)
    return bmp(WIDTH, -HEIGHT, 24, 0, rows)


def run_length_bmp():
    """4 x 2, each row four times one index: 3 below, 5 above."""
    return bmp(
        4, 2, 8, 1, bytes([4, 3, 0, 0, 4, 5, 0, 0, 0, 1]), bytes(v for i in range(8) for v in (i, 0, 9, 0))
    )


def frames(pixels):
    return {"save_all": True, "append_images": [Image.fromarray(255 - pixels)], "duration": 100}


def as_grey(pixels):
    return np.repeat(pixels[..., None], 3, axis=2)


RGBA = np.dstack([RGB, ALPHA])
GREY_ALPHA = Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA)])
COLOURS = PALETTE[INDICES]
BLACK_WHITE = as_grey(BITS.astype(np.uint8) * 255)
LOSSLESS = {
    "png": (encode(RGB, "PNG"), RGB),
    "png grey": (encode(GREY, "PNG"), as_grey(GREY)),
    "png 1 bit": (encode(BITS, "PNG"), BLACK_WHITE),
    "png palette": (encode(with_palette(), "PNG"), COLOURS),
    "png palette and a transparent colour": (encode(with_palette(), "PNG", transparency=5), COLOURS),
    "png palette and alpha": (encode(with_palette(), "PNG", transparency=bytes(range(0, 256, 16))), COLOURS),
    "png and a transparent colour": (encode(RGB, "PNG", transparency=tuple(RGB[3, 3].tolist())), RGB),
    "png rgba": (encode(RGBA, "PNG"), RGB),
    "png grey and alpha": (encode(GREY_ALPHA, "PNG"), as_grey(GREY)),
    "png grey 16 bits": (png16(GREY16), as_grey((GREY16 >> 8).astype(np.uint8))),
    "png rgb 16 bits": (png16(RGB16), (RGB16 >> 8).astype(np.uint8)),
    "png interlaced": (interlaced_png(), RGB),
    "png animated": (encode(RGB, "PNG", **frames(RGB)), RGB),
    "png animated rgba": (encode(RGBA, "PNG", **frames(RGBA)), RGB),
    "png animated, but for its first picture": (encode(RGB, "PNG", default_image=True, **frames(RGB)), RGB),
    "bmp": (encode(RGB, "BMP"), RGB),
    "bmp grey": (encode(GREY, "BMP"), as_grey(GREY)),
    "bmp 1 bit": (encode(BITS, "BMP"), BLACK_WHITE),
    "bmp palette": (encode(with_palette(), "BMP"), COLOURS),
    "bmp rgba": (encode(RGBA, "BMP"), RGB),
    "bmp top down": (top_down_bmp(), RGB),
    "bmp run lengths": (run_length_bmp(), np.array([[[9, 0, 5]] * 4, [[9, 0, 3]] * 4], np.uint8)),
    "webp": (encode(RGB, "WEBP", lossless=True), RGB),
    "webp rgba": (encode(RGBA, "WEBP", lossless=True, exact=True), RGB),
    "webp animated": (encode(RGB, "WEBP", lossless=True, **frames(RGB)), RGB),
    "gif": (encode(with_palette(), "GIF"), COLOURS),
    "gif grey": (encode(GREY, "GIF"), as_grey(GREY)),
    "gif and a transparent colour": (encode(with_palette(), "GIF", transparency=5), COLOURS),
    "gif animated": (encode(GREY, "GIF", **frames(GREY)), as_grey(GREY)),
    "tiff": (encode(RGB, "TIFF"), RGB),
    "tiff grey": (encode(GREY, "TIFF"), as_grey(GREY)),
    "tiff 1 bit": (encode(BITS, "TIFF", compression="group4"), BLACK_WHITE),
    "tiff palette": (encode(with_palette(), "TIFF"), COLOURS),
    "tiff rgba": (encode(RGBA, "TIFF"), RGB),
    "tiff grey and alpha": (encode(GREY_ALPHA, "TIFF"), as_grey(GREY)),
    "tiff grey 16 bits": (encode(GREY16, "TIFF"), as_grey((GREY16 >> 8).astype(np.uint8))),
    "tiff lzw": (encode(RGB, "TIFF", compression="tiff_lzw"), RGB),
    "tiff deflate": (encode(RGB, "TIFF", compression="tiff_adobe_deflate"), RGB),
    "tiff packbits": (encode(RGB, "TIFF", compression="packbits"), RGB),
    "tiff of two pages": (
        encode(RGB, "TIFF", save_all=True, append_images=[Image.fromarray(255 - RGB)]),
        RGB,
    ),
    "ppm": (encode(RGB, "PPM"), RGB),
    "pgm": (encode(GREY, "PPM"), as_grey(GREY)),
    "pgm 16 bits": (
        b"P5 %d %d 65535\n" % (WIDTH, HEIGHT) + GREY16.astype(">u2").tobytes(),
        as_grey((GREY16 >> 8).astype(np.uint8)),
    ),
    "dib": (encode(RGB, "DIB"), RGB),
    "tga": (encode(RGB, "TGA"), RGB),
    "tga rgba": (encode(RGBA, "TGA", compression="tga_rle"), RGB),
    "jpeg 2000": (encode(RGB, "JPEG2000"), RGB),
    "pgm up to 51": (b"P5 3 1 51\n" + bytes([0, 17, 51]), as_grey(np.array([[0, 85, 255]], np.uint8))),
}
JPEGS = {
    "baseline": encode(RGB, "JPEG", quality=90),
    "progressive": encode(RGB, "JPEG", quality=90, progressive=True),
    "4:4:4": encode(RGB, "JPEG", subsampling=0),
    "4:2:2": encode(RGB, "JPEG", subsampling=1),
    "restart markers": encode(RGB, "JPEG", restart_marker_blocks=2),
    "grey": encode(GREY, "JPEG"),
}
CMYK = encode(Image.fromarray(RGB).convert("CMYK"), "JPEG", quality=95)
ALL = {name: data for name, (data, _) in LOSSLESS.items()}
ALL |= {f"jpeg {name}": data for name, data in JPEGS.items()}
ALL |= {
    "jpeg cmyk": CMYK,
    "webp lossy": encode(RGB, "WEBP"),
    "tiff jpeg": encode(RGB, "TIFF", compression="jpeg"),
    "mpo of two pages": encode(RGB, "MPO", **frames(RGB)),
}
if "AVIF" in read_formats():  # from Pillow 11.3 on
    ALL["avif"] = encode(RGB, "AVIF")
