"""An exported model: a folder with the network in one or more formats and inference.yml, which says all that
is needed to run it. Imports no Paddle."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from ppcls.data.class_names import ClassNames
from ppcls.errors import ExportError
from ppcls.preprocessing import Preprocessing

SPEC = "inference.yml"
VERSION = 1
END = "..."  # YAML's end of a document: without it, a file cut off between two lines would look whole
Output = Literal["logits", "probabilities"]
FORMATS = ("paddle", "onnx", "openvino")


@dataclass(frozen=True)
class Artifact:
    """What inference.yml says.

    output: what the network returns, float32 [N, num_classes]; "probabilities" with the softmax inside.
    parameters_sha256: `weights.hash_parameters` of the network that was exported.
    files: each format's files with their sizes in bytes. parity: for each format the relative difference
    ||a - b|| / ||b|| to the eager network, under the size of the images it was measured with.
    """

    model: str
    num_classes: int
    output: Output
    preprocessing: Preprocessing
    class_names: ClassNames | None
    parameters_sha256: str
    weights: str | None
    licence: str | None
    versions: Mapping[str, str]
    files: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    parity: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        names = self.class_names
        values = {
            "format_version": VERSION,
            "model": self.model,
            "num_classes": self.num_classes,
            "input": "x: float32 [N, 3, H, W], red first, as preprocessing says",
            "output": self.output,
            "preprocessing": self.preprocessing.to_dict(),
            "parameters_sha256": self.parameters_sha256,
            "weights": self.weights,
            "licence": self.licence,
            "versions": dict(self.versions),
            "files": {kind: dict(sizes) for kind, sizes in self.files.items()},
            "parity": {kind: dict(rows) for kind, rows in self.parity.items()},
            "class_names": [list(pair) for pair in zip(names.folders, names.names, strict=True)]
            if names
            else None,
        }
        text = yaml.safe_dump(
            values, sort_keys=False, allow_unicode=True, default_flow_style=None, width=110, explicit_end=True
        )
        (folder / SPEC).write_text(text, encoding="utf-8")


def read_artifact(folder: str | Path) -> Artifact:
    """Read inference.yml and see that the files it names are there in full.

    Raises ExportError for a folder that is missing, unfinished, damaged or of a newer format.
    """
    folder = Path(folder)
    again = "Export it again: tools/export_model.py."
    if not folder.is_dir():
        raise ExportError(
            f"There is no folder {folder}. Expected: a folder that tools/export_model.py has written."
        )
    try:
        text = (folder / SPEC).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(
            f"{folder} is no exported model: {SPEC} cannot be read ({error}). {again}"
        ) from error
    try:
        if not text.rstrip().endswith(END):
            raise ValueError(f"it does not end in {END!r}: a part is missing")
        values = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        version = values["format_version"]
        if type(version) is int and version > VERSION:
            raise ExportError(
                f"{folder} has format version {version}, this ppcls reads up to {VERSION}. Upgrade ppcls."
            )
        artifact = _from_dict(values)
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, ExportError):
            raise
        reason = f"no {error.args[0]}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise ExportError(f"{folder / SPEC} is damaged ({reason}). {again}") from error
    for name, size in ((name, size) for sizes in artifact.files.values() for name, size in sizes.items()):
        path = folder / name
        if not path.is_file():
            raise ExportError(f"{folder} is not whole: {name} is missing. Copy it in full, or: {again}")
        if path.stat().st_size != size:
            raise ExportError(
                f"{path} is not whole: expected {size} bytes. Received: {path.stat().st_size}. "
                f"Copy it again, or: {again}"
            )
    return artifact


def network_file(files: Mapping[str, Mapping[str, int]], kind: str) -> str | None:
    """The one of a format's files that an engine is given, or None where it isn't among them."""
    endings = {"paddle": (".json", ".pdmodel"), "onnx": (".onnx",), "openvino": (".xml",)}[kind]
    return next((name for name in files[kind] if name.endswith(endings)), None)


def _from_dict(values: dict[str, Any]) -> Artifact:
    pairs = values["class_names"]
    names = None
    if pairs is not None:
        folders, shown = zip(*((str(folder), str(name)) for folder, name in pairs), strict=True)
        names = ClassNames(names=shown, folders=folders)
        if len(names) != values["num_classes"]:
            raise ValueError(f"{len(names)} names for {values['num_classes']} classes")
    if values["output"] not in get_args(Output):
        raise ValueError(f"output {values['output']!r}")
    files = {
        kind: {str(Path(name).name): int(size) for name, size in sizes.items()}
        for kind, sizes in values["files"].items()
    }
    if not files or any(kind not in FORMATS or network_file(files, kind) is None for kind in files):
        raise ValueError(f"files {values['files']!r}")
    return Artifact(
        model=str(values["model"]),
        num_classes=int(values["num_classes"]),
        output=values["output"],
        preprocessing=Preprocessing.from_dict(values["preprocessing"]),
        class_names=names,
        parameters_sha256=str(values["parameters_sha256"]),
        weights=values["weights"],
        licence=values["licence"],
        versions=dict(values["versions"]),
        files=files,
        parity={kind: dict(rows) for kind, rows in values["parity"].items()},
    )
