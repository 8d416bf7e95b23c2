"""Add int8 forms to an export: those that it can have here, and how fast they are."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ppcls.errors import ConfigError, ExportError
from ppcls.inference.artifact import Artifact
from ppcls.inference.engines import int8_engine
from ppcls.inference.fastest import measure
from ppcls.inference.formats import INT8_FORMATS
from ppcls.inference.formats.format import ExportOptions, Int8Options, missing_packages
from ppcls.inference.formats.onnx import OPSET, PROTOBUF_BYTES
from ppcls.inference.int8 import Ladder, Log

if TYPE_CHECKING:
    from paddle import nn

LEAST_OPSET = 13  # of a scale for each channel


def int8_formats(
    model: "nn.Layer", formats: Sequence[str], options: ExportOptions
) -> tuple[list[str], dict[str, str]]:
    """Return the int8 forms that can be made of these formats here, and for the others the reason why not."""
    size = 4 * sum(math.prod(parameter.shape) for parameter in model.state_dict().values())
    missing = {}
    for name, source in INT8_FORMATS.items():
        packages = {"nncf": "int8"} | ({"onnx": "int8"} if source.name == "onnx" else {})
        if source.name not in formats:
            wider = " ".join((*formats, source.name))
            missing[name] = f"it is made from the format {source.name}. Add it: --formats {wider}."
        elif reason := missing_packages(packages):
            missing[name] = reason
        elif source.name == "onnx" and size >= PROTOBUF_BYTES:
            missing[name] = (
                f"the weights take {size / 2**30:.1f} GiB, and NNCF holds ONNX in one protobuf, which takes "
                "less than 2. OpenVINO's int8 form has no such limit: --formats openvino."
            )
        elif source.name == "onnx" and (options.opset or OPSET) < LEAST_OPSET:
            missing[name] = f"it needs --opset {LEAST_OPSET} or more."
    return [name for name in INT8_FORMATS if name not in missing], missing


def require_int8(
    model: "nn.Layer", description: Artifact, formats: Sequence[str], options: ExportOptions
) -> None:
    """Raise ExportError if no int8 form can be made here, ConfigError for a network without preprocessing."""
    names, missing = int8_formats(model, formats, options)
    if not names:
        reasons = "".join(f"\n  {name}: {reason}" for name, reason in missing.items())
        raise ExportError(f"--int8: no int8 form can be made here.{reasons}")
    if description.preprocessing is None:
        raise ConfigError("--int8 needs the preprocessing of the pictures.")


def add_int8(
    folder: Path, artifact: Artifact, options: Int8Options, names: Sequence[str], threads: int, log: Log
) -> tuple[Artifact, list[str]]:
    """Write the int8 forms `names` into the folder of a float export that is being made.

    Returns the artifact with those that are good enough, and the names of the others.
    """
    from importlib.metadata import version

    ladder = Ladder(folder, artifact, options, threads, log)
    processors = "processors with VNNI or AMX" if options.made_for == "vnni" else "any processor"
    log(f"int8 for {processors}; half of the pictures calibrate, the other half tests, and in turn")
    pictures = ladder.draw(names[0])
    failed = []
    for name in names:
        try:
            report = ladder.climb(name, pictures)
        except ExportError as error:
            log(f"note: without {name}: {error}")
            report = None
        if report is None:
            ladder.remove(name)
            failed.append(name)
            continue
        reports = {**ladder.artifact.int8, name: report}
        versions = {**ladder.artifact.versions, "nncf": version("nncf")}
        ladder = replace(ladder, artifact=replace(ladder.with_form(name), int8=reports, versions=versions))
    return ladder.artifact, failed


def log_speed(folder: Path, artifact: Artifact, threads: int, log: Log) -> None:
    """Log the time of an image for each int8 form, and for the float form that it was made from."""
    for name in artifact.int8:
        engines = [INT8_FORMATS[name].checked_with, int8_engine(name)]
        times, _ = measure(folder, artifact, engines, threads=threads, log=log)
        if len(times) == 2:
            float_time, int8_time = (times[engine] for engine in engines)
            log(
                f"{name}: {1000 * int8_time:.2f} ms an image on this machine, in float "
                f"{1000 * float_time:.2f}: {float_time / int8_time:.2f} times as fast"
            )
