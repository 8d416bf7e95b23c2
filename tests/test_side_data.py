"""Data beside the pixels: EXIF and XMP turn an image, and no other data decide about it."""

import struct
import zlib

import numpy as np
import pytest
from encoded import ALL, GREY16, HEIGHT, JPEGS, LOSSLESS, RGB, WIDTH, as_grey, chunk, encode

from ppcls.data.decode import decode
from ppcls.errors import DataError

pytestmark = pytest.mark.filterwarnings("ignore:::PIL")  # Pillow warns of some damage too

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
