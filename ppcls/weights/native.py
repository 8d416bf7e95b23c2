"""This project's own format of weights: safetensors with metadata that describes them.

The keys are the network's own. The metadata holds JSON texts: the version of the format, the model, the
number of classes, their names, the preprocessing, and what the caller adds.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ppcls.architectures import are_same_network
from ppcls.errors import WeightsError
from ppcls.files import write_aside
from ppcls.preprocessing import Preprocessing
from ppcls.weights.identify import EVALUATION, Identity, OptionNames

if TYPE_CHECKING:
    from paddle import nn

FORMAT = "ppcls"
VERSION = 1


def write_weights(path: Path, arrays: dict[str, np.ndarray], metadata: dict[str, Any]) -> None:
    """Write a file of weights atomically: `path` is the old file or the whole new one, whatever happens."""
    from safetensors.numpy import save_file

    texts = {"format": FORMAT, "version": str(VERSION)}
    texts |= {key: json.dumps(value, ensure_ascii=False) for key, value in metadata.items()}
    with write_aside(path) as aside:
        save_file(arrays, aside, texts)


def metadata_of(
    model: "nn.Layer",
    *,
    preprocessing: Preprocessing | None = None,
    class_names: Sequence[tuple[str, str]] | None = None,
    license: str | None = None,
    activation: str = "softmax",
) -> dict[str, Any]:
    """Return the metadata for a file of this model's weights. class_names: pairs of folder and shown name.
    activation: "sigmoid" for weights of train.loss=binary."""
    return {
        "model": model.model_name,
        "num_classes": model.num_classes,
        "bn_epsilon": model.bn_epsilon,
        "padding": model.padding,
        "preprocessing": preprocessing and preprocessing.to_dict(),
        "class_names": class_names,
        "licence": license,
        **({} if activation == "softmax" else {"activation": activation}),
    }


def hash_parameters(model: "nn.Layer") -> str:
    """Return the SHA-256 of a network's parameters and batch-norm statistics with their names and shapes, of
    its batch-norm epsilon and of its padding: equal for equal networks, wherever their weights come from."""
    digest = hashlib.sha256()
    digest.update(f"{model.model_name} {model.num_classes} {model.bn_epsilon} {model.padding}".encode())
    for key, parameter in sorted(model.state_dict().items()):
        digest.update(f"{key} {list(parameter.shape)}".encode())
        digest.update(np.ascontiguousarray(parameter.numpy()).data)
    return digest.hexdigest()


def read_metadata(path: Path, texts: dict[str, Any]) -> dict[str, Any]:
    """Return the metadata given to `write_weights`. texts: as `read_file` returns them. Raises
    WeightsError."""
    try:
        version = int(texts["version"])
        metadata = {k: json.loads(v) for k, v in texts.items() if k not in ("format", "version")}
    except (KeyError, ValueError) as error:
        raise WeightsError(f"{path} has damaged metadata ({error}). Copy or download it again.") from error
    if version > VERSION:
        raise WeightsError(
            f"{path} has format version {version}, this ppcls reads up to {VERSION}. Upgrade ppcls."
        )
    return metadata


# Networks whose parameters have the same keys and shapes, but which compute different outputs.
TWINS = ("EfficientNetB0_small", "EfficientNetLite0")


def identity_of(
    path: Path,
    texts: dict[str, Any],
    model: "nn.Layer",
    variant: str | None,
    options: OptionNames = EVALUATION,
) -> Identity:
    """Return the identity of a file with this project's keys. texts: its metadata, as `read_file` returns it.

    A file without metadata, such as a .pdparams, has the network's own batch-norm epsilon and padding; if its
    keys do not identify the model, `variant` must be "ppcls/" and the model's name.
    Raises WeightsError if the file belongs to another model, or may belong to one.
    """
    has_metadata = texts.get("format") == FORMAT
    named = f"ppcls/{model.model_name}"
    if variant not in (None, named):
        raise WeightsError(
            f"{path} has the keys of ppcls, but {options.variant} is {variant}. Leave {options.variant} out."
        )
    if not has_metadata and model.model_name in TWINS and variant is None:
        raise WeightsError(
            f"{path} fits {' and '.join(TWINS)}: their keys and shapes are equal. If it belongs to "
            f"{model.model_name}, set it: {options.variant}={named}."
        )
    metadata = read_metadata(path, texts) if has_metadata else metadata_of(model)
    source_model = str(metadata.get("model"))
    if source_model != model.model_name and not are_same_network(source_model, model.model_name):
        raise WeightsError(
            f"{path} holds weights of {source_model}, but model.name is {model.model_name}. Set "
            f"model.name={source_model}, or give other weights."
        )
    try:
        preprocessing, names = metadata.get("preprocessing"), metadata.get("class_names")
        class_names = tuple((str(folder), str(name)) for folder, name in names) if names else None
        if class_names is not None and len(class_names) != metadata["num_classes"]:
            raise ValueError(f"{len(class_names)} names for {metadata['num_classes']} classes")
        origin = "" if source_model == model.model_name else f", of {source_model}"
        return Identity(
            source=f"ppcls format{origin}",
            license=metadata.get("licence"),
            preprocessing=Preprocessing.from_dict(preprocessing) if preprocessing else None,
            bn_epsilon=float(metadata.get("bn_epsilon", model.bn_epsilon)),
            padding=str(metadata.get("padding", model.padding)),
            class_names=class_names,
            activation="sigmoid" if metadata.get("activation") == "sigmoid" else "softmax",
        )
    except (KeyError, ValueError, TypeError) as error:
        raise WeightsError(f"{path} has damaged metadata ({error}). Copy or download it again.") from error
