"""Reads files of weights from anywhere: torch, Paddle, safetensors. Nothing in them is run.

What is in a file is checked when it is opened; the tensors are read one at a time, when asked for. Torch and
Paddle files stay mapped meanwhile, so don't cut or overwrite them.
"""

import mmap
from pathlib import Path
from typing import Any

from ppcls.errors import WeightsError
from ppcls.weights.readers.entries import Entry, Refused
from ppcls.weights.readers.pdparams import read_pdparams
from ppcls.weights.readers.safetensors import read_safetensors
from ppcls.weights.readers.torch import is_stream, read_stream, read_zip

__all__ = ["Entry", "read_file"]

_UNPACK = "Unpack it, and take the file of weights inside."
_NETWORK = "Take the file of weights that it was made from."
# What people end up with instead of weights: first bytes, what it is, what to do.
_OTHERS = (
    (b"<", "a web page or XML", "Download the file itself, not the page about it."),
    (b"version https://git-lfs", "a Git LFS pointer, which stands for the file", "Run git lfs pull."),
    (b"\x1f\x8b", "a gzip archive", _UNPACK),
    (b"BZh", "a bzip2 archive", _UNPACK),
    (b"\xfd7zXZ", "an xz archive", _UNPACK),
    (b"\x89HDF", "an HDF5 file, as of Keras", "Take the weights in another format."),
    (b"\x93NUMPY", "a single numpy array", "Take the whole state dict."),
    (b"{", "JSON text, as of an exported program or a server's error", _NETWORK),
    (b"\0" * 16, "the parameters of an exported program (.pdiparams)", _NETWORK),
    (b"\x08", "a protobuf message, as of an ONNX network", _NETWORK),
    (b"\x0a", "a protobuf message, as of an exported program (.pdmodel)", _NETWORK),
)


def read_file(path: Path) -> tuple[str, dict[str, Entry], dict[str, Any]]:
    """The kind of file ("safetensors", "torch" or "pdparams"), its tensors by key, and facts.

    The kind is told by the content, never by the name. Facts: a safetensors file's metadata; of the others
    "under" (the key that the weights lay under, or None), "prefix" (taken off all keys, or "") and "others"
    (the keys of what was no weight). checkpoints.weights_of has the rule. Whether values are finite and keys
    are the right ones is the caller's to check.
    Raises WeightsError for any other file, a broken one, and one that asks for more than weights need.
    """
    if not path.is_file():
        raise WeightsError(f"There is no file {path}. Expected: a file of weights.")
    try:
        with path.open("rb") as file:
            if not file.read(1):
                raise Refused("it is empty")
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            head = bytes(data[:512])
            if head[:4] == b"PK\x03\x04":
                return "torch", *read_zip(file, data)
            # The header's length in 8 bytes, the upper 4 empty, and the header, which is JSON. Before the
            # pickles, because a length may begin as they do.
            if head[4:9] == b"\0\0\0\0{":
                return "safetensors", *read_safetensors(path)
            if is_stream(head):
                return "torch", *read_stream(data)
            if head[:1] == b"\x80" and head[1:2] <= b"\x05":
                return "pdparams", *read_pdparams(data)
            raise _unknown(head)
    except Refused as error:
        raise WeightsError(f"{path} cannot be read as weights: {error}") from error
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}.") from error


def _unknown(head: bytes) -> Refused:
    for start, what, cure in _OTHERS:
        if head.lstrip().startswith(start) if start == b"<" else head.startswith(start):
            return Refused(f"it is {what}", cure)
    if head[257:262] == b"ustar":
        return Refused("it is a tar archive", _UNPACK)
    return Refused(f"it is neither safetensors nor a file of torch or Paddle. It begins with {head[:16]!r}")
