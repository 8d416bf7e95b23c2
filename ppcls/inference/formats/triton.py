"""A model repository of Triton Inference Server: the ONNX file in the folders that the server expects, its
settings, and the classes' names. https://github.com/triton-inference-server/server, docs/user_guide."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ppcls.inference.formats.format import ExportOptions, Format
from ppcls.inference.formats.onnx import ONNX

if TYPE_CHECKING:
    from paddle import nn

REPOSITORY = "triton"  # the folder to name in `tritonserver --model-repository`
LABELS = "labels.txt"
MAX_BATCH_SIZE = 32  # images that the server may run together
MAX_QUEUE_SIZE = 64  # requests; more are rejected. Triton's own default is a queue without a limit
QUEUE_TIMEOUT = 1_000_000  # microseconds that a request may wait; its client may state a shorter time


def _write(model: "nn.Layer", folder: Path, options: ExportOptions) -> None:
    """Copy the ONNX file into MODEL/1, and write MODEL/config.pbtxt and MODEL/labels.txt."""
    home = folder / REPOSITORY / model.model_name
    (home / "1").mkdir(parents=True)
    for path in folder.glob("model.onnx*"):  # a large network has its weights in a file of their own
        shutil.copyfile(path, home / "1" / path.name)
    widths = [model.num_classes, model.fc.weight.shape[0]]
    outputs = dict(zip(_output_names(folder / "model.onnx"), widths, strict=False))
    (home / "config.pbtxt").write_text(config_text(model.model_name, outputs, options), encoding="utf-8")
    if options.labels:
        (home / LABELS).write_text("".join(f"{label}\n" for label in options.labels), encoding="utf-8")


def _output_names(file: Path) -> list[str]:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(file), settings, providers=["CPUExecutionProvider"])
    return [output.name for output in session.get_outputs()]


def config_text(name: str, outputs: dict[str, int], options: ExportOptions) -> str:
    """Return config.pbtxt, a ModelConfig of Triton as a protobuf's text. outputs: by name, the number of
    values that each has for an image; the first are the classes.

    An export of a fixed batch size takes no batches of the server's making.
    """
    batch = [] if options.batch_size is None else [options.batch_size]
    side = options.image_size or -1
    labels = f'\n    label_filename: "{LABELS}"' if options.labels else ""
    tensors = [_tensor("x", [*batch, 3, side, side])]
    tensors += [
        _tensor(output, [*batch, width], "" if number else labels)
        for number, (output, width) in enumerate(outputs.items())
    ]
    text = f"""name: "{name}"
backend: "onnxruntime"
max_batch_size: {0 if batch else MAX_BATCH_SIZE}
input [{tensors[0]}
]
output [{",".join(tensors[1:])}
]
"""
    if batch:
        return text
    return f"""{text}dynamic_batching {{
  default_queue_policy {{
    timeout_action: REJECT
    default_timeout_microseconds: {QUEUE_TIMEOUT}
    allow_timeout_override: true
    max_queue_size: {MAX_QUEUE_SIZE}
  }}
}}
"""


def _tensor(name: str, dims: Sequence[int], more: str = "") -> str:
    return f"""
  {{
    name: "{name}"
    data_type: TYPE_FP32
    dims: [ {", ".join(map(str, dims))} ]{more}
  }}"""


TRITON = Format(
    name="triton",
    endings=(".onnx",),
    checked_with=ONNX.checked_with,
    packages=ONNX.packages,
    made_from=lambda: ONNX.name,
    why_not=ONNX.why_not,
    write=_write,
    on_request=True,
)
