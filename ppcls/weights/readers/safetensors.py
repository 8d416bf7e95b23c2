"""Reader for safetensors, through their library, one tensor at a time."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ppcls.errors import WeightsError
from ppcls.weights.readers.entries import AGAIN, Entry, Refused, mapped_entry, strides_of

# The 8-bit floats are left out: the library returns them in numpy only if ml_dtypes is installed. So it does
# with BF16, which is therefore read from the mapped file.
_DTYPES: dict[str, np.dtype] = {
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "I8": np.dtype("i1"),
    "I16": np.dtype("<i2"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}


def read_safetensors(path: Path, data: memoryview) -> tuple[dict[str, Entry], dict[str, Any]]:
    """Return entries by key, and the file's metadata. data: the same file, mapped into memory. Raises
    Refused."""
    from safetensors import SafetensorError, safe_open

    def reader(key: str) -> Callable[[], np.ndarray]:
        def read() -> np.ndarray:
            try:
                return file.get_tensor(key)
            except SafetensorError as error:
                raise WeightsError(f"{path}: {key} cannot be read: {error}. {AGAIN}") from error

        return read

    entries = {}
    try:
        # It stays open: the entries read from it later.
        file = safe_open(path, framework="numpy")
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(bytes(data[8:start]))  # the library has checked it
        for key in file.keys():
            piece = file.get_slice(key)
            dtype = _DTYPES.get(piece.get_dtype())
            if piece.get_dtype() == "BF16":
                first, end = (start + offset for offset in header[key]["data_offsets"])
                shape = tuple(piece.get_shape())
                entries[key] = mapped_entry(
                    data[first:end], np.dtype("<u2"), shape, strides_of(shape), bfloat16=True
                )
                continue
            if dtype is None:
                raise Refused(
                    f"{key[:80]} has dtype {piece.get_dtype()}; expected: BF16, {', '.join(_DTYPES)}",
                    "Convert it to F32.",
                )
            entries[key] = Entry(tuple(piece.get_shape()), dtype, reader(key))
        return entries, dict(file.metadata() or {})
    except SafetensorError as error:
        raise Refused(f"it is not a complete safetensors file: {error}") from error
