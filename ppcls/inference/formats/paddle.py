"""Paddle's own program, by paddle.jit: inference.json with Paddle 3, inference.pdmodel with Paddle 2."""

from pathlib import Path
from typing import TYPE_CHECKING

from ppcls.inference.formats.format import ExportOptions, Format

if TYPE_CHECKING:
    from paddle import Tensor, nn


def _why_not(model: "nn.Layer", options: ExportOptions) -> str | None:
    if options.fp16:
        return (
            "Paddle's engine runs no half-precision weights on a CPU. Leave out --fp16, or: --formats onnx."
        )
    return None


def _exported(model: "nn.Layer", options: ExportOptions) -> "nn.Layer":
    """Return a layer around the network with the export's outputs; to_static changes the layer that it is
    given."""
    from paddle import nn

    activation = nn.Sigmoid if options.activation == "sigmoid" else nn.Softmax

    class WithEmbeddings(nn.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.network = model
            self.finish = nn.Sequential(model.fc, activation()) if options.softmax else model.fc

        def forward(self, x: "Tensor") -> "tuple[Tensor, Tensor]":
            embeddings = self.network.embed(x)
            return self.finish(embeddings), embeddings

    if options.embeddings:
        return WithEmbeddings()
    return nn.Sequential(model, activation()) if options.softmax else nn.Sequential(model)


def _write(model: "nn.Layer", folder: Path, options: ExportOptions) -> None:
    import paddle
    from paddle.static import InputSpec

    exported = _exported(model, options)
    exported.eval()
    shape = [options.batch_size, 3, options.image_size, options.image_size]
    inputs = [InputSpec(shape, "float32", name="x")]
    program = paddle.jit.to_static(exported, input_spec=inputs, full_graph=True)
    paddle.jit.save(program, str(folder / "inference"))
    (folder / "inference.pdiparams.info").unlink(missing_ok=True)


PADDLE = Format(
    name="paddle",
    endings=(".json", ".pdmodel"),
    checked_with="paddle",
    packages=("paddlepaddle", "paddlepaddle-gpu"),
    made_from=lambda: None,
    why_not=_why_not,
    write=_write,
)
