"""File bytes to pixels: every format against the pixels that went in, and damage of every kind."""

import io
import json
import os
import struct
import subprocess
import sys
import warnings
import zlib

import numpy as np
import pytest
from encoded import (
    ALL,
    CMYK,
    GREY16,
    HEIGHT,
    JPEGS,
    LOSSLESS,
    RANDOM,
    RGB,
    WIDTH,
    as_grey,
    bmp,
    encode,
    png,
)
from helpers import ROOT
from PIL import Image

from ppcls.data.decode import decode, find_jpeg_damage
from ppcls.data.opencv import MAX_PIXELS
from ppcls.errors import DataError

pytestmark = pytest.mark.filterwarnings("ignore:::PIL")  # Pillow warns of some damage too


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


# Damaged files.

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
