"""Readers for files of weights from torch, Paddle and safetensors. They run nothing that a file holds.

A file is checked when it is opened; each tensor is read when it is requested. Torch and Paddle files stay
mapped into memory until then: do not truncate or overwrite them.
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
# Other files that users give by mistake: first bytes, kind of file, what to do.
_OTHERS = (
    (b"<", "a web page or XML", "Download the file itself, not the page about it."),
    (b"version https://git-lfs", "a Git LFS pointer in place of the file", "Run git lfs pull."),
    (b"\x1f\x8b", "a gzip archive", _UNPACK),
    (b"BZh", "a bzip2 archive", _UNPACK),
    (b"\xfd7zXZ", "an xz archive", _UNPACK),
    (b"\x89HDF", "an HDF5 file, such as Keras writes", "Take the weights in another format."),
    (b"\x93NUMPY", "a single numpy array", "Take the whole state dict."),
    (b"{", "JSON text, such as an exported program or a server's error", _NETWORK),
    (b"\0" * 16, "the parameters of an exported program (.pdiparams)", _NETWORK),
    (b"\x08", "a protobuf message, such as an ONNX network", _NETWORK),
    (b"\x0a", "a protobuf message, such as an exported program (.pdmodel)", _NETWORK),
)


def read_file(path: Path) -> tuple[str, dict[str, Entry], dict[str, Any]]:
    """Return the kind of file ("safetensors", "torch" or "pdparams"), its tensors by key, and its metadata.

    The kind follows from the content, never from the name. Metadata: for safetensors the file's own; for
    other files that of checkpoints.tensors_of, which also joins the keys of nested dictionaries by "/". The
    caller checks that the keys are the expected ones and the values finite.
    Raises WeightsError for any other file, a broken one, and one that needs more than weights do.
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
            # The length of the header in 8 bytes, the upper 4 zero, then the header in JSON. Tested before
            # the pickles, because a length may begin with the same bytes as they do.
            if head[4:9] == b"\0\0\0\0{":
                return "safetensors", *read_safetensors(path, data)
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
