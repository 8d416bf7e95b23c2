"""The Open Inference Protocol, version 2, with its extensions for binary tensors and for classification: what
a request's bytes ask for, and the bytes of the answer.

Sources: kserve/open-inference-protocol, specification/protocol/inference_rest.md; Triton,
docs/protocol/extension_binary_data.md and extension_classification.md.
"""

import contextlib
import json
import math
import struct
from base64 import b64decode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")
VERSION = "1"  # of each model
HEADER_LENGTH = "inference-header-content-length"
MAX_JSON = 4 << 20  # bytes; to read more numbers as text would stop all other requests for too long
MAX_SIZE = 2**31 - 1  # of a tensor's axis
MAX_TIMEOUT = 10**12  # microseconds; JSON's numbers have no limit
DATATYPES = {"image": "BYTES", "x": "FP32"}


class RequestError(Exception):
    """A request that is answered with an error. status: HTTP's. headers: further ones of the answer."""

    def __init__(self, status: int, reason: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(reason)
        self.status, self.headers = status, dict(headers or {})


@dataclass(frozen=True)
class Tensor:
    """Name, type and shape of an input or output, -1 for any number."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}


INPUTS = (Tensor("image", "BYTES", (-1,)), Tensor("x", "FP32", (-1, 3, -1, -1)))


@dataclass(frozen=True)
class Requested:
    """A requested output. classes: how many of the highest values, as "value:index:label"; 0: all values."""

    name: str
    is_binary: bool = False
    classes: int = 0


@dataclass(frozen=True)
class InferRequest:
    """A request for inference. inputs: image files, or normalised images float32 [N, 3, H, W]. timeout:
    seconds, None for the server's own."""

    id: str | None
    inputs: Sequence[bytes] | np.ndarray
    outputs: tuple[Requested, ...]
    timeout: float | None


def parse_infer(
    body: bytes, header_length: str | None, outputs: Sequence[str], max_images: int
) -> InferRequest:
    """Read a request for inference.

    header_length: the header Inference-Header-Content-Length, the bytes of `body` that are JSON. outputs: the
    model's; the first one is the default. Raises RequestError.
    """
    size = len(body)
    if header_length is not None:
        is_number = header_length.isascii() and header_length.isdecimal() and len(header_length) <= 18
        if not is_number or int(header_length) > size:
            raise RequestError(
                400, f"Inference-Header-Content-Length must be 0 to {size}. Received: {header_length[:40]}"
            )
        size = int(header_length)
    if size > MAX_JSON:
        raise RequestError(
            413,
            f"The JSON of a request may have {MAX_JSON} bytes. Received: {size}. Send binary tensors.",
        )
    request = _parse_json(body[:size])
    parameters = _get(request, "parameters", dict, {}, "the request")
    inputs = _parse_inputs(request, memoryview(body)[size:], max_images)
    is_binary = _get(parameters, "binary_data_output", bool, False, "parameters")
    listed = _get(request, "outputs", list, [], "the request") or [{"name": outputs[0]}]
    requested = tuple(_parse_output(output, outputs, is_binary) for output in listed)
    names = [output.name for output in requested]
    if len(set(names)) < len(names):
        raise RequestError(400, f"An output is requested twice. Received: {', '.join(names)[:200]}")
    timeout = _get(parameters, "timeout", int, 0, "parameters")  # microseconds, 0 for none
    return InferRequest(
        id=_get(request, "id", str, None, "the request"),
        inputs=inputs,
        outputs=requested,
        timeout=min(timeout, MAX_TIMEOUT) / 1e6 if timeout > 0 else None,
    )


def encode_infer(
    request: InferRequest, model: str, values: Mapping[str, np.ndarray], labels: Sequence[str] | None
) -> tuple[bytes, int | None]:
    """Return the body of an answer, and how many of its bytes are JSON if tensors follow it.

    values: each requested output, float32 [N, C]. Raises RequestError for values that are not finite, which
    JSON does not have.
    """
    described, tensors = [], []
    for output in request.outputs:
        array = values[output.name]
        if not np.isfinite(array).all():
            raise RequestError(400, f"The output {output.name} of this input is not finite.")
        entry: dict[str, Any] = {"name": output.name}
        if output.classes:
            rows = [_classify(row, output.classes, labels) for row in array]
            entry |= {"datatype": "BYTES", "shape": [len(rows), len(rows[0])]}
            flat = [text for row in rows for text in row]
            data = pack_bytes([text.encode() for text in flat]) if output.is_binary else b""
        else:
            array = np.ascontiguousarray(array, "<f4")
            entry |= {"datatype": "FP32", "shape": list(array.shape)}
            flat = [] if output.is_binary else array.ravel().tolist()
            data = array.tobytes() if output.is_binary else b""
        if output.is_binary:
            entry["parameters"] = {"binary_data_size": len(data)}
            tensors.append(data)
        else:
            entry["data"] = flat
        described.append(entry)
    answer: dict[str, Any] = {"model_name": model, "model_version": VERSION}
    if request.id is not None:
        answer["id"] = request.id
    text = json.dumps(answer | {"outputs": described}, allow_nan=False).encode()
    return b"".join([text, *tensors]), len(text) if tensors else None


def pack_bytes(items: Sequence[bytes]) -> bytes:
    """Return elements of a tensor BYTES, each behind its length in 4 bytes, the lowest first."""
    return b"".join(struct.pack("<I", len(item)) + item for item in items)


def _classify(values: np.ndarray, count: int, labels: Sequence[str] | None) -> list[str]:
    best = np.argsort(-values, kind="stable")[:count].tolist()
    return [f"{values[i]!s}:{i}" + (f":{labels[i]}" if labels else "") for i in best]


def _parse_json(text: bytes) -> dict[str, Any]:
    try:
        request = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"The request is not valid JSON: {error}") from None
    if not isinstance(request, dict):
        raise RequestError(400, f"The request must be a JSON object. Received: {type(request).__name__}")
    return request


def _get(values: dict[str, Any], key: str, kind: type[T], default: Any, where: str) -> T:
    """Return a value of this type, or the default where it is missing or null. Raises RequestError."""
    value = values.get(key)
    if value is None:
        return default
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        words = {
            dict: "an object",
            list: "a list",
            str: "a string",
            int: "a whole number",
            bool: "true or false",
        }
        raise RequestError(400, f"{key} of {where} must be {words[kind]}. Received: {type(value).__name__}")
    return value


def _parse_inputs(
    request: dict[str, Any], binary: memoryview, max_images: int
) -> Sequence[bytes] | np.ndarray:
    """Return the one input. binary: what follows the JSON."""
    inputs = _get(request, "inputs", list, [], "the request")
    if len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise RequestError(400, f"Expected one input, image or x. Received: {len(inputs)} inputs")
    (given,) = inputs
    name = _get(given, "name", str, "", "an input")
    datatype, shape = _get(given, "datatype", str, "", name), _get(given, "shape", list, [], name)
    if name not in DATATYPES:
        raise RequestError(400, f"Unknown input. Expected: image or x. Received: {name[:100]!r}")
    if datatype != DATATYPES[name]:
        raise RequestError(
            400, f"The input {name} is of datatype {DATATYPES[name]}. Received: {datatype[:40]!r}"
        )
    expected = INPUTS[0].shape if name == "image" else INPUTS[1].shape
    is_valid = len(shape) == len(expected) and all(
        type(size) is int and 1 <= size <= MAX_SIZE and fixed in (-1, size)
        for size, fixed in zip(shape, expected, strict=False)
    )
    if not is_valid:
        raise RequestError(
            400,
            f"The input {name} has the shape {list(expected)}, each 1 to {MAX_SIZE}. Received: "
            f"{str(shape)[:100]}",
        )
    if shape[0] > max_images:
        raise RequestError(413, f"A request may have {max_images} images. Received: {shape[0]}")
    parameters = _get(given, "parameters", dict, {}, name)
    size = _get(parameters, "binary_data_size", int, None, name)
    if size != (len(binary) or None):
        stated = "no binary_data_size" if size is None else f"binary_data_size {size}"
        raise RequestError(400, f"{name}: {len(binary)} bytes follow the JSON. Received: {stated}")
    if size is None:
        data = _get(given, "data", list, [], name)
        return _decode_texts(data, shape[0]) if name == "image" else _to_floats(data, shape)
    if "data" in given:
        raise RequestError(400, f"{name} has binary data and `data`. Give one.")
    return unpack_bytes(binary, shape[0]) if name == "image" else _view_floats(binary, shape)


def unpack_bytes(data: memoryview, count: int) -> list[bytes]:
    """Return the elements of a tensor BYTES. Raises RequestError for lengths that do not fit the data."""
    items: list[bytes] = []
    place = 0
    while place + 4 <= len(data) and len(items) < count:
        (length,) = struct.unpack_from("<I", data, place)
        items.append(bytes(data[place + 4 : place + 4 + length]))
        place += 4 + length
    if len(items) != count or place != len(data):
        raise RequestError(
            400,
            f"The {len(data)} bytes of image are not {count} elements, each behind its length in 4 bytes.",
        )
    return items


def _decode_texts(data: list[Any], count: int) -> list[bytes]:
    if len(data) != count or not all(isinstance(text, str) for text in data):
        raise RequestError(
            400, f"data of image must be {count} strings in base64. Received: {len(data)} values"
        )
    try:
        return [b64decode(text, validate=True) for text in data]
    except ValueError as error:  # binascii.Error is one
        raise RequestError(
            400, f"data of image is not base64: {error}. Or send it as a binary tensor."
        ) from None


def _view_floats(data: memoryview, shape: list[int]) -> np.ndarray:
    if len(data) != 4 * math.prod(shape):
        raise RequestError(400, f"x of shape {shape} has {4 * math.prod(shape)} bytes. Received: {len(data)}")
    return _require_finite(np.frombuffer(data, "<f4").reshape(shape))


def _to_floats(data: list[Any], shape: list[int]) -> np.ndarray:
    array = np.array(None)
    if _has_numbers_only(data):
        with contextlib.suppress(ValueError):  # lists of unequal lengths
            array = np.array(data)
    if array.dtype.kind not in "iuf" or array.size != math.prod(shape):
        raise RequestError(400, f"data of x must be {math.prod(shape)} numbers, as its shape {shape} says.")
    with np.errstate(over="ignore"):
        return _require_finite(array.astype(np.float32).reshape(shape))


def _has_numbers_only(data: list[Any]) -> bool:
    """Return whether there is nothing else in the list and the lists in it. Of texts, NumPy would make an
    array in which each takes as much memory as the longest."""
    while kinds := set(map(type, data)):
        if kinds != {list}:
            return kinds <= {int, float}
        data = list(chain.from_iterable(data))
    return False


def _require_finite(array: np.ndarray) -> np.ndarray:
    if not np.isfinite(array).all():
        raise RequestError(400, "x has values that are not finite.")
    return array


def _parse_output(output: Any, names: Sequence[str], is_binary: bool) -> Requested:
    if not isinstance(output, dict):
        raise RequestError(400, f"An output must be an object. Received: {type(output).__name__}")
    name = _get(output, "name", str, "", "an output")
    if name not in names:
        raise RequestError(400, f"Unknown output. Expected: {', '.join(names)}. Received: {name[:100]!r}")
    parameters = _get(output, "parameters", dict, {}, name)
    classes = _get(parameters, "classification", int, 0, name)
    if classes < 0 or (classes and name == "embeddings"):
        raise RequestError(
            400,
            f"classification is a number of classes of probabilities or logits. Received: {classes}, {name}",
        )
    return Requested(name, _get(parameters, "binary_data", bool, is_binary, name), classes)
