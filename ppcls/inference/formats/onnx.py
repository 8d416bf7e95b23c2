"""ONNX, by paddle2onnx from Paddle's program."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppcls.errors import ExportError
from ppcls.inference.formats.format import Format, is_paddle2, missing_packages, program_in

if TYPE_CHECKING:
    from paddle import nn

OPSET = 13
EMBEDDED_BYTES = 1 << 30  # larger weights have their own file; one protobuf holds less than 2 GiB
PROTOBUF_BYTES = 1 << 31


def converter_extra() -> str:
    """Return the extra of setup.py that brings paddle2onnx for this machine's Paddle."""
    return "onnx-paddle2" if is_paddle2() else "onnx"


def converter_problem(others: dict[str, str]) -> str | None:
    """Return why paddle2onnx cannot convert here, with the cure, or None. others: packages that the format
    needs besides, with the extras that bring them."""
    from importlib.metadata import version

    import paddle

    extra = converter_extra()
    needed = others | {"paddle2onnx": extra} | ({} if is_paddle2() else {"onnx": extra})
    if problem := missing_packages(needed):
        return problem
    if version("paddle2onnx").startswith("1.") != is_paddle2():
        return (
            f"paddle2onnx {version('paddle2onnx')} does not work with Paddle {paddle.__version__}: "
            f"pip install 'ppcls[{extra}]'."
        )
    return None


def _why_not(model: "nn.Layer") -> str | None:
    if problem := converter_problem({"onnxruntime": converter_extra()}):
        return problem
    size = 4 * sum(math.prod(parameter.shape) for parameter in model.state_dict().values())
    if is_paddle2() and size >= PROTOBUF_BYTES:
        return (
            f"the weights take {size / 2**30:.1f} GiB, and paddle2onnx 1.3 puts all into one protobuf, which "
            "holds less than 2 GiB. Use Paddle 3, or --formats paddle openvino."
        )
    return None


def _write(model: "nn.Layer", folder: Path, softmax: bool) -> None:
    import paddle2onnx

    program, path = program_in(folder), folder / "model.onnx"
    if program.suffix == ".pdmodel":
        paddle2onnx.export(
            str(program), str(program.with_suffix(".pdiparams")), str(path), opset_version=OPSET
        )
        return
    # paddle2onnx writes an empty file for weights of 2 GiB and more. Without a file of weights it returns
    # the graph alone, which names them as Paddle does. So they are added here, whatever their size.
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
    """Write the graph with its weights: in one ONNX file, or with the weights in a file beside it."""
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
    total = sum(4 * math.prod(parameter.shape) for parameter in parameters.values())
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


ONNX = Format(
    name="onnx",
    endings=(".onnx",),
    checked_with="onnxruntime",
    packages=("paddle2onnx", "onnx"),
    made_from=lambda: "paddle",
    why_not=_why_not,
    write=_write,
)
