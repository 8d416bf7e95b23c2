"""Export a network: write it in each format, run it, compare it with the network, then move it into place."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ppcls.data.opencv import cv2
from ppcls.data.transforms import Normalizer
from ppcls.errors import ConfigError, ExportError
from ppcls.inference.artifact import DESCRIPTION, Artifact
from ppcls.inference.engines import int8_engine, open_engine
from ppcls.inference.engines.eager import EagerEngine
from ppcls.inference.formats import FORMATS, INT8_FORMATS, files_in, write_formats
from ppcls.inference.formats.format import PLAIN, ExportOptions, quiet
from ppcls.inference.int8_forms import add_int8, int8_formats, require_int8
from ppcls.inference.predictions import probabilities_of
from ppcls.inference.versions import versions
from ppcls.weights import hash_parameters

if TYPE_CHECKING:
    from paddle import nn

TOLERANCE = 1e-4  # of ||a - b|| / ||b||; float32 engines differ by 1e-6 to 5e-6
ROUNDING = 1e-6  # relative change of the input that shows how far a network amplifies rounding
AMPLIFIED = 10  # times the change that it causes is tolerated too
FP16_TOLERANCE = 2e-2  # with weights in half precision; drawn ones gave 4e-4, those of Lite0 5e-3
ODD_SIZE = 199, 153  # pixels; every strided layer meets an odd and an even map in it
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # for the comparison, if the weights have none


class Reference(NamedTuple):
    """Outputs or embeddings of the network, and the relative difference to them that an export may have."""

    outputs: np.ndarray
    tolerance: float


def export_model(
    model: "nn.Layer",
    folder: Path,
    description: Artifact,
    *,
    formats: Sequence[str],
    threads: int,
    options: ExportOptions = PLAIN,
    overwrite: bool = False,
    log: Callable[[str], None] = print,
) -> Artifact:
    """Write `folder` atomically. Batch size, height and width of the images stay free, unless options fix
    them.

    description: of the network, as `eager.describe` returns it. The network is left in evaluation mode.
    Raises ExportError if the folder is in use, if a format cannot be written here, or if the exported network
    computes other outputs than the network; ConfigError for options that contradict the description. Raises
    ExportError behind a finished export if an int8 form is not good enough, which it then does not have.
    """
    require_free(folder, overwrite)
    options = replace(options, activation=description.activation)
    require_writable(model, description, formats, options)
    model.eval()
    artifact = _describe_export(model, description, options)
    if artifact.class_names is not None:
        options = replace(options, labels=artifact.class_names.names)
    batches = parity_batches(artifact)
    failed: list[str] = []
    with _aside(folder, overwrite) as aside:
        artifact = replace(artifact, files=write_formats(model, aside, formats, options, log))
        reference = _reference(EagerEngine(model), batches, options)

        def check(name: str) -> dict[str, float]:
            differences = _check_parity(aside, artifact, name, batches, reference, threads)
            figures = ", ".join(f"{value:.1e} at {size}" for size, value in differences.items())
            total = sum(artifact.files[name].values())
            log(f"{name}: {total / 1e6:.1f} MB; difference to the network {figures}")
            return differences

        parity = {name: check(name) for name in formats}
        if options.int8 is not None:
            names, missing = int8_formats(model, formats, options)
            for name, reason in missing.items():
                log(f"note: without {name}: {reason}")
            artifact, failed = add_int8(aside, artifact, options.int8, names, threads, log)
            parity |= {name: check(name) for name in artifact.int8}
        artifact = replace(artifact, parity=parity)
        artifact.write(aside)
    if failed:
        raise _disagreement(failed, folder)
    return artifact


def _describe_export(model: "nn.Layer", description: Artifact, options: ExportOptions) -> Artifact:
    """Return the description of the export, before its files are written."""
    return replace(
        description,
        output="probabilities" if options.softmax else "logits",
        embeddings=description.embeddings if options.embeddings else None,
        fp16=options.fp16,
        opset=options.opset,
        batch_size=options.batch_size,
        image_size=options.image_size,
        parameters_sha256=hash_parameters(model),
        versions=versions(),
    )


def _disagreement(failed: list[str], folder: Path) -> ExportError:
    return ExportError(
        f"{' and '.join(failed)} would not agree with the network often enough, so {folder} was written "
        "without; the lines above have the figures. Give more pictures like those of use, let accuracy "
        "control try (--int8-minutes 30), or accept less (--int8-agreement 0.9)."
    )


def require_writable(
    model: "nn.Layer", description: Artifact, formats: Sequence[str], options: ExportOptions
) -> None:
    """Raise ExportError for a format that cannot be written here with these options, ConfigError for options
    that contradict the formats or the network's preprocessing."""
    for name in formats:
        reason = FORMATS[name].why_not(model, options)
        if reason is not None:
            raise ExportError(f"The format {name} cannot be written here: {reason}")
    if options.int8 is not None:
        require_int8(model, description, formats, options)
    if options.opset is not None and not any(".onnx" in FORMATS[name].endings for name in formats):
        raise ConfigError(
            f"--opset is for the format onnx, which is not written. Received: --opset {options.opset}, "
            f"--formats {' '.join(formats)}"
        )
    if options.image_size not in (None, description.crop_size):
        raise ConfigError(
            f"--image-size must be the size that images are cropped to, {description.crop_size}. Received: "
            f"{options.image_size}. To crop to it: -o data.preprocessing.crop_size={options.image_size}"
        )


def require_free(folder: Path, overwrite: bool) -> None:
    """Raise ExportError if the folder holds something that an export would destroy."""
    if not folder.exists():
        return
    is_export = folder.is_dir() and (folder / DESCRIPTION).is_file()
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if not is_export:
        raise ExportError(f"{folder} exists and is not an exported model. Choose another --output.")
    if not overwrite:
        raise ExportError(
            f"{folder} holds an exported model. Choose another --output, or replace it: --overwrite."
        )


def parity_batches(artifact: Artifact) -> dict[str, np.ndarray]:
    """Draw pictures with as much detail at each scale as photographs have, normalised: float32 [2, 3, H, W]
    at the nominal size and at an odd one; or of the sizes that the export takes."""
    own = artifact.preprocessing
    normalize = Normalizer(own.mean, own.std) if own else Normalizer(MEAN, STD)
    random = np.random.RandomState(0)
    batches = {}
    nominal = artifact.crop_size, artifact.crop_size
    for height, width in [nominal] if artifact.image_size else [nominal, ODD_SIZE]:
        images = np.empty((artifact.batch_size or 2, 3, height, width), np.float32)
        for slot in images:
            picture = np.full((height, width, 3), 128, np.float32)
            for cells in (2, 4, 8, 16, 32, 64):
                noise = random.normal(0, 96 / np.sqrt(cells), (cells, cells, 3)).astype(np.float32)
                picture += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
            normalize(picture.clip(0, 255).astype(np.uint8), slot)
        batches[f"{height}x{width}"] = images
    return batches


@contextmanager
def _aside(folder: Path, overwrite: bool) -> Iterator[Path]:
    """Yield a new folder beside `folder`. It takes the place of `folder` if nothing fails, else it is
    removed."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield aside
        for path in files_in(aside):
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        aside.chmod(0o755)
        require_free(folder, overwrite)
        if folder.exists() and any(folder.iterdir()):
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
            os.replace(folder, old)
            try:
                os.replace(aside, folder)
            except OSError:
                os.replace(old, folder)
                raise
            shutil.rmtree(old)
        else:
            os.replace(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _by_name(size: str, outputs: tuple[np.ndarray, ...], embeddings: bool) -> dict[str, np.ndarray]:
    """Return the outputs by the names that the parity report gives them."""
    names = [size, f"{size} embeddings"] if embeddings else [size]
    return dict(zip(names, outputs, strict=False))


def _reference(
    eager: EagerEngine, batches: dict[str, np.ndarray], options: ExportOptions
) -> dict[str, Reference]:
    """Run the network on the pictures, and once more on pictures that differ by rounding alone.

    Some networks amplify rounding: one trained at 32 pixels returned logits of 6e4 at 199x153, which changed
    by 7e-5 when its input changed by 1e-6. Engines cannot agree better than the network agrees with itself.
    """
    random = np.random.RandomState(0)
    reference = {}
    for size, images in batches.items():
        noise = 1 + ROUNDING * random.standard_normal(images.shape)
        runs = [eager.run_all(x) for x in (images, (images * noise).astype(np.float32))]
        if options.softmax:
            runs = [(probabilities_of(logits, options.activation), *others) for logits, *others in runs]
        expected, moved = (_by_name(size, outputs, options.embeddings) for outputs in runs)
        for name, outputs in expected.items():
            if not np.isfinite(outputs).all():
                raise ExportError("The network returns values that are not finite: its weights are damaged.")
            least = FP16_TOLERANCE if options.fp16 else TOLERANCE
            tolerance = max(least, AMPLIFIED * _relative_difference(moved[name], outputs))
            reference[name] = Reference(outputs, tolerance)
    return reference


def _relative_difference(outputs: np.ndarray, expected: np.ndarray) -> float:
    if outputs.shape != expected.shape:
        return np.inf
    return float(np.linalg.norm(outputs - expected) / np.linalg.norm(expected))


def _check_parity(
    folder: Path,
    artifact: Artifact,
    name: str,
    batches: dict[str, np.ndarray],
    reference: dict[str, Reference],
    threads: int,
) -> dict[str, float]:
    """Return relative differences to the network's outputs. Raises ExportError for one above the tolerance.

    An int8 form has been judged by its user's pictures. A network of few classes may answer drawn pictures
    with logits near 0, to which any difference is large: of an int8 form they must only be finite.
    """
    only = replace(artifact, files={name: artifact.files[name]})
    is_int8 = name in INT8_FORMATS
    checked_with = int8_engine(name) if is_int8 else FORMATS[name].checked_with
    with quiet():
        engine = open_engine(folder, only, checked_with, threads=threads)
    outputs: dict[str, np.ndarray] = {}
    for size, images in batches.items():
        outputs |= _by_name(size, engine.run_all(images), artifact.embeddings is not None)
    differences = {}
    for what, (expected, float_tolerance) in reference.items():
        tolerance = np.inf if is_int8 else float_tolerance
        expectation = "a finite value" if is_int8 else f"at most {tolerance:.0e}"
        difference = _relative_difference(outputs[what], expected)
        # which class comes first; rounding may swap two
        is_judged = what in batches and not artifact.fp16 and not is_int8
        agrees = not is_judged or np.array_equal(outputs[what].argmax(axis=1), expected.argmax(axis=1))
        if not np.isfinite(difference) or difference > tolerance or not agrees:
            raise ExportError(
                f"The exported {name} model does not compute what the network computes: at {what} "
                f"{checked_with} differs by {difference:.1e} ({expectation} is expected)"
                f"{'' if agrees else ', and another class comes first'}. Nothing was written. Try another "
                "version of the converter or of the engine, or leave this format out: --formats."
            )
        differences[what] = difference
    return differences
