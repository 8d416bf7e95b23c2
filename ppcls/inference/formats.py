"""Writing a network in each format: Paddle's program by paddle.jit, ONNX by paddle2onnx, OpenVINO's IR by
OpenVINO; and what keeps a format from being written here."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ppcls.errors import ExportError
from ppcls.inference.artifact import FORMATS
from ppcls.inference.engines import first_line

if TYPE_CHECKING:
    from paddle import nn

OPSET = 13
EMBEDDED_BYTES = 1 << 30  # larger weights lie beside the ONNX file; one protobuf holds less than 2 GiB
PROTOBUF_BYTES = 1 << 31


def writable_formats(model: "nn.Layer") -> tuple[list[str], dict[str, str]]:
    """The formats that can be written here, and why the others cannot."""
    reasons = {kind: why_not(kind, model) for kind in FORMATS}
    missing = {kind: reason for kind, reason in reasons.items() if reason is not None}
    return [kind for kind in FORMATS if kind not in missing], missing


def why_not(kind: str, model: "nn.Layer") -> str | None:
    """What keeps this format from being written on this machine, with the cure; None if nothing does."""
    import paddle

    if kind == "paddle":
        return None
    is_paddle2 = paddle.__version__.startswith("2.")
    extra = "onnx-paddle2" if is_paddle2 else "onnx"
    needed = ["openvino"] if kind == "openvino" else ["onnxruntime"]
    if not is_paddle2:
        needed += ["paddle2onnx", "onnx"]  # OpenVINO does not read Paddle 3's programs; it reads ONNX
    elif kind == "onnx":
        needed += ["paddle2onnx"]
    missing = [package for package in needed if find_spec(package) is None]
    if missing:
        extras = ",".join(sorted({"openvino" if package == "openvino" else extra for package in missing}))
        return f"{' and '.join(missing)} not installed: pip install 'ppcls[{extras}]'."
    if "paddle2onnx" in needed and version("paddle2onnx").startswith("1.") != is_paddle2:
        return (
            f"paddle2onnx {version('paddle2onnx')} does not go with Paddle {paddle.__version__}: "
            f"pip install 'ppcls[{extra}]'."
        )
    size = 4 * sum(int(np.prod(parameter.shape)) for parameter in model.state_dict().values())
    if kind == "onnx" and is_paddle2 and size >= PROTOBUF_BYTES:
        return (
            f"the weights take {size / 2**30:.1f} GiB, and paddle2onnx 1.3 puts all into one protobuf, which "
            "holds less than 2 GiB. Use Paddle 3, or --formats paddle openvino."
        )
    return None


def write_formats(
    model: "nn.Layer", folder: Path, formats: Sequence[str], softmax: bool, say: Callable[[str], None]
) -> dict[str, dict[str, int]]:
    """Write the formats; those that were only a step on the way are removed again."""
    import paddle

    writers: dict[str, Callable[[], None]] = {
        "paddle": lambda: _write_paddle(model, folder, softmax),
        "onnx": lambda: _write_onnx(model, folder),
        "openvino": lambda: _write_openvino(folder),
    }
    between = "onnx" if not paddle.__version__.startswith("2.") else "paddle"  # what OpenVINO converts from
    steps = ["paddle"]
    if "onnx" in formats or "openvino" in formats and between == "onnx":
        steps.append("onnx")
    if "openvino" in formats:
        steps.append("openvino")
    files: dict[str, dict[str, int]] = {}
    for kind in steps:
        say(f"writing {kind}")
        before = set(folder.iterdir())
        try:
            with quiet():
                writers[kind]()
        except Exception as error:  # each converter has exceptions of its own
            raise ExportError(f"Writing the format {kind} failed: {first_line(error)}") from error
        files[kind] = {path.name: path.stat().st_size for path in sorted(set(folder.iterdir()) - before)}
        empty = [name for name, size in files[kind].items() if size == 0]
        if empty or not files[kind]:
            raise ExportError(f"Writing the format {kind} gave {', '.join(empty) or 'no file'}, empty.")
    for kind in steps:
        if kind not in formats:
            for name in files.pop(kind):
                (folder / name).unlink()
    return files


def _write_paddle(model: "nn.Layer", folder: Path, softmax: bool) -> None:
    import paddle
    from paddle.static import InputSpec

    layers = [model, paddle.nn.Softmax()] if softmax else [model]
    exported = paddle.nn.Sequential(*layers)  # to_static changes the layer that it is given
    exported.eval()
    spec = [InputSpec([None, 3, None, None], "float32", name="x")]
    paddle.jit.save(
        paddle.jit.to_static(exported, input_spec=spec, full_graph=True), str(folder / "inference")
    )
    (folder / "inference.pdiparams.info").unlink(missing_ok=True)


def _program(folder: Path) -> Path:
    return next(path for name in ("inference.json", "inference.pdmodel") if (path := folder / name).exists())


def _write_onnx(model: "nn.Layer", folder: Path) -> None:
    import paddle2onnx

    program, path = _program(folder), folder / "model.onnx"
    if program.suffix == ".pdmodel":
        paddle2onnx.export(
            str(program), str(program.with_suffix(".pdiparams")), str(path), opset_version=OPSET
        )
        return
    # paddle2onnx writes an empty file for weights of 2 GiB and more. Without a file of weights it returns
    # the graph alone, which names them as Paddle does; so they are put in here, whatever their size.
    graph = paddle2onnx.export(
        str(program),
        str(folder / "none.pdiparams"),
        None,
        opset_version=OPSET,
        optimize_tool="none",  # the default may install packages
        enable_onnx_checker=False,
    )
    if not graph:
        raise ExportError("paddle2onnx returned no graph.")
    _attach_weights(graph, {parameter.name: parameter for parameter in model.state_dict().values()}, path)


def _attach_weights(graph: bytes, parameters: dict[str, Any], path: Path) -> None:
    """Write the graph with its weights as an ONNX file, or as one with a file of weights beside it."""
    import onnx
    import onnxoptimizer
    from onnx import TensorProto, helper, numpy_helper

    network = onnx.load_model_from_string(graph)
    images = network.graph.input[0]
    # the optimizer wants every name declared: the weights stand in as inputs
    for name, parameter in parameters.items():
        network.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, parameter.shape))
    network = onnxoptimizer.optimize(network, ["eliminate_identity", "eliminate_deadend"])
    del network.graph.input[:]
    network.graph.input.append(images)
    used = {name for node in network.graph.node for name in node.input} & parameters.keys()
    if len(used) != len(parameters):
        lost = sorted(parameters.keys() - used)
        raise ExportError(f"paddle2onnx's graph lacks {len(lost)} of the weights, {lost[0]} the first.")
    total = sum(4 * int(np.prod(parameter.shape)) for parameter in parameters.values())
    if total <= EMBEDDED_BYTES:
        for name, parameter in parameters.items():
            network.graph.initializer.append(numpy_helper.from_array(parameter.numpy(), name))
        onnx.save(network, path)
    else:
        data = path.with_name(path.name + ".data")
        with data.open("wb") as file:
            for name, parameter in parameters.items():
                array = parameter.numpy()
                file.write(b"\0" * (-file.tell() % 4096))  # so that engines can map it
                place = {"location": data.name, "offset": file.tell(), "length": array.nbytes}
                file.write(array.data)
                tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=array.shape)
                tensor.data_location = TensorProto.EXTERNAL
                for key, value in place.items():
                    tensor.external_data.add(key=key, value=str(value))
                network.graph.initializer.append(tensor)
        onnx.save(network, path)
    onnx.checker.check_model(str(path))


def _write_openvino(folder: Path) -> None:
    import openvino

    onnx_file = folder / "model.onnx"
    network = openvino.Core().read_model(str(onnx_file if onnx_file.exists() else _program(folder)))
    openvino.save_model(network, str(folder / "openvino.xml"), compress_to_fp16=False)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what converters write about themselves off the screen, and out of a notebook, whose streams
    are others; what they raise comes through."""
    streams = (sys.stdout, sys.stderr)
    for stream in streams:
        stream.flush()
    saved = os.dup(1), os.dup(2)
    with open(os.devnull, "w") as sink, redirect_stdout(sink), redirect_stderr(sink):
        os.dup2(sink.fileno(), 1)
        os.dup2(sink.fileno(), 2)
        try:
            yield
        finally:
            for stream in streams:
                stream.flush()
            for number, copy in enumerate(saved, 1):
                os.dup2(copy, number)
                os.close(copy)
