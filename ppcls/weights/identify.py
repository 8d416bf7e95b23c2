"""Identify the weights that a file holds: what network they need, and what is known about them.

The keys identify the framework, but not the training recipe: the files of AdvProp have the keys of
AutoAugment's, and timm's own EfficientNets those of its conversions of Google's. Nor do they identify an
origin: a stranger's weights have them too. Only the hash of a published file, the address that it was fetched
from, and this project's own metadata state a source and a license.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import floor
from pathlib import Path
from typing import Any, NamedTuple

from ppcls.architectures import MODELS, ResNeXtVariant, are_same_network
from ppcls.config import Activation
from ppcls.errors import WeightsError, suggest
from ppcls.preprocessing import Preprocessing
from ppcls.weights.keymaps import TORCH_SOURCES
from ppcls.weights.published import PUBLISHED
from ppcls.weights.published.record import Published

# efficientnet-lite-pytorch has these networks, but no weights of them. It computes as timm's do.
WITHOUT_PACKAGE = ("EfficientNetLite3", "EfficientNetLite4")
# All torch frameworks name the parameters of a ResNeXt alike.
RESNEXT_FORMATS = ("torchvision", "wsl", "fixres", "timm")


class OptionNames(NamedTuple):
    """Names of a command's options, for messages. raw: what takes raw weights, not their average."""

    weights: str
    variant: str
    raw: str


EVALUATION = OptionNames("model.weights", "model.variant", "model.averaged=false")
START = OptionNames("train.start_from", "train.start_variant", "train.start_averaged=false")
CONVERSION = OptionNames("the input", "--variant", "--raw")


@dataclass(frozen=True)
class Identity:
    """The origin of weights, and the network and preprocessing that they need.

    license, preprocessing, class_names (pairs of the class folder's name and the shown name): None if nothing
    states them. notes: lines for the user. activation: "sigmoid" for weights of train.loss=binary.
    """

    source: str
    license: str | None
    preprocessing: Preprocessing | None
    bn_epsilon: float
    padding: str
    class_names: tuple[tuple[str, str], ...] | None = None
    notes: tuple[str, ...] = ()
    activation: Activation = "softmax"

    def with_note(self, note: str) -> "Identity":
        return replace(self, notes=(*self.notes, note))


def matching(rows: list[Published], variant: str) -> list[Published]:
    """Return the rows that a tag names. The part after its dot may be left out."""
    exact = [row for row in rows if row.tag == variant]
    return exact or [row for row in rows if row.tag.startswith(f"{variant}.")]


def identify(
    model_name: str,
    source: str,
    path: Path,
    sha256: str,
    variant: str | None = None,
    *,
    fetched: Published | None = None,
    architecture: str | None = None,
    options: OptionNames = EVALUATION,
) -> Identity:
    """Identify a file of weights with the keys of `source`.

    fetched: the published weights, if they were fetched from their address. Else the hash of a published file
    decides. Neither known, source and license are not stated; batch-norm epsilon and padding come from
    `variant`, timm's config.json beside the file, the `architecture` that a script saved in it, or the keys,
    if all published weights with these keys have the same ones.
    Raises WeightsError if the file stays ambiguous, with the choices, and if it contradicts `variant` or
    `model_name`.
    """
    if fetched is not None:
        return _identity(fetched, model_name, f"{fetched.tag}, as published")
    rows = published_rows(model_name, source)
    if not rows:
        raise WeightsError(f"{path} has the keys of {source}, which has published no {model_name}.")
    by_hash = next((row for row in rows if row.sha256 and sha256.startswith(row.sha256)), None)
    if by_hash is not None:
        if variant is not None and by_hash not in matching(rows, variant):
            raise WeightsError(
                f"{path} is {by_hash.tag} by its hash, but {options.variant} is {variant}. Set it to null."
            )
        return _identity(by_hash, model_name, f"{by_hash.tag}, by its hash")
    require_architecture(architecture, model_name, path)
    beside = _read_timm_config(path.with_name("config.json")) if source == "timm" else None
    own, names = (beside.preprocessing, beside.class_names) if beside else (None, None)
    if beside is not None:
        require_architecture(beside.architecture, model_name, path.with_name("config.json"))
    if variant is not None:
        named = _named_by_user(rows, model_name, path, variant, beside, options)
        known = _identity(named, model_name, f"{source} format, taken as {named.tag} ({options.variant})")
        return replace(known, license=None, preprocessing=own or known.preprocessing, class_names=names)
    name = beside.architecture if beside else architecture
    if source == "timm" and (_model_of(name) or "").startswith("EfficientNet"):
        # tf_efficientnet_* computes as TensorFlow, efficientnet_* as torch
        follows_torch = not str(name).rpartition("/")[2].startswith("tf_")
        published = MODELS[model_name]
        conventions = (1e-5, "symmetric") if follows_torch else (published.bn_epsilon, published.padding)
    else:
        require_same(rows, _conventions, model_name, str(path), options.variant)
        conventions = _conventions(rows[0], model_name)
    origin = ", with the config.json beside it" if beside else ""
    return Identity(f"{source} format{origin}", None, own, *conventions, names)


def published_rows(model_name: str, source: str) -> list[Published]:
    """Return the published weights of a model that have the keys of `source`, one of keymaps or "ppcls"."""
    rows = list(PUBLISHED.get(model_name, ()))
    formats: tuple[str, ...] = (source.removesuffix("-names"),)
    if source == "lukemelas" and model_name in WITHOUT_PACKAGE:
        formats = ("timm",)
    if isinstance(MODELS[model_name], ResNeXtVariant) and source in TORCH_SOURCES:
        formats = RESNEXT_FORMATS
    return rows if source == "ppcls" else [row for row in rows if row.file_format in formats]


def usual_preprocessing(model_name: str, source: str, conventions: tuple[float, str]) -> Preprocessing | None:
    """Return the preprocessing of the first published weights with the same keys, epsilon and padding."""
    rows = published_rows(model_name, source)
    same = [row for row in rows if _conventions(row, model_name) == conventions]
    return (same or rows)[0].preprocessing if rows else None


# Names of timm, torchvision, lukemelas and PaddleClas, with prefixes and suffixes.
_ARCHITECTURE = re.compile(
    r"(?<![a-z])(?:efficientnet[-_]?(b\d|lite\d)|resnext101_32x(\d+)d)(?!\d)", re.IGNORECASE
)


def _model_of(architecture: str | None) -> str | None:
    """Return this project's name of an architecture; None if the name is not known."""
    found = _ARCHITECTURE.search(architecture or "")
    if architecture in MODELS or found is None:
        return architecture if architecture in MODELS else None
    net, width = found.groups()
    return f"EfficientNet{net.capitalize()}" if net else f"ResNeXt101_32x{width}d_wsl"


def require_architecture(architecture: str | None, model_name: str, path: Path) -> None:
    """Raise WeightsError if the name that a file states is that of another of this project's models."""
    stated = _model_of(architecture)
    if stated in MODELS and stated != model_name and not are_same_network(stated, model_name):
        raise WeightsError(
            f"{path} states that its network is {architecture}, but model.name is {model_name}. Set "
            f"model.name={stated}, or give other weights."
        )


def _named_by_user(
    rows: list[Published],
    model_name: str,
    path: Path,
    variant: str,
    beside: "_Beside | None",
    options: OptionNames,
) -> Published:
    """Return the row that the option of the variant names. Raises WeightsError if there is none, or if the
    config.json beside the file names another architecture."""
    if beside is not None and variant.removeprefix("timm/").split(".")[0] != beside.architecture:
        raise WeightsError(
            f"{path.with_name('config.json')} names timm/{beside.architecture}, but {options.variant} is "
            f"{variant}. Set {options.variant} to null."
        )
    named = matching(rows, variant)
    if not named:
        raise WeightsError(
            f"{options.variant} is not one of the weights of {model_name} that {path} may hold. "
            f"Received: {variant}; {suggest(variant, [row.tag for row in rows])}"
        )
    if beside is None:
        require_same(named, fingerprint, model_name, str(path), options.variant)
    return named[0]


def _conventions(row: Published, model_name: str) -> tuple[float, str]:
    variant = MODELS[model_name]
    return row.bn_epsilon or variant.bn_epsilon, row.padding or variant.padding


def fingerprint(row: Published, model_name: str) -> tuple:
    """Return all that changes the logits of an image of the right size, besides the parameters."""
    return *_conventions(row, model_name), row.preprocessing.mean, row.preprocessing.std


def require_same(
    rows: list[Published], take: Callable[[Published, str], tuple], model_name: str, subject: str, option: str
) -> None:
    """Raise WeightsError if the rows differ in what `take` returns. subject: the file or tag that is
    ambiguous. option: the one that decides."""
    if len({take(row, model_name) for row in rows}) > 1:
        tags = ", ".join(row.tag for row in rows)
        raise WeightsError(
            f"{subject} may be any of {tags}, or made from one: their keys are the same, but their "
            "batch-norm epsilon, padding or normalisation differ, so the wrong choice changes the results. "
            f"Choose one: {option}=TAG."
        )


def _identity(row: Published, model_name: str, source: str) -> Identity:
    """Return the identity of a row of PUBLISHED. source: the row's tag, and how it was recognized."""
    return Identity(source, row.license, row.preprocessing, *_conventions(row, model_name))


@dataclass(frozen=True)
class _Beside:
    """The architecture and preprocessing in timm's config.json. Its tag and license are not read: timm copies
    them from the weights that a training started from, even for a network that was never trained."""

    architecture: str
    preprocessing: Preprocessing
    class_names: tuple[tuple[str, str], ...] | None


def _read_timm_config(path: Path) -> _Beside | None:
    """Read the config.json of a Hugging Face folder; None if there is none, or not one of timm's."""
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
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
        names = config.get("label_names") or values.get("label_names") or ()
        shown = config.get("label_descriptions") or values.get("label_descriptions") or {}
        shown = shown if isinstance(shown, dict) else dict(zip(names, shown, strict=True))
        pairs = tuple((str(name), str(shown.get(name, name))) for name in names)
        return _Beside(str(config["architecture"]), preprocessing, pairs or None)
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, ZeroDivisionError):
        return None
