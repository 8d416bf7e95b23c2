"""OpenVINO's IR, converted by OpenVINO: from ONNX with Paddle 3, whose programs it cannot read, else from
Paddle's program."""

from pathlib import Path
from typing import TYPE_CHECKING

from ppcls.inference.formats.format import ExportOptions, Format, is_paddle2, missing_packages, program_in
from ppcls.inference.formats.onnx import converter_problem

if TYPE_CHECKING:
    from paddle import nn


def _why_not(model: "nn.Layer", options: ExportOptions) -> str | None:
    needed = {"openvino": "openvino"}
    return missing_packages(needed) if is_paddle2() else converter_problem(needed)


def _write(model: "nn.Layer", folder: Path, options: ExportOptions) -> None:
    import openvino

    source = folder / "model.onnx"
    network = openvino.Core().read_model(str(source if source.exists() else program_in(folder)))
    openvino.save_model(network, str(folder / "openvino.xml"), compress_to_fp16=options.fp16 and is_paddle2())


OPENVINO = Format(
    name="openvino",
    endings=(".xml",),
    checked_with="openvino",
    packages=("openvino",),
    made_from=lambda: "paddle" if is_paddle2() else "onnx",
    why_not=_why_not,
    write=_write,
)
