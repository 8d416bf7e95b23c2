"""An exported network: a folder with its files in one or more formats, and inference.yml with all that is
needed to run it. Imports no Paddle."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

import yaml

from ppcls.architectures import MODELS
from ppcls.commands import command_line
from ppcls.config import Activation
from ppcls.config_files import DESCRIPTION
from ppcls.data.class_names import ClassNames
from ppcls.errors import ExportError, why_unreadable
from ppcls.inference.calibration import Calibration
from ppcls.inference.formats import FORMATS, INT8_FORMATS
from ppcls.preprocessing import Preprocessing

VERSION = 2  # of exports with a sigmoid or int8 forms; others stay readable for versions that know 1 only
SIZES = ("embeddings", "opset", "batch_size", "image_size")  # keys of the exports that have them
END = "..."  # YAML's end of a document: without it, a file cut off between two lines would look complete
Output = Literal["logits", "probabilities"]
FILTERS = {  # of each interpolation: names in cv2 and in PIL.Image.Resampling
    "bilinear": ("INTER_LINEAR", "BILINEAR"),
    "bicubic": ("INTER_CUBIC", "BICUBIC"),
    "area": ("INTER_AREA", "BOX"),
    "lanczos": ("INTER_LANCZOS4", "LANCZOS"),
}


@dataclass(frozen=True)
class Int8Report:
    """Metadata of an int8 form of a network.

    rung: of the ladder in ppcls.inference.int8, by its words. made_for: see Int8Options. agreement: share of
    the tested pictures for which the same class came first as in float, interval: its 95% confidence
    interval. distance: of the logits, ||a - b|| / ||b - mean of b over the pictures||. calibrated, tested:
    numbers of pictures. float_layers: names of convolutions and matrix products that stay in float.
    """

    rung: str
    made_for: str
    agreement: float
    interval: tuple[float, float]
    wanted: float
    distance: float
    calibrated: int
    tested: int
    float_layers: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"interval": list(self.interval), "float_layers": list(self.float_layers)}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "Int8Report":
        low, high = values["interval"]
        layers = tuple(map(str, values["float_layers"]))
        return Int8Report(**values | {"interval": (float(low), float(high)), "float_layers": layers})


@dataclass(frozen=True)
class Artifact:
    """The description of a network to run, as inference.yml holds it; an eager network has no files.

    output: of the network, float32 [N, num_classes]; "probabilities" with the softmax inside. preprocessing:
    None if the weights have none, which is possible only for an export in the cache; then `assumed` is that
    of the published weights of the same kind. parameters_sha256: `weights.hash_parameters` of the network, ""
    for an eager one. weights: their source and SHA-256. notes: of the weights, for the user. files: each
    format's files with their sizes in bytes. parity: for each format the relative difference ||a - b|| /
    ||b|| to the eager network, by the size of the images; "64x64 embeddings" is that of the embeddings.
    embeddings: how many values one has, the second output float32 [N, embeddings]; None for an export without
    it. calibration: how sure it is, None if that was not measured. fp16, opset, batch_size, image_size: see
    ExportOptions. activation: makes probabilities of logits. int8: of each int8 form.
    """

    model: str
    num_classes: int
    output: Output
    preprocessing: Preprocessing | None
    class_names: ClassNames | None
    parameters_sha256: str
    weights: str | None
    license: str | None
    versions: Mapping[str, str]
    notes: tuple[str, ...] = ()
    files: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    parity: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    assumed: Preprocessing | None = None
    embeddings: int | None = None
    calibration: Calibration | None = None
    fp16: bool = False
    opset: int | None = None
    batch_size: int | None = None
    image_size: int | None = None
    activation: Activation = "softmax"
    int8: Mapping[str, Int8Report] = field(default_factory=dict)

    @property
    def precision(self) -> str:
        """The precision of the weights, as a calibration states it."""
        return "float16" if self.fp16 else "float32"

    @property
    def crop_size(self) -> int:
        """Size in pixels of the images that the network was made for."""
        return self.preprocessing.crop_size if self.preprocessing else MODELS[self.model].image_size

    @property
    def input_shape(self) -> tuple[int | None, ...]:
        """Shape of the input, None where any number is taken."""
        return self.batch_size, 3, self.image_size, self.image_size

    def write(self, folder: Path) -> None:
        """Write inference.yml. The key of the license is "licence", as in all files of this project."""
        names = self.class_names
        values = {
            "format_version": VERSION if self.int8 or self.activation != "softmax" else 1,
            "model": self.model,
            "num_classes": self.num_classes,
            "input": f"x: float32 {shape_text(self.input_shape)}, red first, as preprocessing says",
            "output": self.output,
            **({} if self.activation == "softmax" else {"activation": self.activation}),
            **{key: getattr(self, key) for key in ("fp16", *SIZES) if getattr(self, key)},
            "preprocessing": self.preprocessing and self.preprocessing.to_dict(),
            "steps": self.preprocessing and steps_of(self.preprocessing),
            "parameters_sha256": self.parameters_sha256,
            "weights": self.weights,
            "licence": self.license,
            **({"notes": list(self.notes)} if self.notes else {}),
            **({"assumed": self.assumed.to_dict()} if self.assumed and not self.preprocessing else {}),
            **({"calibration": self.calibration.to_dict()} if self.calibration else {}),
            "versions": dict(self.versions),
            "files": {kind: dict(sizes) for kind, sizes in self.files.items()},
            "parity": {kind: dict(rows) for kind, rows in self.parity.items()},
            **({"int8": {kind: report.to_dict() for kind, report in self.int8.items()}} if self.int8 else {}),
            "class_names": [list(pair) for pair in names.to_pairs()] if names else None,
        }
        text = yaml.safe_dump(
            values, sort_keys=False, allow_unicode=True, default_flow_style=None, width=110, explicit_end=True
        )
        (folder / DESCRIPTION).write_text(text, encoding="utf-8")


def shape_text(shape: Sequence[int | None]) -> str:
    """Return a shape of images as text, with letters where any number is taken: [N, 3, 224, 224]."""
    return f"[{', '.join(str(size or free) for size, free in zip(shape, 'N3HW', strict=True))}]"


def steps_of(preprocessing: Preprocessing) -> list[dict[str, Any]]:
    """Return what happens to an image's file, step by step, for programs that do without ppcls."""
    library, place = ("Pillow", 1) if preprocessing.antialias else ("OpenCV", 0)
    return [
        {"name": "decode", "to": "uint8 [H, W, 3], red first, turned upright as EXIF states"},
        {
            "name": "resize",
            "short_side": preprocessing.resize_short,
            "long_side": "round(long * (short_side / short)), half to even",
            "library": library,
            "filter": FILTERS[preprocessing.interpolation][place],
            "to": "uint8",
        },
        {
            "name": "center_crop",
            "size": preprocessing.crop_size,
            "top": "(H - size) // 2",
            "left": "(W - size) // 2",
        },
        {"name": "scale", "factor": 1 / 255, "to": "float32"},
        {
            "name": "normalize",
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
            "formula": "(x - mean) / std",
        },
        {"name": "transpose", "to": "float32 [3, size, size]"},
    ]


def read_artifact(folder: str | Path) -> Artifact:
    """Read inference.yml and check that the files it names are there in full.

    Raises ExportError for a folder that is missing, unfinished, damaged or of a newer format.
    """
    folder = Path(folder)
    exporter = command_line("export")
    again = f"Export it again: {exporter}."
    if not folder.is_dir():
        raise ExportError(f"There is no folder {folder}. Expected: a folder that `{exporter}` has written.")
    try:
        text = (folder / DESCRIPTION).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ExportError(
            f"{folder} is not an exported model: it has no {DESCRIPTION}. Expected: a folder that "
            f"`{exporter}` has written."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(
            f"{folder} is not an exported model: {DESCRIPTION} cannot be read ({error}). {again}"
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
        raise ExportError(f"{folder / DESCRIPTION} is damaged ({why_unreadable(error)}). {again}") from error
    for name, size in ((name, size) for sizes in artifact.files.values() for name, size in sizes.items()):
        path = folder / name
        if not path.is_file():
            raise ExportError(f"{folder} is not complete: {name} is missing. Copy it in full, or: {again}")
        if path.stat().st_size != size:
            raise ExportError(
                f"{path} is not complete: expected {size} bytes. Received: {path.stat().st_size}. "
                f"Copy it again, or: {again}"
            )
    return artifact


def _from_dict(values: dict[str, Any]) -> Artifact:
    """Return the artifact in the values of inference.yml. Raises ValueError, KeyError or TypeError."""
    pairs = values["class_names"]
    names = None
    if pairs is not None:
        names = ClassNames.of_pairs((str(folder), str(name)) for folder, name in pairs)
        if len(names) != values["num_classes"]:
            raise ValueError(f"{len(names)} names for {values['num_classes']} classes")
    if values["output"] not in get_args(Output):
        raise ValueError(f"output {values['output']!r}")
    if values.get("activation", "softmax") not in get_args(Activation):
        raise ValueError(f"activation {values['activation']!r}")
    files = {
        kind: {_inside(str(name)): int(size) for name, size in sizes.items()}
        for kind, sizes in values["files"].items()
    }
    if not files or not all(_has_network(name, sizes) for name, sizes in files.items()):
        raise ValueError(f"files {values['files']!r}")
    preprocessing = values["preprocessing"]
    return Artifact(
        model=str(values["model"]),
        num_classes=int(values["num_classes"]),
        output=values["output"],
        preprocessing=None if preprocessing is None else Preprocessing.from_dict(preprocessing),
        assumed=Preprocessing.from_dict(values["assumed"]) if values.get("assumed") else None,
        class_names=names,
        parameters_sha256=str(values["parameters_sha256"]),
        weights=values["weights"],
        license=values["licence"],
        versions=dict(values["versions"]),
        notes=tuple(map(str, values.get("notes", ()))),
        files=files,
        parity={kind: dict(rows) for kind, rows in values["parity"].items()},
        calibration=Calibration.from_dict(values["calibration"]) if values.get("calibration") else None,
        fp16=bool(values.get("fp16")),
        activation=values.get("activation", "softmax"),
        int8={kind: Int8Report.from_dict(report) for kind, report in values.get("int8", {}).items()},
        **{key: int(values[key]) for key in SIZES if key in values},
    )


def _inside(name: str) -> str:
    """Return the path of a file of the export. Raises ValueError for one that leads out of its folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name:
        raise ValueError(f"files {name!r}")
    return name


def _has_network(name: str, files: Mapping[str, int]) -> bool:
    """Return whether this is a format's name, and the file that engines open is among its files."""
    known = FORMATS | INT8_FORMATS
    return name in known and any(file.endswith(known[name].endings) for file in files)
