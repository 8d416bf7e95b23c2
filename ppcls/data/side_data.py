"""Separate an image file's side data from its pixels: text, profiles, EXIF and XMP. Damaged side data must
not decide whether the pixels are read.

One rule for all formats gives the orientation. EXIF states it in tag 0x112, a PNG also in the text "Raw
profile type exif". Where none of them states it, XMP does. A damaged one states nothing.
"""

import re
import struct
import zlib
from binascii import unhexlify
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from ppcls.data.opencv import cv2
from ppcls.errors import DataError

JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_ORIENTATION, _XMP = 0x112, 700  # tags
_INTEGERS = {1: 1, 3: 2, 4: 4, 6: 1, 8: 2, 9: 4}  # TIFF's types of integers: bytes
_XMP_ORIENTATION = re.compile(rb"""tiff:Orientation\s*(?:=\s*["']|>)\s*([1-8])\s*["'<]""")
# Tags of a TIFF file that describe its pixels: size, bits, compression, palette, strips, tiles, samples.
_PIXEL_TAGS = {
    *(*range(254, 260), 262, 266, 273, *range(277, 280), 284, 292, 293, 317, 320, *range(322, 326)),
    *(332, 334, 338, 339, 347, *range(512, 522), *range(529, 533), 50674),
}
# The entry of an AVIF's list of items that names its EXIF data. Fields of its own state its orientation.
# Pillow reports them as EXIF's: for this it writes EXIF data back, and fails on odd tags.
_AVIF_EXIF = re.compile(rb"(infe\x02.{7}|infe\x03.{9})Exif", re.DOTALL)
_LONGEST_TEXT = 1 << 20  # bytes of a PNG's compressed text that are looked at
# OpenCV's code for a flip, after the exchange of rows and columns that orientations from 5 on begin with.
_FLIPS = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}


class Parts(NamedTuple):
    """Parts of an image file. pixels: a file of the same format with the pixels alone."""

    pixels: bytes
    exifs: list[bytes]
    xmps: list[bytes]


def separate(data: bytes) -> Parts:
    """Return a file's parts. Formats other than JPEG, PNG, TIFF and AVIF stay as they are.
    Raises DataError for a PNG whose size or palette is damaged."""
    if data.startswith(JPEG):
        return _separate_jpeg(data)
    if data.startswith(PNG):
        return _separate_png(data)
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return _separate_tiff(data)
    if data[4:8] == b"ftyp":
        return Parts(_AVIF_EXIF.sub(rb"\1none", data, count=1), [], [])
    return Parts(data, [], [])


def find_orientation(exifs: Iterable[bytes], xmps: Iterable[bytes]) -> int:
    """Return the orientation, 1 to 8, that these data state; 1 where they state none."""
    for exif in exifs:
        stated = _exif_orientation(exif)
        if stated is not None:
            return stated if 1 <= stated <= 8 else 1
    for xmp in xmps:
        found = _XMP_ORIENTATION.search(xmp)
        if found:
            return int(found[1])
    return 1


def turn_upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turn uint8 [H, W, 3] as EXIF's orientation, 1 to 8, asks."""
    if orientation >= 5:
        image = cv2.transpose(image)
    return cv2.flip(image, _FLIPS[orientation]) if orientation in _FLIPS else image


def jpeg_orientation(jpeg: bytes) -> int:
    """Return the orientation that a JPEG file states."""
    return find_orientation(*_jpeg_metadata(jpeg))


def jpeg_segments(jpeg: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield the marker, start and end of each segment before a JPEG's pixel data, and of the first one of
    the pixel data (0xDA)."""
    start = 2
    while jpeg[start : start + 1] == b"\xff" and start + 4 <= len(jpeg):
        marker = jpeg[start + 1]
        if marker == 0xFF:  # a fill byte
            start += 1
            continue
        end = start + 2 + (jpeg[start + 2] << 8 | jpeg[start + 3])
        yield marker, start, end
        if marker == 0xDA:
            return
        start = end


def _jpeg_metadata(jpeg: bytes) -> tuple[list[bytes], list[bytes]]:
    exifs, xmps = [], []
    for marker, start, end in jpeg_segments(jpeg):
        if marker == 0xE1:
            content = jpeg[start + 4 : end]
            if content.startswith(b"Exif\0"):
                exifs.append(content)
            elif content.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
                xmps.append(content)
    return exifs, xmps


def _separate_jpeg(jpeg: bytes) -> Parts:
    kept, place = [jpeg[:2]], 2
    for marker, start, end in jpeg_segments(jpeg):
        states_colours = marker == 0xEE and end - start >= 16  # Adobe's, if it is whole
        if (0xE0 <= marker <= 0xEF and not states_colours) or marker == 0xFE:
            kept.append(jpeg[place:start])
            place = end
    return Parts(b"".join([*kept, jpeg[place:]]), *_jpeg_metadata(jpeg))


def _separate_png(png: bytes) -> Parts:
    """Keep the chunks of the size, the palette, the pixels (of an animation's first frame) and the end."""
    view = memoryview(png)
    kept, exifs, profiles, xmps = [view[:8]], [], [], []
    start = 8
    while start + 8 <= len(png):
        name = png[start + 4 : start + 8]
        end = start + 12 + int.from_bytes(png[start : start + 4], "big")
        is_kept = name in (b"IHDR", b"PLTE", b"IDAT", b"IEND")
        if name in (b"IHDR", b"PLTE", b"eXIf", b"tEXt", b"zTXt", b"iTXt"):
            is_whole = zlib.crc32(view[start + 4 : end - 4]) == int.from_bytes(png[end - 4 : end], "big")
            if is_kept and not is_whole:
                raise DataError(f"the PNG file is damaged: its chunk {name.decode()} has a wrong checksum")
            content = png[start + 8 : end - 4] if is_whole and not is_kept else b""
            if name == b"eXIf":
                exifs.append(content)
            elif content.startswith(b"Raw profile type exif\0"):
                profiles.append(_read_profile(_png_text(name, content)))
            elif content.startswith(b"XML:com.adobe.xmp\0"):
                xmps.append(_png_text(name, content))
        if is_kept:
            kept.append(view[start:end])
        if name == b"IEND":
            break
        start = end
    return Parts(b"".join(kept), exifs + profiles, xmps)


def _png_text(name: bytes, content: bytes) -> bytes:
    """Return the text of a PNG's chunk tEXt, zTXt or iTXt; nothing if it is damaged."""
    text = content.partition(b"\0")[2]
    is_compressed = name == b"zTXt" or (name == b"iTXt" and text[:1] == b"\1")
    if name == b"zTXt":
        text = text[1:]
    elif name == b"iTXt":
        text = text[2:].split(b"\0", 2)[-1]
    try:
        return zlib.decompressobj().decompress(text, _LONGEST_TEXT) if is_compressed else text
    except zlib.error:
        return b""


def _read_profile(text: bytes) -> bytes:
    """Return the bytes of ImageMagick's text form of EXIF: its name, length and hexadecimal digits."""
    digits = b"".join(text.split(b"\n")[3:])
    try:
        return unhexlify(digits[: len(digits) // 2 * 2])
    except ValueError:
        return b""


class _Layout(NamedTuple):
    """Layout of the first table of tags of a TIFF file, or of EXIF data, which have the same form."""

    first: int  # place of the table's offset
    entries: str  # struct's code of the number of entries
    offset: str  # struct's code of offsets and of the number of values
    order: str  # of bytes, "<" or ">"

    def size(self) -> int:
        """Return the bytes of an entry: tag, type, number of values, values or their offset."""
        return 4 + 2 * struct.calcsize(self.offset)


def _layout(data: bytes) -> _Layout | None:
    """Return a file's layout, classic or BigTIFF; None where these are not a TIFF's first bytes."""
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None or data[2:4] not in (b"*\0", b"\0*", b"+\0", b"\0+"):
        return None
    return _Layout(8, "Q", "Q", order) if b"+" in data[2:4] else _Layout(4, "H", "I", order)


def _entries(data: bytes, layout: _Layout) -> tuple[int, dict[int, bytes]]:
    """Return the table's place, and its entries by their tag, as far as the table is whole."""
    entries: dict[int, bytes] = {}
    try:
        (table,) = struct.unpack_from(layout.order + layout.offset, data, layout.first)
        (count,) = struct.unpack_from(layout.order + layout.entries, data, table)
    except (struct.error, OverflowError):
        return 0, entries
    start, size = table + struct.calcsize(layout.entries), layout.size()
    for place in range(start, min(start + min(count, 0xFFFF) * size, len(data) - size + 1), size):
        entry = data[place : place + size]
        entries.setdefault(struct.unpack_from(layout.order + "H", entry)[0], entry)
    return table, entries


def _exif_orientation(exif: bytes) -> int | None:
    """Return the value of tag 0x112, None if EXIF data are damaged or do not state it."""
    while exif.startswith(b"Exif\0"):
        exif = exif[6:]
    layout = _layout(exif)
    entry = _entries(exif, layout)[1].get(_ORIENTATION) if layout else None
    if layout is None or entry is None:
        return None
    kind, count = struct.unpack_from(layout.order + "H" + layout.offset, entry, 2)
    size = _INTEGERS.get(kind)
    if size is None or count != 1:
        return None
    start = layout.size() - struct.calcsize(layout.offset)
    return int.from_bytes(entry[start : start + size], "little" if layout.order == "<" else "big")


def _separate_tiff(tiff: bytes) -> Parts:
    """Keep in the first picture's table the tags that describe its pixels. All else stays in its place."""
    layout = _layout(tiff)
    if layout is None:
        return Parts(tiff, [], [])
    place, entries = _entries(tiff, layout)
    kept = [entry for tag, entry in entries.items() if tag in _PIXEL_TAGS]
    if not kept:
        return Parts(tiff, [], [])
    count = struct.pack(layout.order + layout.entries, len(kept))
    table = b"".join([count, *kept, bytes(struct.calcsize(layout.offset))])[: len(tiff) - place]
    pixels = b"".join([tiff[:place], table, memoryview(tiff)[place + len(table) :]])
    return Parts(pixels, [tiff], _tiff_xmp(tiff, layout, entries))


def _tiff_xmp(tiff: bytes, layout: _Layout, entries: dict[int, bytes]) -> list[bytes]:
    if _XMP not in entries:
        return []
    count, offset = struct.unpack_from(layout.order + 2 * layout.offset, entries[_XMP], 4)
    return [tiff[offset : offset + count]]
