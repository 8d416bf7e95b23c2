"""File bytes to pixels: every format against the pixels that went in, and damage of every kind."""

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ppcls.data.decode import decode
from ppcls.data.opencv import MAX_PIXELS, cv2
from ppcls.errors import DataError

pytestmark = pytest.mark.filterwarnings("ignore:::PIL")  # Pillow warns of some damage too
ROOT = Path(__file__).parent.parent
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
}


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_formats_give_the_pixels_that_went_in(name):
    data, expected = LOSSLESS[name]
    image = decode(data)
    assert image.dtype == np.uint8 and image.shape == expected.shape
    np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize("name", JPEGS)
def test_jpeg_is_decoded_as_pillow_does(name):
    expected = np.asarray(Image.open(io.BytesIO(JPEGS[name])).convert("RGB"))
    np.testing.assert_array_equal(decode(JPEGS[name]), expected)


def without_adobe(data):
    start = data.index(b"\xff\xee")
    return data[:start] + data[start + 2 + int.from_bytes(data[start + 2 : start + 4], "big") :]


@pytest.mark.parametrize("data", [CMYK, without_adobe(CMYK)], ids=["as Adobe inverts it", "plain"])
def test_cmyk_is_converted_as_pillow_does(data):
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert np.ptp(expected) > 100
    np.testing.assert_allclose(decode(data), expected, atol=2)


TURNED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda a: np.rot90(a, 1),
}


def exif(orientation, order):
    mark = b"II*\0" if order == "<" else b"MM\0*"
    value = struct.pack(order + "HH", orientation, 0)
    return mark + struct.pack(order + "IHHHI", 8, 1, 0x112, 3, 1) + value + bytes(4)


def jpeg_with_exif(content):
    data = JPEGS["baseline"]
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(content) + 8) + b"Exif\0\0" + content + data[2:]


def png_with_exif(content, last=False):
    data = LOSSLESS["png"][0]
    place = len(data) - 12 if last else 33
    return data[:place] + chunk(b"eXIf", content) + data[place:]


def webp_with_exif(content):
    return encode(RGB, "WEBP", lossless=True, exif=content)


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("order", "<>")
def test_exif_rotation(orientation, order):
    content = exif(orientation, order)
    expected = TURNED[orientation](RGB)
    np.testing.assert_array_equal(
        decode(jpeg_with_exif(content)), TURNED[orientation](decode(JPEGS["baseline"]))
    )
    np.testing.assert_array_equal(decode(png_with_exif(content)), expected)
    np.testing.assert_array_equal(decode(png_with_exif(content, last=True)), expected)
    np.testing.assert_array_equal(decode(webp_with_exif(content)), expected)
    tags = {0x112: orientation}
    np.testing.assert_array_equal(decode(encode(RGB, "TIFF", tiffinfo=tags)), expected)
    expected = as_grey((TURNED[orientation](GREY16[..., None])[..., 0] >> 8).astype(np.uint8))
    np.testing.assert_array_equal(decode(encode(GREY16, "TIFF", tiffinfo=tags)), expected)


@pytest.mark.parametrize("content", [b"junk", b"\xff" * 40, exif(6, "<")[:11], exif(0, "<"), exif(9, ">")])
def test_exif_data_that_say_nothing_turn_nothing(content):
    np.testing.assert_array_equal(decode(jpeg_with_exif(content)), decode(JPEGS["baseline"]))
    np.testing.assert_array_equal(decode(png_with_exif(content)), RGB)
    np.testing.assert_array_equal(decode(webp_with_exif(content)), RGB)


# A cut file.


@pytest.mark.parametrize("name", ALL)
def test_a_cut_file_gives_an_error_or_the_whole_picture(name):
    data = ALL[name]
    whole = decode(data)
    lengths = {
        *np.linspace(1, len(data) - 1, 80).astype(int).tolist(),
        *range(max(1, len(data) - 30), len(data)),
    }
    errors = 0
    for length in sorted(lengths):
        try:
            image = decode(data[:length])
        except DataError:
            errors += 1
            continue
        np.testing.assert_array_equal(image, whole, err_msg=f"{length} of {len(data)} bytes")
    assert errors >= (20 if "animated" in name or "pages" in name else len(lengths) // 2)


NOISE = RANDOM.randint(0, 256, (150, 201, 3)).astype(np.uint8)
PHOTOGRAPHS = {
    "baseline": encode(NOISE, "JPEG"),
    "progressive": encode(NOISE, "JPEG", progressive=True),
    "restart markers": encode(NOISE, "JPEG", restart_marker_blocks=4),
}


@pytest.mark.parametrize("name", PHOTOGRAPHS)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95, 0.999])
def test_a_jpeg_whose_end_is_missing_or_zeros_is_truncated(name, share):
    data = PHOTOGRAPHS[name]
    kept = data[: int(share * len(data))]
    for broken in (kept, kept + bytes(len(data) - len(kept)), kept + bytes(70_000)):
        with pytest.raises(DataError):
            decode(broken)


def test_zeros_after_a_whole_jpeg_do_no_harm():
    """As some cameras and archives pad files; a thumbnail in the EXIF data ends before the picture does."""
    data = PHOTOGRAPHS["baseline"]
    whole = decode(data)
    np.testing.assert_array_equal(decode(data + bytes(100)), whole)
    np.testing.assert_array_equal(decode(data + b"a trailer\0\0"), whole)
    segment = b"\xff\xe2" + struct.pack(">H", 2 + len(JPEGS["baseline"])) + JPEGS["baseline"]
    with_thumbnail = data[:2] + segment + data[2:]
    np.testing.assert_array_equal(decode(with_thumbnail), whole)
    with pytest.raises(DataError, match="zeros"):
        decode(with_thumbnail[: len(with_thumbnail) // 2] + bytes(len(with_thumbnail) // 2))


# Damaged files.


@pytest.mark.parametrize("name", ALL)
def test_damage_gives_a_picture_or_an_error_that_says_so(name):
    """Nothing but DataError; and no crash, and no gigabytes, as OpenCV's reader of PNGs has here."""
    random = np.random.RandomState(zlib.crc32(name.encode()))
    for number in range(120):
        data = bytearray(ALL[name])
        for _ in range(random.randint(1, 4)):
            place = random.randint(len(data) if number % 2 else min(len(data), 150))
            data[place] = random.randint(256) if number % 3 else data[place] ^ 1 << random.randint(8)
        try:
            image = decode(bytes(data))
        except DataError as error:
            assert str(error)
            continue
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size > 0


def test_pixels_of_32_bits_have_no_range():
    for pixels in (GREY16.astype(np.int32), GREY16.astype(np.float32)):
        with pytest.raises(DataError, match="32-bit"):
            decode(encode(pixels, "TIFF"))


@pytest.mark.parametrize(
    "data",
    [
        png(30000, 30000, 8, 2, b""),
        png(2**31 - 1, 2**31 - 1, 8, 2, b""),
        bmp(30000, 30000, 24, 0, b""),
        b"GIF89a" + struct.pack("<HH", 65535, 65535) + LOSSLESS["gif"][0][10:],
        b"P6 30000 30000 255\n",
    ],
    ids=["png", "larger png", "bmp", "gif", "ppm"],
)
def test_a_decompression_bomb_is_refused(data):
    with pytest.raises(DataError):
        decode(data)


def test_more_pixels_than_the_limit_are_refused_before_they_are_decoded():
    width = 20_000
    height = MAX_PIXELS // width + 1
    rows = (b"\0" + bytes(width // 8)) * height  # a real picture of 22 MB as bits, of 537 MB as RGB
    with pytest.raises(DataError, match="pixels"):
        decode(png(width, height, 1, 0, rows))


@pytest.mark.parametrize(
    "data",
    [
        png(0, 0, 8, 2, b""),
        png(0, 5, 8, 2, b""),
        bmp(0, 0, 24, 0, b""),
        b"P6 0 0 255\n",
        b"GIF89a" + bytes(7),
    ],
    ids=["png", "narrow png", "bmp", "ppm", "gif"],
)
def test_an_image_of_no_size_is_refused(data):
    with pytest.raises(DataError):
        decode(data)


@pytest.mark.parametrize(
    "data",
    [b"a text, not an image\n", b"<!DOCTYPE html><html></html>", bytes(1000), b"\xff\xd8", b"\x89PNG", b"B"],
)
def test_what_is_no_image_is_named_so(data):
    with pytest.raises(DataError) as caught:
        decode(data)
    assert "image" in str(caught.value) and "0x" not in str(caught.value)


def test_an_empty_file_is_named_so():
    with pytest.raises(DataError, match="empty"):
        decode(b"")


# OpenCV itself.


def import_with_fake_cv2(folder, source):
    (folder / "cv2.py").write_text(source, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    code = """
import ppcls.data, ppcls.errors
try:
    import ppcls.data.loader
except ppcls.errors.DataError as error:
    print(error)
"""
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    return run.stdout


@pytest.mark.parametrize(
    "reason",
    ["libGL.so.1: cannot open shared object file: No such file or directory", "No module named 'cv2'"],
)
def test_opencv_that_cannot_be_loaded_names_the_headless_package(tmp_path, reason):
    message = import_with_fake_cv2(tmp_path, f"raise ImportError({reason!r})")
    assert reason in message and "opencv-python-headless" in message


def test_an_opencv_too_old_is_named(tmp_path):
    message = import_with_fake_cv2(tmp_path, "__version__ = '4.10.0'")
    assert "4.11" in message and "Received: 4.10.0" in message


def test_opencv_uses_one_thread():
    assert cv2.getNumThreads() == 1
