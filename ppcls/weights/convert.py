"""Weights from one format's keys and layout to another's, bit for bit."""

import pickle
from pathlib import Path

import numpy as np

from ppcls.architectures import build_model
from ppcls.errors import WeightsError
from ppcls.files import write_aside
from ppcls.weights.identify import Identity, identify
from ppcls.weights.keymaps import TORCH_SOURCES, TRANSPOSED, key_map
from ppcls.weights.load import check_fit, recognise, sha256_of, to_own_keys
from ppcls.weights.native import facts_about, identity_of, write_weights
from ppcls.weights.readers import read_file

# What the other frameworks have no network for.
NOWHERE = {
    ("EfficientNetLite0", "paddleclas"),
    ("EfficientNetLite0", "torchvision"),
    ("EfficientNetB0_small", "torchvision"),
    ("EfficientNetB0_small", "timm"),
}


def convert(source: Path, target: Path, model_name: str, to: str, variant: str | None = None) -> Identity:
    """Write `source` to `target` in the format `to`: "ppcls", "paddleclas", "torchvision" or "timm".

    The target's ending chooses the container, .safetensors or .pdparams. Returns what the weights are, with
    notes of what the new file cannot say of itself. Raises WeightsError.
    """
    import paddle

    if (model_name, to) in NOWHERE:
        raise WeightsError(f"{to} has no {model_name}, so there is nothing to convert for.")
    kind, entries, facts = read_file(source)
    with paddle.LazyGuard():
        model = build_model(model_name)
    origin = recognise(kind, entries, facts, model)
    entries = to_own_keys(entries, origin, model)
    if "fc.bias" in entries and entries["fc.bias"].shape != (model.num_classes,):
        with paddle.LazyGuard():
            model = build_model(model_name, num_classes=entries["fc.bias"].shape[0])
    check_fit(model, entries, source)
    if origin == "ppcls":
        identity = identity_of(source, facts, model, variant)
    else:
        identity = identify(model_name, origin, source, sha256_of(source), variant)
    names = {key: key for key in entries} if to == "ppcls" else key_map(to, model_name, entries)
    is_transposed = to in TORCH_SOURCES
    arrays = {}
    for key, name in names.items():
        array = entries.pop(key).read()
        arrays[name] = np.ascontiguousarray(array.T if key in TRANSPOSED and is_transposed else array)
        if is_transposed and key.endswith("._mean"):
            arrays[f"{name.rpartition('.')[0]}.num_batches_tracked"] = np.zeros((), np.int64)
    own = (model.bn_epsilon, model.padding)
    if to == "ppcls" and target.suffix == ".safetensors":
        model.bn_epsilon, model.padding = identity.bn_epsilon, identity.padding
        facts = facts_about(
            model,
            preprocessing=identity.preprocessing,
            class_names=identity.class_names,
            licence=identity.licence,
        )
        write_weights(target, arrays, facts)
        return identity
    if target.suffix == ".pdparams":
        with write_aside(target) as aside, aside.open("wb") as file:
            pickle.dump(arrays, file, protocol=4)
    else:
        from safetensors.numpy import save_file

        with write_aside(target) as aside:
            save_file(arrays, aside, {"format": "pt", "license": identity.licence or "not stated"})
    computes = {"torchvision": (1e-3 if model_name[-1:] in "567" else 1e-5, "symmetric")}
    expected = computes.get(to, own) if own[1] == "same" else own
    if (identity.bn_epsilon, identity.padding) != expected:
        identity = identity.with_note(
            f"these weights need batch-norm epsilon {identity.bn_epsilon:g} and {identity.padding} padding; "
            f"a network of {to} with {expected[0]:g} and {expected[1]} padding gives other results with them"
        )
    return identity
