"""ONNX, by paddle2onnx from Paddle's program."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppcls.errors import ExportError
from ppcls.inference.formats.format import ExportOptions, Format, is_paddle2, missing_packages, program_in

if TYPE_CHECKING:
    import numpy as np
    from paddle import nn

OPSET = 13
OPSETS = {
    False: range(7, 22),
    True: range(7, 20),
}  # by is_paddle2(); paddle2onnx aborts the process for others
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


def _why_not(model: "nn.Layer", options: ExportOptions) -> str | None:
    if problem := converter_problem({"onnxruntime": converter_extra()}):
        return problem
    opsets = OPSETS[is_paddle2()]
    if options.opset is not None and options.opset not in opsets:
        return f"--opset must be from {opsets[0]} to {opsets[-1]}. Received: {options.opset}"
    if options.fp16 and is_paddle2():
        return "half-precision weights in ONNX need Paddle 3. Leave out --fp16, or: --formats openvino."
    size = 4 * sum(math.prod(parameter.shape) for parameter in model.state_dict().values())
    if is_paddle2() and size >= PROTOBUF_BYTES:
        return (
            f"the weights take {size / 2**30:.1f} GiB, and paddle2onnx 1.3 puts all into one protobuf, which "
            "holds less than 2 GiB. Use Paddle 3, or --formats paddle openvino."
        )
    return None


def _write(model: "nn.Layer", folder: Path, options: ExportOptions) -> None:
    import paddle2onnx

    program, path, opset = program_in(folder), folder / "model.onnx", options.opset or OPSET
    if program.suffix == ".pdmodel":
        paddle2onnx.export(
            str(program), str(program.with_suffix(".pdiparams")), str(path), opset_version=opset
        )
        return
    # paddle2onnx writes an empty file for weights of 2 GiB and more. Without a file of weights it returns
    # the graph alone, which names them as Paddle does. So they are added here, whatever their size.
    graph = paddle2onnx.export(
        str(program),
        str(folder / "none.pdiparams"),
        None,
        opset_version=opset,
        optimize_tool="none",  # the default may install packages
        enable_onnx_checker=False,
    )
    if not graph:
        raise ExportError("paddle2onnx returned no graph.")
    parameters = {parameter.name: parameter for parameter in model.state_dict().values()}
    _attach_weights(graph, parameters, path, options.fp16)


def _attach_weights(graph: bytes, parameters: dict[str, Any], path: Path, fp16: bool) -> None:
    """Write the graph with its weights: in one ONNX file, or with the weights in a file beside it. fp16: all
    but vectors, such as batch norms' variances, are stored in half precision, and the graph casts them to
    float32."""
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
    for name, parameter in parameters.items():
        if _is_halved(parameter, fp16):
            cast = helper.make_node("Cast", [f"{name}.fp16"], [name], to=TensorProto.FLOAT)
            network.graph.node.insert(0, cast)
    total = sum(4 * math.prod(parameter.shape) for parameter in parameters.values())
    if total <= EMBEDDED_BYTES:
        for name, parameter in parameters.items():
            network.graph.initializer.append(numpy_helper.from_array(*_stored(name, parameter, fp16)))
        onnx.save(network, path)
    else:
        data = path.with_name(path.name + ".data")
        with data.open("wb") as file:
            for name, parameter in parameters.items():
                array, stored_as = _stored(name, parameter, fp16)
                file.write(b"\0" * (-file.tell() % 4096))  # so that engines can map it
                place = {"location": data.name, "offset": file.tell(), "length": array.nbytes}
                file.write(array.data)
                kind = helper.np_dtype_to_tensor_dtype(array.dtype)
                tensor = TensorProto(name=stored_as, data_type=kind, dims=array.shape)
                tensor.data_location = TensorProto.EXTERNAL
                for key, value in place.items():
                    tensor.external_data.add(key=key, value=str(value))
                network.graph.initializer.append(tensor)
        onnx.save(network, path)
    onnx.checker.check_model(str(path))


def _is_halved(parameter: Any, fp16: bool) -> bool:
    return fp16 and len(parameter.shape) > 1


def _stored(name: str, parameter: Any, fp16: bool) -> "tuple[np.ndarray, str]":
    """Return a parameter as it is stored, and its name."""
    if _is_halved(parameter, fp16):
        return parameter.numpy().astype("float16"), f"{name}.fp16"
    return parameter.numpy(), name


ONNX = Format(
    name="onnx",
    endings=(".onnx",),
    checked_with="onnxruntime",
    packages=("paddle2onnx", "onnx"),
    made_from=lambda: "paddle",
    why_not=_why_not,
    write=_write,
)
