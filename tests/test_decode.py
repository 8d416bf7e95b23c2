"""File bytes to pixels: every format against the pixels that went in, and damage of every kind."""

import io
import json
import os
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ppcls.data.decode import decode, find_jpeg_damage
from ppcls.data.formats import read_formats
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


# Odd EXIF data: an image is turned by tag 0x112 alone, whatever the other tags hold.

TYPE_SIZES = {
    0: 1,
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
    16: 8,
    99: 1,
}
ODD_TAGS = (0xFE, 0x10F, 0x11A, 0x131, 0x2BC, 0x8298, 0x8769, 0x8825, 0x9286, 0xA005, 0xFDE8)


def odd_exif(tag, kind, count, filling):
    """EXIF data of orientation 6 and another tag, of any type."""
    value = (filling * 72)[: TYPE_SIZES[kind] * count]
    place = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack("<I", 38)
    entries = sorted(
        [
            (0x112, struct.pack("<HHIHH", 0x112, 3, 1, 6, 0)),
            (tag, struct.pack("<HHI", tag, kind, count) + place),
        ]
    )
    return struct.pack("<4sIH", b"II*\0", 8, 2) + b"".join(entry for _, entry in entries) + bytes(4) + value


def odd_exifs():
    for tag in ODD_TAGS:
        for kind in TYPE_SIZES:
            for count in (0, 1, 2, 9):
                for filling in (b"\1\0\0\0", b"\xff", b"72 \0"):
                    yield odd_exif(tag, kind, count, filling)


def png_with_text(content, kind=b"tEXt"):
    """As ImageMagick writes EXIF."""
    text = b"\nexif\n%8d\n" % len(content) + content.hex().encode() + b"\n"
    parts = {b"tEXt": text, b"zTXt": b"\0" + zlib.compress(text), b"iTXt": b"\0\0\0\0" + text}
    return with_chunks(chunk(kind, b"Raw profile type exif\0" + parts[kind]))


def with_chunks(*chunks, data=None):
    """The PNG with other chunks behind its size."""
    data = LOSSLESS["png"][0] if data is None else data
    return data[:33] + b"".join(chunks) + data[33:]


def webp_with_odd_exif(content):
    """Pillow would not write it."""
    data = webp_with_exif(exif(6, "<"))
    place = data.index(b"EXIF")
    data = data[:place] + b"EXIF" + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)
    return data[:4] + struct.pack("<I", len(data) - 8) + data[8:]


def tiff_with_odd_exif(content):
    """The tags of the EXIF data come first, so that the offsets of their values hold."""
    pixels = RGB.tobytes()
    start = len(content)
    fields = [(256, 3, WIDTH), (257, 3, HEIGHT), (258, 3, 8), (259, 3, 1), (262, 3, 2), (273, 4, start)]
    fields += [(277, 3, 3), (278, 3, HEIGHT), (279, 4, len(pixels))]
    entries = [struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in fields]
    entries[2] = struct.pack("<HHII", 258, 3, 3, start + len(pixels))
    entries += [content[10:22], content[22:34]]
    table = struct.pack("<H", len(entries)) + b"".join(sorted(entries, key=lambda entry: entry[1::-1]))
    end = start + len(pixels) + 6
    return b"II*\0" + struct.pack("<I", end) + content[8:] + pixels + bytes([8, 0] * 3) + table + bytes(4)


@pytest.mark.parametrize(
    "write",
    [png_with_exif, png_with_text, webp_with_odd_exif, jpeg_with_exif, tiff_with_odd_exif],
    ids=["png", "png text", "webp", "jpeg", "tiff"],
)
def test_odd_exif_tags_do_not_change_the_orientation(write):
    expected = np.rot90(decode(JPEGS["baseline"]) if write is jpeg_with_exif else RGB, -1)
    wrong, count = [], 0
    for content in odd_exifs():
        if write is tiff_with_odd_exif and content[22:24] == b"\xfe\0":
            continue
        count += 1
        try:
            image = decode(write(content))
        except DataError as error:
            wrong.append((content, str(error)))
            continue
        if not np.array_equal(image, expected):
            wrong.append((content, "other pixels"))
    assert count > 1800 and not wrong


@pytest.mark.skipif("avif" not in ALL, reason="Pillow reads AVIF from 11.3 on")
def test_odd_exif_tags_in_avif():
    content = exif(6, "<")[:8] + struct.pack("<H", 2) + exif(6, "<")[10:22]
    data = encode(RGB, "AVIF", exif=content + struct.pack("<HHII", 0x10F, 4, 1, 5) + bytes(4))
    expected = decode(data)
    assert expected.shape == (WIDTH, HEIGHT, 3)
    entry = data.rindex(b"II*\0") + 10
    for kind in TYPE_SIZES:
        for tag in ODD_TAGS:
            other = struct.pack("<HHII", tag, kind, 1, 0xFFFFFFFF)
            np.testing.assert_array_equal(decode(data[:entry] + other + data[entry + 12 :]), expected)
    np.testing.assert_array_equal(decode(data.replace(b"II*\0", b"junk")), expected)


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt", b"iTXt"])
def test_the_text_form_of_exif_turns_a_png(orientation, kind):
    data = png_with_text(b"Exif\0\0" + exif(orientation, ">"), kind)
    np.testing.assert_array_equal(decode(data), TURNED[orientation](RGB))


@pytest.mark.parametrize("kind", [1, 3, 4, 6, 8, 9])
def test_an_orientation_of_another_integer_type(kind):
    for order in "<>":
        value = (6).to_bytes(TYPE_SIZES[kind], "little" if order == "<" else "big").ljust(4, b"\0")
        content = exif(6, order)[:12] + struct.pack(order + "HI", kind, 1) + value + bytes(4)
        np.testing.assert_array_equal(decode(png_with_exif(content)), np.rot90(RGB, -1))


def xmp(orientation, form='tiff:Orientation="{}"'):
    text = form.format(orientation)
    inner = f"<rdf:Description>{text}</rdf:Description>" if "</" in text else f"<rdf:Description {text}/>"
    return f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF>{inner}</rdf:RDF></x:xmpmeta>'.encode()


def jpeg_with_xmp(content, data=None):
    data = JPEGS["baseline"] if data is None else data
    content = b"http://ns.adobe.com/xap/1.0/\0" + content
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content + data[2:]


def png_with_xmp(content, data=None):
    return with_chunks(chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + content), data=data)


def webp_with_xmp(content, **options):
    return encode(RGB, "WEBP", lossless=True, xmp=content, **options)


@pytest.mark.parametrize("orientation", TURNED)
def test_xmp_turns_where_exif_states_nothing(orientation):
    """The same rule for all formats."""
    content, expected = xmp(orientation), TURNED[orientation](RGB)
    photograph = decode(JPEGS["baseline"])
    np.testing.assert_array_equal(decode(jpeg_with_xmp(content)), TURNED[orientation](photograph))
    np.testing.assert_array_equal(decode(png_with_xmp(content)), expected)
    np.testing.assert_array_equal(decode(webp_with_xmp(content)), expected)
    np.testing.assert_array_equal(decode(encode(RGB, "TIFF", tiffinfo={700: content})), expected)
    if "avif" in ALL:
        plain, turned = decode(encode(RGB, "AVIF")), decode(encode(RGB, "AVIF", xmp=content))
        np.testing.assert_array_equal(turned, TURNED[orientation](plain))
    # EXIF comes first
    np.testing.assert_array_equal(
        decode(jpeg_with_xmp(content, jpeg_with_exif(exif(3, "<")))), photograph[::-1, ::-1]
    )
    np.testing.assert_array_equal(decode(png_with_xmp(content, png_with_exif(exif(3, "<")))), RGB[::-1, ::-1])
    np.testing.assert_array_equal(decode(webp_with_xmp(content, exif=exif(3, "<"))), RGB[::-1, ::-1])


@pytest.mark.parametrize("form", ["tiff:Orientation='{}'", "<tiff:Orientation>{}</tiff:Orientation>"])
def test_other_forms_of_xmp(form):
    np.testing.assert_array_equal(decode(png_with_xmp(xmp(6, form))), np.rot90(RGB, -1))
    for nothing in (0, 9, 12, "six"):
        np.testing.assert_array_equal(decode(png_with_xmp(xmp(nothing, form))), RGB)


def test_damaged_xmp_and_text_turn_nothing():
    for content in (b"", b"\xff" * 50, xmp(6)[:40]):
        np.testing.assert_array_equal(decode(png_with_xmp(content)), RGB)
        np.testing.assert_array_equal(decode(jpeg_with_xmp(content)), decode(JPEGS["baseline"]))
    for content in (b"", b"\nexif\n  8\nzz", b"\nexif\n  9\n49492", b"no lines"):
        for kind, start in ((b"tEXt", b""), (b"zTXt", b"\0"), (b"iTXt", b"\1\0\0\0")):
            text = chunk(kind, b"Raw profile type exif\0" + start + content)
            np.testing.assert_array_equal(decode(with_chunks(text)), RGB)


def test_fill_bytes_before_a_jpegs_segments():
    data = jpeg_with_exif(exif(6, "<"))
    np.testing.assert_array_equal(decode(data[:2] + b"\xff\xff" + data[2:]), decode(data))


# Side data of a PNG do not decide about its pixels.


def wrong_sum(name, content):
    return chunk(name, content)[:-4] + b"\0\1\2\3"


LONG = b"x" * 3_000_000
SIDE_CHUNKS = {
    **{
        f"{name.decode()} of a wrong sum": wrong_sum(name, content)
        for name, content in (
            *((b"tEXt", b"Comment\0hello"), (b"pHYs", bytes(9)), (b"iCCP", b"p\0\0" + zlib.compress(LONG))),
            *((b"eXIf", exif(6, "<")), (b"tRNS", bytes(6)), (b"quUx", b"?"), (b"acTL", bytes(8))),
            (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(6)),
        )
    },
    "iCCP of 3 MB": chunk(b"iCCP", b"p\0\0" + zlib.compress(LONG)),
    "iCCP of another compression": chunk(b"iCCP", b"p\0\7abc"),
    "zTXt of 3 MB": chunk(b"zTXt", b"Comment\0\0" + zlib.compress(LONG)),
    "zTXt of damaged data": chunk(b"zTXt", b"Raw profile type exif\0\0nothing"),
    "iTXt of 3 MB": chunk(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(LONG)),
    "80 MB of text": chunk(b"tEXt", b"Comment\0" + LONG) * 27,
    **{
        f"short {name}": chunk(name.encode(), b"\0")
        for name in ("pHYs", "cHRM", "gAMA", "sRGB", "acTL", "fcTL")
    },
    **{
        f"empty {name}": chunk(name.encode())
        for name in ("pHYs", "iCCP", "tEXt", "zTXt", "iTXt", "eXIf", "tRNS")
    },
}


@pytest.mark.parametrize("name", SIDE_CHUNKS)
def test_side_data_of_a_png_do_not_decide_about_its_pixels(name):
    for base, expected in (LOSSLESS["png"], LOSSLESS["png palette"], LOSSLESS["png grey 16 bits"]):
        np.testing.assert_array_equal(decode(with_chunks(SIDE_CHUNKS[name], data=base)), expected)
    data, expected = LOSSLESS["png"]
    np.testing.assert_array_equal(decode(data[:-12] + SIDE_CHUNKS[name] + data[-12:]), expected)
    with pytest.raises(DataError):
        decode(with_chunks(SIDE_CHUNKS[name])[:-60])


@pytest.mark.parametrize("name", [b"IHDR", b"PLTE"])
def test_a_size_or_palette_of_a_wrong_sum_is_refused(name):
    data = LOSSLESS["png palette"][0]
    start = data.index(name)
    end = start + 4 + int.from_bytes(data[start - 4 : start], "big")
    with pytest.raises(DataError, match=name.decode()):
        decode(data[:end] + b"\0\1\2\3" + data[end + 4 :])


def test_what_stands_between_pieces_of_pixels_is_left_out():
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in RGB))
    parts = chunk(b"IDAT", rows[:100]) + SIDE_CHUNKS["tEXt of a wrong sum"] + chunk(b"IDAT", rows[100:])
    data = LOSSLESS["png"][0]
    np.testing.assert_array_equal(decode(data[:33] + parts + chunk(b"IEND") + b"a trailer"), RGB)


# Grey values of more than 8 bits.


def tiff(pixels, bits, kind=1, photometric=1, data=None):
    """A grey TIFF of one strip."""
    data = pixels.tobytes() if data is None else data
    height, width = pixels.shape
    fields = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1)]
    fields += [(278, height), (279, len(data)), (339, kind)]
    entries = b"".join(struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, v) for tag, v in fields)
    data += bytes(len(data) % 2)
    start = struct.pack("<I", 8 + len(data))
    return b"II*\0" + start + data + struct.pack("<H", len(fields)) + entries + bytes(4)


def packed12(pixels):
    bits = np.unpackbits(pixels.astype(">u2").view(np.uint8).reshape(*pixels.shape, 2), axis=2)[..., 4:]
    return np.packbits(bits.reshape(len(pixels), -1), axis=1).tobytes()


@pytest.mark.parametrize("width", [64, 63])
def test_grey_of_12_bits_is_shifted_by_4(width):
    pixels = RANDOM.randint(0, 4096, (48, width)).astype(np.uint16)
    pixels[0, :2] = 0, 4095
    image = decode(tiff(pixels, 12, data=packed12(pixels)))
    np.testing.assert_array_equal(image, as_grey((pixels >> 4).astype(np.uint8)))
    assert image[0, 0, 0] == 0 and image[0, 1, 0] == 255


def test_grey_of_16_bits_whose_zero_is_white():
    expected = as_grey(255 - (GREY16 >> 8).astype(np.uint8))
    np.testing.assert_array_equal(decode(tiff(GREY16, 16, photometric=0)), expected)


def test_other_depths_of_grey():
    values = RANDOM.randint(0, 4096, (HEIGHT, WIDTH)).astype(np.uint16)
    header = b"P5 %d %d 4095\n" % (WIDTH, HEIGHT)
    np.testing.assert_allclose(decode(header + values.astype(">u2").tobytes())[..., 0], values / 16, atol=1)
    np.testing.assert_array_equal(decode(encode(GREY16, "JPEG2000"))[..., 0], GREY16 >> 8)
    big_endian = Image.frombytes("I;16B", (WIDTH, HEIGHT), GREY16.astype(">u2").tobytes())
    np.testing.assert_array_equal(decode(encode(big_endian, "TIFF"))[..., 0], GREY16 >> 8)


@pytest.mark.parametrize(
    ("pixels", "bits", "kind", "name"),
    [
        (GREY16.view(np.int16), 16, 2, "16-bit signed"),
        (GREY16.astype(np.uint32), 32, 1, "32-bit"),
        (GREY16.astype(np.int32), 32, 2, "32-bit signed"),
        (GREY16.astype(np.float32), 32, 3, "32-bit floating-point"),
    ],
)
def test_pixels_without_a_range_are_named_as_they_are(pixels, bits, kind, name):
    with pytest.raises(DataError, match=f"^{name} pixels"):
        decode(tiff(pixels, bits, kind))


def test_a_byte_behind_the_end_of_a_jpeg_2000_does_no_harm():
    data, expected = LOSSLESS["jpeg 2000"]
    np.testing.assert_array_equal(decode(data + b"\0"), expected)
    codestream = data[data.index(b"jp2c") + 4 :]
    np.testing.assert_array_equal(decode(codestream + b"\0"), expected)


def test_pixels_of_a_pfm_have_no_range():
    with pytest.raises(DataError, match="32-bit floating-point"):
        decode(b"Pf\n4 3\n-1.0\n" + bytes(48))


def test_a_large_image_is_converted_in_bands(monkeypatch):
    monkeypatch.setattr("ppcls.data.decode._BAND", 3 * WIDTH)
    for name in (
        "png",
        "png palette",
        "png grey 16 bits",
        "tiff grey 16 bits",
        "gif",
        "webp rgba",
        "tiff 1 bit",
    ):
        data, expected = LOSSLESS[name]
        np.testing.assert_array_equal(decode(data), expected)


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


# Files that are not read.

PROGRAMS = {
    "an error": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nnosuchoperator\n%%EOF\n",
    "no end": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n{} loop\n%%EOF\n",
    "valid": b"%!PS-Adobe-3.0 EPSF-3.0\r%%BoundingBox: 0 0 10 10\r%%EndComments\rshowpage\r%%EOF\r",
    "with a preview": b"\xc5\xd0\xd3\xc6"
    + struct.pack("<II", 32, 90)
    + bytes(20)
    + b"%!PS-Adobe-3.0 EPSF-3.0\n",
    "behind blanks": b"\n\n  %!PS-Adobe-3.0 EPSF-3.0\n",
}
OTHERS = {
    "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "JPEG or PNG"),
    "HEIC image": (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "JPEG or PNG"),
    "video": (b"\0\0\0\x18ftypisom\0\0\2\0isomiso2", "frames"),
    "JPEG XL": (b"\xff\x0a\xfa\x1f", "JPEG or PNG"),
    "JPEG XL image": (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG or PNG"),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "JPEG or PNG"),
    "SVG drawing": (b'\xef\xbb\xbf<?xml version="1.0"?>\n<!-- x -->\n<svg width="3"/>', "JPEG or PNG"),
    "PDF": (b"%PDF-1.7\n", "JPEG or PNG"),
    "HTML": (b"<!DOCTYPE html><html><body><svg/></body></html>", "download"),
    "web page": (b"\n <HTML><head><title>404", "download"),
    "XML": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "download"),
    "JSON": (b'{"error": "not found"}', "download"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "git lfs pull"),
    "Photoshop": (b"8BPS\0\1", "JPEG or PNG"),
    "ICO": (b"\0\0\1\0\1\0\x20\x20", "JPEG or PNG"),
    "archive": (b"PK\3\4\x14\0", "unpack"),
    "NumPy": (b"\x93NUMPY\1\0", "PNG"),
    "zeros": (bytes(5000), "again"),
}


def other_formats():
    return sorted(set(Image.OPEN) - set(read_formats()))


def test_only_the_formats_of_the_docs_are_opened(monkeypatch):
    assert set(read_formats()) <= set(Image.OPEN) and len(read_formats()) >= 9
    assert {"JPEG", "PNG", "TIFF", "WEBP", "GIF"} <= set(read_formats()) and "EPS" in other_formats()
    documented = (ROOT / "docs" / "usage.md").read_text(encoding="utf-8")
    for name in read_formats():
        assert {"JPEG2000": "JPEG 2000", "WEBP": "WebP"}.get(name, name) in documented
    opened = []
    for name in other_formats():
        reader = (lambda file, path, name=name: opened.append(name)), (lambda prefix: True)
        monkeypatch.setitem(Image.OPEN, name, reader)
    for data in (
        *PROGRAMS.values(),
        *(data for data, _ in OTHERS.values()),
        b"anything",
        b"\xff\xd8\xffanything",
    ):
        with pytest.raises(DataError):
            decode(data)
        assert find_jpeg_damage(data) is None or data.startswith(b"\xff\xd8")
    monkeypatch.setattr("ppcls.data.decode.IS_LIMITED", False)
    with pytest.raises(DataError):
        decode(b"\xff\xd8\xffanything")
    assert not opened


@pytest.mark.skipif(os.name == "nt", reason="the program is a shell's")
def test_a_program_is_not_run(tmp_path):
    """With a Ghostscript that says so if it is."""
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path / 'run'}\n")
    (tmp_path / "gs").chmod(0o755)
    code = f"""
import io
from PIL import Image
from ppcls.data.decode import decode
from ppcls.errors import DataError
for data in {list(PROGRAMS.values())}:
    try:
        decode(data)
    except DataError as error:
        assert "PostScript" in str(error)
    else:
        raise SystemExit("it was read")
"""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
    }
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", OTHERS)
def test_another_kind_of_file_is_named_with_what_to_do(name):
    data, cure = OTHERS[name]
    with pytest.raises(DataError) as caught:
        decode(data)
    assert name in str(caught.value) and cure in str(caught.value)


def test_avif_that_this_pillow_does_not_read(monkeypatch):
    monkeypatch.setattr("ppcls.data.formats.read_formats", lambda: ("JPEG", "PNG"))
    for data in (b"\0\0\0\x20ftypavif\0\0\0\0avifmif1", b"\0\0\0\x20ftypmif1\0\0\0\0mif1avif"):
        with pytest.raises(DataError, match="pillow>=11"):
            decode(data)


@pytest.mark.parametrize(
    ("data", "name"),
    [(LOSSLESS["png"][0][:20], "PNG"), (LOSSLESS["gif"][0][:9], "GIF"), (b"\xff\xd8\xff\xdb\0", "JPEG")],
)
def test_a_damaged_beginning_names_the_format(data, name):
    with pytest.raises(DataError, match=name):
        decode(data)


CASES = ROOT.parent / "shared" / "cases" / "make_image_cases.py"


@pytest.mark.skipif(not CASES.is_file(), reason=f"there is no {CASES}")
def test_the_files_of_users_reports(tmp_path):
    subprocess.run([sys.executable, str(CASES), str(tmp_path)], check=True, capture_output=True)
    expected = json.loads((tmp_path / "expected.json").read_text(encoding="utf-8"))
    assert len(expected) >= 6
    for name, what in expected.items():
        data = (tmp_path / name).read_bytes()
        if what == "refuse":
            with pytest.raises(DataError):
                decode(data)
        else:
            np.testing.assert_array_equal(decode(data), np.load(tmp_path / f"{name}.npy"), err_msg=name)


# Damaged files.


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (AttributeError("no such thing"), "no such thing"),
        (subprocess.CalledProcessError(1, ["gs"]), "gs"),
        (RecursionError(), "RecursionError"),
        (MemoryError(), f"out of memory at {WIDTH} x {HEIGHT}"),
    ],
)
def test_all_exceptions_of_pillow_become_a_data_error(monkeypatch, error, reason):
    def load(image):
        raise error

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    with pytest.raises(DataError, match=reason):
        decode(LOSSLESS["png"][0])
    if not isinstance(error, MemoryError):
        monkeypatch.setattr("PIL.Image.open", lambda *args, **options: load(None))
        with pytest.raises(DataError, match=reason):
            decode(LOSSLESS["bmp"][0])


def test_too_little_memory_for_the_pixels(monkeypatch):
    def empty(*args):
        raise MemoryError

    monkeypatch.setattr("ppcls.data.decode.np.empty", empty)
    with pytest.raises(DataError, match=f"out of memory at {WIDTH} x {HEIGHT}"):
        decode(LOSSLESS["webp"][0])


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_too_little_memory_is_named_so():
    """In a process of little memory."""
    image = encode(np.zeros((9000, 9000, 3), np.uint8), "PNG", compress_level=1)
    code = f"""
import resource, sys
import cv2, numpy
from ppcls.data.decode import decode
from ppcls.errors import DataError
data = sys.stdin.buffer.read()
decode(bytes.fromhex({LOSSLESS["png"][0].hex()!r}))
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 200_000_000, -1))
try:
    decode(data)
except DataError as error:
    print(error)
"""
    run = subprocess.run(
        [sys.executable, "-c", code],
        input=image,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=True,
    )
    assert run.stdout == b"out of memory at 9000 x 9000 pixels\n"


@pytest.mark.skipif(sys.platform != "linux", reason="the file with the memory's peak is Linux's")
def test_a_large_image_is_in_memory_twice():
    """Once in Pillow, with four bytes a pixel, and once as the result."""
    image = encode(np.zeros((6000, 6000, 3), np.uint8), "PNG", compress_level=1)
    code = f"""
import re, sys
from ppcls.data.decode import decode
def peak():
    return 1024 * int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1])
data = sys.stdin.buffer.read()
decode(bytes.fromhex({LOSSLESS["png"][0].hex()!r}))
before = peak()
pixels = decode(data)
print((peak() - before) / pixels.nbytes)
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-c", code], input=image, env=environment, capture_output=True, check=True
    )
    assert 2 < float(run.stdout) < 3  # with two more copies it would be 6


def corrupt(jpeg):
    """The photograph with a marker that ends its pixels in the middle, and more behind it."""
    middle = len(jpeg) // 2
    return jpeg[:middle] + b"\xff\xc4\0\1" + jpeg[middle + 4 :]


def test_corrupt_pixels_of_a_jpeg_are_found():
    data = PHOTOGRAPHS["baseline"]
    assert find_jpeg_damage(data) is None and find_jpeg_damage(LOSSLESS["png"][0]) is None
    assert decode(corrupt(data)).shape == NOISE.shape  # what OpenCV passes over
    assert find_jpeg_damage(corrupt(data))


def test_side_data_of_a_jpeg_are_not_its_pixels():
    """Pillow refuses some."""
    data = PHOTOGRAPHS["baseline"]
    for marker, content in (
        (0xE2, b"MPF\0junk"),
        (0xE1, b"Exif\0\0junk"),
        (0xED, b"Photoshop 3.0\x008BIM\4"),
        (0xE0, b"JFIF"),
        (0xE2, b"ICC_PROFILE\0"),
        (0xEE, b"Adobe"),
    ):
        odd = data[:2] + struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content + data[2:]
        assert find_jpeg_damage(odd) is None
        np.testing.assert_array_equal(decode(odd), decode(data))


def test_warnings_of_pillow_name_the_image(monkeypatch):
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", HEIGHT * WIDTH - 1)  # it refuses from twice as many on
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for where in ("a/b.png (list.txt, line 3)", ""):
            np.testing.assert_array_equal(decode(LOSSLESS["png"][0], where), RGB)
    named, unnamed = dict.fromkeys(str(warning.message) for warning in caught)  # old ones warn twice
    assert named == f"a/b.png (list.txt, line 3): {unnamed}" and str(HEIGHT * WIDTH) in unnamed


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
