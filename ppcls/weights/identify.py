"""Identify the published weights that a file holds.

The keys identify the framework, but not the training recipe: the files of AdvProp have the keys of
AutoAugment's, and timm's own EfficientNets those of its conversions of Google's.
"""

import json
from dataclasses import dataclass, replace
from math import floor
from pathlib import Path
from typing import Any

from ppcls.architectures import MODELS, ResNeXtVariant
from ppcls.errors import WeightsError, suggest
from ppcls.preprocessing import Preprocessing
from ppcls.weights.keymaps import TORCH_SOURCES
from ppcls.weights.published import PUBLISHED, Published

# All torch frameworks name the parameters of a ResNeXt alike.
RESNEXT_FORMATS = ("torchvision", "wsl", "fixres", "timm")


@dataclass(frozen=True)
class Identity:
    """The origin of weights, and the network and preprocessing that they need.

    class_names: pairs of the class folder's name and the shown name. notes: lines for the user.
    """

    source: str
    license: str | None
    preprocessing: Preprocessing | None
    bn_epsilon: float
    padding: str
    class_names: tuple[tuple[str, str], ...] | None = None
    notes: tuple[str, ...] = ()

    def with_note(self, note: str) -> "Identity":
        return replace(self, notes=(*self.notes, note))


def matching(rows: list[Published], variant: str) -> list[Published]:
    """Return the rows that a tag names. The part after its dot may be left out."""
    exact = [row for row in rows if row.tag == variant]
    return exact or [row for row in rows if row.tag.startswith(f"{variant}.")]


def identify(model_name: str, source: str, path: Path, sha256: str, variant: str | None) -> Identity:
    """Identify a file by timm's config.json beside it, else by the hash of a published file, else by
    `variant`, else by its keys, if all published weights with these keys compute the same logits.

    Raises WeightsError if the file stays ambiguous, with the choices, and if it contradicts `variant`.
    """
    formats: tuple[str, ...] = (source.removesuffix("-names"),)
    if isinstance(MODELS[model_name], ResNeXtVariant) and source in TORCH_SOURCES:
        formats = RESNEXT_FORMATS
    rows = [row for row in PUBLISHED[model_name] if row.file_format in formats]
    if not rows:
        raise WeightsError(f"{path} has the keys of {source}, which has published no {model_name}.")
    by_hash = [row for row in rows if row.sha256 is not None and sha256.startswith(row.sha256)]
    config = path.with_name("config.json")
    if "timm" in formats and config.is_file():
        found = _from_timm_config(config, model_name, variant)
        if found is not None:
            return found
    if by_hash:
        if variant is not None and by_hash[0] not in matching(rows, variant):
            raise WeightsError(
                f"{path} is {by_hash[0].tag} by its hash, but model.variant is {variant}. Set it to null."
            )
        return _identity(by_hash[0], model_name, f"{by_hash[0].tag}, by its hash")
    if variant is not None:
        named = matching(rows, variant)
        if not named:
            raise WeightsError(
                f"model.variant is not one of the weights of {model_name} that {path} may hold. "
                f"Received: {variant}; "
                f"{suggest(variant, [row.tag for row in rows])}"
            )
        require_same_logits(named, model_name, str(path))
        return _identity(named[0], model_name, f"{named[0].tag}, by model.variant")
    require_same_logits(rows, model_name, str(path))
    if len(rows) == 1:
        return _identity(rows[0], model_name, f"{rows[0].tag}, by its keys")
    others = ", ".join(row.tag for row in rows[1:])
    return _identity(rows[0], model_name, f"{source} format, by its keys").with_note(
        f"assumed to be {rows[0].tag}; if it is one of {others}, set model.variant: the logits of an image "
        "are the same, but license, sizes and interpolation differ"
    )


def _fingerprint(row: Published, model_name: str) -> tuple:
    """Return all that changes the logits of an image of the right size, besides the parameters."""
    variant = MODELS[model_name]
    return (
        row.bn_epsilon or variant.bn_epsilon,
        row.padding or variant.padding,
        row.preprocessing.mean,
        row.preprocessing.std,
    )


def require_same_logits(rows: list[Published], model_name: str, subject: str) -> None:
    """Raise WeightsError if the rows differ in what changes the logits. subject: the file or tag that is
    ambiguous."""
    if len({_fingerprint(row, model_name) for row in rows}) > 1:
        tags = ", ".join(row.tag for row in rows)
        raise WeightsError(
            f"{subject} may be any of {tags}: their keys are the same, but their batch-norm epsilon, padding "
            "or normalisation differ, so the wrong choice changes the results. Choose one: "
            "-o model.variant=TAG."
        )


def _identity(row: Published, model_name: str, source: str) -> Identity:
    """Return the identity of a row of PUBLISHED. source: the row's tag, and how it was recognized."""
    variant = MODELS[model_name]
    return Identity(
        source=source,
        license=row.license,
        preprocessing=row.preprocessing,
        bn_epsilon=row.bn_epsilon or variant.bn_epsilon,
        padding=row.padding or variant.padding,
    )


def _from_timm_config(path: Path, model_name: str, requested: str | None) -> Identity | None:
    """Return the identity in the config.json of a Hugging Face folder; None if it is not one of timm's.

    timm's names identify the conventions: tf_efficientnet_* computes as TensorFlow, efficientnet_* as torch.
    requested: model.variant. Raises WeightsError if it contradicts the file.
    """
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        name = str(config["architecture"])
        values = config["pretrained_cfg"]
        size = values["input_size"][-1]
        preprocessing = Preprocessing.from_dict(
            {
                "resize_short": floor(size / values["crop_pct"]),
                "crop_size": size,
                "interpolation": values["interpolation"],
                "antialias": True,
                "mean": values["mean"],
                "std": values["std"],
            }
        )
    except (OSError, ValueError, KeyError, TypeError, IndexError, ZeroDivisionError):
        return None
    variant = MODELS[model_name]
    follows_torch = name.startswith("efficientnet_")
    tag = f"timm/{name}.{values.get('tag', '')}".rstrip(".")
    if requested is not None and requested not in (tag, f"timm/{name}"):
        raise WeightsError(
            f"{path} names {tag}, but model.variant is {requested}. Set model.variant to null."
        )
    return Identity(
        source=f"{tag}, by the config.json beside it",
        license=values.get("license"),
        preprocessing=preprocessing,
        bn_epsilon=1e-5 if follows_torch else variant.bn_epsilon,
        padding="symmetric" if follows_torch else variant.padding,
    )
