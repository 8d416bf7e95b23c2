"""Paddle's own program, by paddle.jit: inference.json with Paddle 3, inference.pdmodel with Paddle 2."""

from pathlib import Path
from typing import TYPE_CHECKING

from ppcls.inference.formats.format import Format

if TYPE_CHECKING:
    from paddle import nn


def _write(model: "nn.Layer", folder: Path, softmax: bool) -> None:
    import paddle
    from paddle.static import InputSpec

    layers = [model, paddle.nn.Softmax()] if softmax else [model]
    exported = paddle.nn.Sequential(*layers)  # to_static changes the layer that it is given
    exported.eval()
    shape = [InputSpec([None, 3, None, None], "float32", name="x")]
    program = paddle.jit.to_static(exported, input_spec=shape, full_graph=True)
    paddle.jit.save(program, str(folder / "inference"))
    (folder / "inference.pdiparams.info").unlink(missing_ok=True)


PADDLE = Format(
    name="paddle",
    endings=(".json", ".pdmodel"),
    checked_with="paddle",
    packages=("paddlepaddle", "paddlepaddle-gpu"),
    made_from=lambda: None,
    why_not=lambda model: None,
    write=_write,
)
