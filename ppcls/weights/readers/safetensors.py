"""Reader for safetensors, through their library, one tensor at a time."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ppcls.errors import WeightsError
from ppcls.weights.readers.entries import AGAIN, Entry, Refused

# BF16 and the 8-bit floats are left out: the library returns them in numpy only if ml_dtypes is installed.
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


def read_safetensors(path: Path) -> tuple[dict[str, Entry], dict[str, Any]]:
    """Return entries by key, and the file's metadata. Raises Refused."""
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
        for key in file.keys():
            piece = file.get_slice(key)
            dtype = _DTYPES.get(piece.get_dtype())
            if dtype is None:
                raise Refused(
                    f"{key[:80]} has dtype {piece.get_dtype()}; expected: {', '.join(_DTYPES)}",
                    "Convert it to F32.",
                )
            entries[key] = Entry(tuple(piece.get_shape()), dtype, reader(key))
        return entries, dict(file.metadata() or {})
    except SafetensorError as error:
        raise Refused(f"it is not a complete safetensors file: {error}") from error
