"""Formats of image files that are read, and names of other files that are met in their place."""

import re
from functools import cache

from PIL import Image

# All that Pillow may open. Its other readers are for rare formats; the one for PostScript runs programs.
# TGA, which has no signature, is the last.
_READ = ("JPEG", "PNG", "BMP", "DIB", "TIFF", "WEBP", "GIF", "PPM", "JPEG2000", "AVIF", "MPO", "TGA")
_CONVERT = "convert it to JPEG or PNG"
_LOOKED_AT = 1024  # bytes at a file's beginning

_AVIF = "an AVIF image, which this Pillow does not read"
_OTHERS = (
    (rb"....ftyp(he[iv][cxms]|m[is]f1(?!.{0,40}avi[fs]))", "an HEIC image", _CONVERT),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "a JPEG XL image", _CONVERT),
    (rb"....ftyp(m[is]f1.{0,40})?avi[fs]", _AVIF, "pip install -U 'pillow>=11.3', or " + _CONVERT),
    (rb"....ftyp(?!(m[is]f1.{0,40})?avi[fs])|\x1aE\xdf\xa3|RIFF....AVI ", "a video", "save its frames"),
    (rb"\x04?\s*%!|\xc5\xd0\xd3\xc6", "a PostScript program, which is never run", _CONVERT),
    (rb"\s*%PDF", "a PDF document", _CONVERT),
    (rb"version https://git-lfs", "a Git LFS pointer, not the file itself", "fetch the file: git lfs pull"),
    (rb"(?i)\s*(<[!?].*?)?<(!doctype html|html|head|body)", "a web page (HTML)", "download the image again"),
    (rb"(?i)\s*(<[!?].*?)?<(!doctype )?svg", "an SVG drawing", _CONVERT),
    (rb"\s*<(\?xml|!|[a-zA-Z]+>)", "an XML text", "download the image again"),
    (rb'\s*\{\s*"', "a JSON text", "download the image again"),
    (rb"8BPS", "a Photoshop document (PSD)", _CONVERT),
    (rb"\x00\x00[\x01\x02]\x00[^\x00]\x00", "an icon or a cursor (ICO)", _CONVERT),
    (rb"\x1f\x8b|PK\x03\x04|7z\xbc\xaf|Rar!|BZh|\xfd7zXZ", "an archive", "unpack it"),
    (rb"\x93NUMPY", "a NumPy array", "save it as PNG"),
    (rb"\0+$", "a file of zeros, not an image", "download or copy it again"),
)
_OTHER = [(re.compile(pattern, re.DOTALL), name, cure) for pattern, name, cure in _OTHERS]
_SIGNATURES = (
    *((b"\xff\xd8", "JPEG"), (b"\x89PNG", "PNG"), (b"GIF8", "GIF"), (b"BM", "BMP"), (b"RIFF", "WebP")),
    *((b"II*\0", "TIFF"), (b"MM\0*", "TIFF"), (b"\0\0\0\x0cjP", "JPEG 2000")),
)


@cache
def read_formats() -> tuple[str, ...]:
    """Return Pillow's names of the formats that are read, as far as this Pillow knows them."""
    Image.init()
    return tuple(name for name in _READ if name in Image.OPEN)


def name_other(data: bytes) -> str | None:
    """Return what a file is and what to do, where its first bytes are those of a format that is not read."""
    start = data[:_LOOKED_AT].removeprefix(b"\xef\xbb\xbf")
    for pattern, name, cure in _OTHER:
        if pattern.match(start) and not (name == _AVIF and "AVIF" in read_formats()):
            return f"it is {name}; {cure}"
    return None


def name_unread(data: bytes) -> str:
    """Return what to say of a file that Pillow does not open."""
    for signature, name in _SIGNATURES:
        if data.startswith(signature):
            return f"the {name} image is damaged, or of a kind that is not read"
    return f"not an image, or of a format that is not read (these are: {', '.join(read_formats())})"
