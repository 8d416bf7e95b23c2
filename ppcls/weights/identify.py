"""Which published weights a file holds. Its keys tell the framework, not the recipe: AdvProp's files look
like AutoAugment's, and timm's own EfficientNets like its conversions of Google's."""

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

# Every torch framework names a ResNeXt's parameters alike.
RESNEXT_FORMATS = ("torchvision", "wsl", "fixres", "timm")


@dataclass(frozen=True)
class Identity:
    """What the weights are, and what the network and its images must be for them.

    class_names: pairs of the class folder's name and the shown name. notes: what a user should hear.
    """

    source: str
    licence: str | None
    preprocessing: Preprocessing | None
    bn_epsilon: float
    padding: str
    class_names: tuple[tuple[str, str], ...] | None = None
    notes: tuple[str, ...] = ()

    def with_note(self, note: str) -> "Identity":
        return replace(self, notes=(*self.notes, note))


def matching(rows: list[Published], variant: str) -> list[Published]:
    """The rows that a tag names; what follows its dot may be left out."""
    exact = [row for row in rows if row.tag == variant]
    return exact or [row for row in rows if row.tag.startswith(f"{variant}.")]


def identify(model_name: str, source: str, path: Path, sha256: str, variant: str | None) -> Identity:
    """In this order: a config.json beside the file (timm's), the hash of a published file, `variant`; with
    none of them the file may still be clear, because all that it can be computes alike.

    Raises WeightsError for what stays ambiguous, naming the choices, and for evidence against `variant`.
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
                f"{path} is {by_hash[0].tag} by its hash, but model.variant says {variant}. Leave the "
                "variant out."
            )
        return _of(by_hash[0], model_name, f"{by_hash[0].tag}, by its hash")
    if variant is not None:
        named = matching(rows, variant)
        if not named:
            raise WeightsError(
                f"model.variant {variant} is none of the weights of {model_name} that {path} can be; "
                f"{suggest(variant, [row.tag for row in rows])}"
            )
        require_one_meaning(named, model_name, str(path))
        return _of(named[0], model_name, f"{named[0].tag}, by model.variant")
    require_one_meaning(rows, model_name, str(path))
    if len(rows) == 1:
        return _of(rows[0], model_name, f"{rows[0].tag}, by its keys")
    others = ", ".join(row.tag for row in rows[1:])
    return _of(rows[0], model_name, f"{source} format, by its keys").with_note(
        f"taken for {rows[0].tag}; if it is one of {others}, say so with model.variant: the logits "
        "of an image are the same, but not the licence, sizes and interpolation"
    )


def _meaning(row: Published, model_name: str) -> tuple:
    """What changes the logits of an image of the right size."""
    variant = MODELS[model_name]
    return (
        row.bn_epsilon or variant.bn_epsilon,
        row.padding or variant.padding,
        row.preprocessing.mean,
        row.preprocessing.std,
    )


def require_one_meaning(rows: list[Published], model_name: str, what: str) -> None:
    """Raises WeightsError where it matters which of the rows it is."""
    if len({_meaning(row, model_name) for row in rows}) > 1:
        tags = ", ".join(row.tag for row in rows)
        raise WeightsError(
            f"{what} can be any of {tags}: their keys are the same, but not their batch-norm epsilon, "
            "padding or normalisation, so the wrong one would give other results. Say which it is: "
            "-o model.variant=TAG."
        )


def _of(row: Published, model_name: str, source: str) -> Identity:
    variant = MODELS[model_name]
    return Identity(
        source=source,
        licence=row.licence,
        preprocessing=row.preprocessing,
        bn_epsilon=row.bn_epsilon or variant.bn_epsilon,
        padding=row.padding or variant.padding,
    )


def _from_timm_config(path: Path, model_name: str, wanted: str | None) -> Identity | None:
    """What the config.json of a Hugging Face folder says; None where it is not timm's.

    timm's names tell the conventions: tf_efficientnet_* computes as TensorFlow, efficientnet_* as torch.
    """
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        name = str(config["architecture"])
        facts = config["pretrained_cfg"]
        size = facts["input_size"][-1]
        preprocessing = Preprocessing.from_dict(
            {
                "resize_short": floor(size / facts["crop_pct"]),
                "crop_size": size,
                "interpolation": facts["interpolation"],
                "antialias": True,
                "mean": facts["mean"],
                "std": facts["std"],
            }
        )
    except (OSError, ValueError, KeyError, TypeError, IndexError, ZeroDivisionError):
        return None
    variant = MODELS[model_name]
    is_torchs = name.startswith("efficientnet_")
    tag = f"timm/{name}.{facts.get('tag', '')}".rstrip(".")
    if wanted is not None and wanted not in (tag, f"timm/{name}"):
        raise WeightsError(f"{path} says {tag}, but model.variant says {wanted}. Leave the variant out.")
    return Identity(
        source=f"{tag}, by the config.json beside it",
        licence=facts.get("license"),
        preprocessing=preprocessing,
        bn_epsilon=1e-5 if is_torchs else variant.bn_epsilon,
        padding="symmetric" if is_torchs else variant.padding,
    )
