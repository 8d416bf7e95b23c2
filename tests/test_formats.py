"""Formats that are read, and files of other kinds, which are named."""

import os
import struct
import subprocess
import sys

import pytest
from encoded import LOSSLESS
from helpers import ROOT
from PIL import Image

from ppcls.data.decode import decode, find_jpeg_damage
from ppcls.data.formats import read_formats
from ppcls.errors import DataError

pytestmark = pytest.mark.filterwarnings("ignore:::PIL")  # Pillow warns of some damage too

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
