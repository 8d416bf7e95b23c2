"""Convert weights from the keys and layout of one format to those of another, bit for bit."""

import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ppcls.architectures import build_model
from ppcls.errors import WeightsError
from ppcls.files import write_aside
from ppcls.weights.find import find_weights
from ppcls.weights.identify import CONVERSION, Identity, published_rows
from ppcls.weights.keymaps import TORCH_SOURCES, TRANSPOSED, key_map
from ppcls.weights.load import find_file, identify_found
from ppcls.weights.native import metadata_of, write_weights
from ppcls.weights.readers import Entry

if TYPE_CHECKING:
    from paddle import nn


def convert(
    source: Path,
    target: Path,
    model_name: str,
    to: str,
    variant: str | None = None,
    averaged: bool = True,
) -> Identity:
    """Write `source` to `target` in the format `to`: "ppcls", "paddleclas", "torchvision" or "timm".

    The target's ending chooses the container, .safetensors or .pdparams. averaged: as for `load_weights`.
    Returns the identity of the weights, with notes on what was left out, and if the target's framework
    computes other outputs with them. Raises WeightsError.
    """
    import paddle

    if not published_rows(model_name, to):
        raise WeightsError(f"{to} has no {model_name}. Choose another format.")
    source = find_file(source, CONVERSION.weights)
    with paddle.LazyGuard():
        model = build_model(model_name)
    found = find_weights(source, model, averaged=averaged, options=CONVERSION)
    entries = found.entries
    if "fc.bias" in entries and len(entries["fc.bias"].shape) == 1:
        with paddle.LazyGuard():
            model = build_model(model_name, num_classes=entries["fc.bias"].shape[0])
    identity, _ = identify_found(found, model, model_name, source, variant, CONVERSION)
    for note in found.notes:
        identity = identity.with_note(note)
    arrays = _convert_arrays(entries, model_name, to)
    if to == "ppcls" and target.suffix == ".safetensors":
        _write_native(target, arrays, model, identity)
        return identity
    _write_plain(target, arrays, identity.license)
    expected_epsilon, expected_padding = _conventions(to, model)
    if (identity.bn_epsilon, identity.padding) == (expected_epsilon, expected_padding):
        return identity
    return identity.with_note(
        f"these weights need batch-norm epsilon {identity.bn_epsilon:g} and {identity.padding} padding; a "
        f"network of {to} has {expected_epsilon:g} and {expected_padding} padding and gives other results"
    )


def _convert_arrays(entries: dict[str, Entry], model_name: str, to: str) -> dict[str, np.ndarray]:
    """Return the arrays with the keys and in the layout of the format `to`. Empties `entries`."""
    names = {key: key for key in entries} if to == "ppcls" else key_map(to, model_name, entries)
    is_transposed = to in TORCH_SOURCES
    arrays = {}
    for key, name in names.items():
        array = entries.pop(key).read()
        arrays[name] = np.ascontiguousarray(array.T if key in TRANSPOSED and is_transposed else array)
        if is_transposed and key.endswith("._mean"):
            arrays[f"{name.rpartition('.')[0]}.num_batches_tracked"] = np.zeros((), np.int64)
    return arrays


def _write_native(path: Path, arrays: dict[str, np.ndarray], model: "nn.Layer", identity: Identity) -> None:
    """Write a file in this project's own format, with metadata."""
    metadata = metadata_of(
        model,
        preprocessing=identity.preprocessing,
        class_names=identity.class_names,
        license=identity.license,
        activation=identity.activation,
    )
    write_weights(path, arrays, metadata | {"bn_epsilon": identity.bn_epsilon, "padding": identity.padding})


_PythonPickler: Any = pickle._Pickler  # its methods can be replaced, those of the one in C cannot


class _ArrayPickler(_PythonPickler):
    """Pickler that writes arrays for numpy 1 and 2. PaddleClas 2.6 needs numpy 1, which does not know the
    module that numpy 2 names; numpy 2 still knows that of numpy 1."""

    def save_global(self, obj: object, name: str | None = None) -> None:
        if name == "_reconstruct" or getattr(obj, "__name__", None) == "_reconstruct":
            self.write(b"cnumpy.core.multiarray\n_reconstruct\n")
            self.memoize(obj)
        else:
            super().save_global(obj, name)


def _write_plain(path: Path, arrays: dict[str, np.ndarray], license: str | None) -> None:
    """Write a pickle (.pdparams) or safetensors, which do not describe the network."""
    if path.suffix == ".pdparams":
        with write_aside(path) as aside, aside.open("wb") as file:
            _ArrayPickler(file, protocol=4).dump(arrays)
    else:
        from safetensors.numpy import save_file

        with write_aside(path) as aside:
            save_file(arrays, aside, {"format": "pt", "license": license or "not stated"})


def _conventions(to: str, model: "nn.Layer") -> tuple[float, str]:
    """Return the batch-norm epsilon and the padding with which the framework `to` computes the model."""
    if to == "torchvision" and model.padding == "same":
        return 1e-3 if model.model_name[-1:] in "567" else 1e-5, "symmetric"
    return model.bn_epsilon, model.padding
