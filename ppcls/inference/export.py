"""From a network to an exported model: written in each format, run, compared with the network, then moved
into place."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ppcls.data.class_names import ClassNames
from ppcls.data.opencv import cv2
from ppcls.data.transforms import Normalizer
from ppcls.errors import ExportError
from ppcls.inference.artifact import SPEC, Artifact
from ppcls.inference.engines import EagerEngine, open_engine
from ppcls.inference.formats import quiet, why_not, write_formats
from ppcls.inference.versions import versions
from ppcls.preprocessing import Preprocessing
from ppcls.weights import WeightsInfo, hash_parameters

if TYPE_CHECKING:
    from paddle import nn

TOLERANCE = 1e-4  # of ||a - b|| / ||b||; float32 engines differ by 1e-6 to 5e-6
ODD_SIZE = 199, 153  # every strided layer meets an odd and an even map in it
CHECKED_WITH = {"paddle": "paddle", "onnx": "onnxruntime", "openvino": "openvino"}


def export_model(
    model: "nn.Layer",
    folder: Path,
    *,
    preprocessing: Preprocessing,
    class_names: ClassNames | None,
    info: WeightsInfo | None,
    formats: Sequence[str],
    threads: int,
    softmax: bool = False,
    overwrite: bool = False,
    say: Callable[[str], None] = print,
) -> Artifact:
    """Write `folder`, whole or not at all. Batch, height and width of the images stay free.

    The network is left in evaluation mode. Raises ExportError where the folder is in use, a format cannot
    be written here, or what was written computes otherwise than the network.
    """
    require_free(folder, overwrite)
    for kind in formats:
        reason = why_not(kind, model)
        if reason is not None:
            raise ExportError(f"The format {kind} cannot be written here: {reason}")
    model.eval()
    artifact = Artifact(
        model=model.model_name,
        num_classes=model.num_classes,
        output="probabilities" if softmax else "logits",
        preprocessing=preprocessing,
        class_names=class_names,
        parameters_sha256=hash_parameters(model),
        weights=f"{info.source}; sha256 {info.sha256}" if info else None,
        licence=info.licence if info else None,
        versions=versions(),
    )
    batches = parity_batches(preprocessing)
    with _aside(folder, overwrite) as aside:
        files = write_formats(model, aside, formats, softmax, say)
        artifact = replace(artifact, files=files)
        reference = _reference(model, batches, softmax)
        parity = {}
        for kind in formats:
            parity[kind] = _check_parity(aside, artifact, kind, batches, reference, threads)
            figures = ", ".join(f"{value:.1e} at {size}" for size, value in parity[kind].items())
            total = sum(files[kind].values())
            say(f"{kind}: {total / 1e6:.1f} MB; difference to the network {figures}")
        artifact = replace(artifact, parity=parity)
        artifact.write(aside)
    return artifact


def require_free(folder: Path, overwrite: bool) -> None:
    """Raises ExportError where the folder holds something that an export would destroy."""
    if not folder.exists():
        return
    is_export = folder.is_dir() and (folder / SPEC).is_file()
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if not is_export:
        raise ExportError(f"{folder} is there and is no exported model. Choose another --output.")
    if not overwrite:
        raise ExportError(
            f"{folder} holds an exported model. Choose another --output, or replace it: --overwrite."
        )


def parity_batches(spec: Preprocessing) -> dict[str, np.ndarray]:
    """Pictures with as much detail at each scale as photographs have, normalised: float32 [2, 3, H, W] at
    the nominal size and at an odd one."""
    normalize = Normalizer(spec.mean, spec.std)
    random = np.random.RandomState(0)
    batches = {}
    for height, width in ((spec.crop_size, spec.crop_size), ODD_SIZE):
        images = np.empty((2, 3, height, width), np.float32)
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
    """A new folder beside `folder` that takes its place if all goes well, and is removed otherwise."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield aside
        for path in aside.iterdir():
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


def _reference(model: "nn.Layer", batches: dict[str, np.ndarray], softmax: bool) -> dict[str, np.ndarray]:
    from ppcls.inference.classify import softmax as to_probabilities

    eager = EagerEngine(model)
    reference = {}
    for size, images in batches.items():
        logits = eager.run(images)
        if not np.isfinite(logits).all():
            raise ExportError("The network returns values that are not finite: its weights are damaged.")
        reference[size] = to_probabilities(logits) if softmax else logits
    return reference


def _check_parity(
    folder: Path,
    artifact: Artifact,
    kind: str,
    batches: dict[str, np.ndarray],
    reference: dict[str, np.ndarray],
    threads: int,
) -> dict[str, float]:
    """Relative differences to the network's outputs. Raises ExportError for one above TOLERANCE."""
    only = replace(artifact, files={kind: artifact.files[kind]})
    with quiet():
        engine = open_engine(folder, only, CHECKED_WITH[kind], threads=threads)
    differences = {}
    for size, images in batches.items():
        outputs, expected = engine.run(images), reference[size]
        difference = float(np.linalg.norm(outputs - expected) / np.linalg.norm(expected))
        agrees = np.array_equal(outputs.argmax(axis=1), expected.argmax(axis=1))
        if not difference <= TOLERANCE or not agrees:
            raise ExportError(
                f"The exported {kind} model computes otherwise than the network: at {size} pixels "
                f"{CHECKED_WITH[kind]} differs by {difference:.1e} (at most {TOLERANCE:.0e} is expected)"
                f"{'' if agrees else ', and another class comes first'}. Nothing was left. Try another "
                "version of the converter or of the engine, or leave this format out: --formats."
            )
        differences[size] = difference
    return differences
