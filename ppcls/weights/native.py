"""This project's own file of weights: safetensors, whose metadata says what they are.

Keys are the network's own. The metadata holds JSON texts: the format's version, the model, the number of
classes, their names, the preprocessing, and whatever the writer adds.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ppcls.errors import WeightsError
from ppcls.files import write_aside
from ppcls.preprocessing import Preprocessing
from ppcls.weights.identify import Identity

if TYPE_CHECKING:
    from paddle import nn

FORMAT = "ppcls"
VERSION = 1


def write_weights(path: Path, arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> None:
    """Write aside, sync, rename: `path` is the old file or the whole new one, whatever happens."""
    from safetensors.numpy import save_file

    metadata = {"format": FORMAT, "version": str(VERSION)}
    metadata |= {key: json.dumps(value, ensure_ascii=False) for key, value in facts.items()}
    with write_aside(path) as aside:
        save_file(arrays, aside, metadata)


def facts_about(
    model: "nn.Layer",
    *,
    preprocessing: Preprocessing | None = None,
    class_names: Sequence[tuple[str, str]] | None = None,
    licence: str | None = None,
) -> dict[str, Any]:
    """What a file of this model's weights should say. class_names: pairs of folder and shown name."""
    return {
        "model": model.model_name,
        "num_classes": model.num_classes,
        "bn_epsilon": model.bn_epsilon,
        "padding": model.padding,
        "preprocessing": preprocessing and preprocessing.to_dict(),
        "class_names": class_names,
        "licence": licence,
    }


def hash_parameters(model: "nn.Layer") -> str:
    """SHA-256 of a network's parameters and batch-norm statistics, with their names and shapes, and of the
    conventions that it computes by: equal for equal networks, wherever their weights come from."""
    digest = hashlib.sha256()
    digest.update(f"{model.model_name} {model.num_classes} {model.bn_epsilon} {model.padding}".encode())
    for key, parameter in sorted(model.state_dict().items()):
        digest.update(f"{key} {list(parameter.shape)}".encode())
        digest.update(np.ascontiguousarray(parameter.numpy()).data)
    return digest.hexdigest()


def read_facts(path: Path, metadata: dict[str, Any]) -> dict[str, Any]:
    """What the metadata of one of this project's files says. Raises WeightsError."""
    try:
        version = int(metadata["version"])
        facts = {k: json.loads(v) for k, v in metadata.items() if k not in ("format", "version")}
    except (KeyError, ValueError) as error:
        raise WeightsError(f"{path} has damaged metadata ({error}). Copy or download it again.") from error
    if version > VERSION:
        raise WeightsError(
            f"{path} has format version {version}, this ppcls reads up to {VERSION}. Upgrade ppcls."
        )
    return facts


# Networks whose parameters have the same keys and shapes, but which compute otherwise.
TWINS = ("EfficientNetB0_small", "EfficientNetLite0")


def identity_of(path: Path, metadata: dict[str, Any], model: "nn.Layer", variant: str | None) -> Identity:
    """Of a file with this project's keys. Raises WeightsError where it is, or may be, of another model.

    Without metadata, as a .pdparams is, the network's own conventions are taken; `variant` is then
    "ppcls/" and the model's name, where the keys don't tell it.
    """
    has_metadata = metadata.get("format") == FORMAT
    named = f"ppcls/{model.model_name}"
    if variant not in (None, named):
        raise WeightsError(
            f"{path} has ppcls's keys, but model.variant says {variant}. Leave the variant out."
        )
    if not has_metadata and model.model_name in TWINS and variant is None:
        raise WeightsError(
            f"{path} can be of either of {' and '.join(TWINS)}: their keys and shapes are the same. If it is "
            f"{model.model_name}'s, say so: -o model.variant={named}."
        )
    facts = read_facts(path, metadata) if has_metadata else facts_about(model)
    if facts.get("model") != model.model_name:
        raise WeightsError(
            f"{path} holds weights of {facts.get('model')}, the config asks for {model.model_name}: "
            f"set model.name={facts.get('model')}, or take other weights."
        )
    try:
        spec, names = facts.get("preprocessing"), facts.get("class_names")
        class_names = tuple((str(folder), str(name)) for folder, name in names) if names else None
        if class_names is not None and len(class_names) != facts["num_classes"]:
            raise ValueError(f"{len(class_names)} names for {facts['num_classes']} classes")
        return Identity(
            source="ppcls format",
            licence=facts.get("licence"),
            preprocessing=Preprocessing.from_dict(spec) if spec else None,
            bn_epsilon=float(facts.get("bn_epsilon", model.bn_epsilon)),
            padding=str(facts.get("padding", model.padding)),
            class_names=class_names,
        )
    except (KeyError, ValueError, TypeError) as error:
        raise WeightsError(f"{path} has damaged metadata ({error}). Copy or download it again.") from error
