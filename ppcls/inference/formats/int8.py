"""Operations on the exported networks that NNCF quantises: OpenVINO's IR, and ONNX."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

CONVOLUTIONS = {"Convolution", "GroupConvolution", "Conv"}
PRODUCTS = CONVOLUTIONS | {"MatMul", "Gemm"}  # the layers that have weights
ACTIVATIONS = {"Clamp", "Clip", "Relu", "Sigmoid", "Swish"}
SCALES = {"Add", "Multiply", "Mul"}
INPUT = "x"  # name of the images


Run = Callable[[np.ndarray], np.ndarray]  # images float32 [N, 3, H, W] to the first output


class Node(NamedTuple):
    """An operation of a network's graph. followers: names of those that read its outputs. is_affine: a batch
    norm, or a sum or product with a constant. has_int8_weights: a layer that NNCF has quantised."""

    name: str
    kind: str
    followers: Sequence[str]
    is_affine: bool = False
    has_int8_weights: bool = False


@dataclass(frozen=True)
class Quantizer:
    """The operations on one kind of network.

    file: of the int8 form. read: returns the float network of a folder. nodes: returns its graph. save:
    writes a network. open: of a network that NNCF gives to accuracy control, returns what runs it.
    """

    file: str
    read: Callable[[Path], Any]
    nodes: Callable[[Any], list[Node]]
    save: Callable[[Any, Path], None]
    open: Callable[[Any], Run]

    def linear_layers(self, network: Any) -> list[str]:
        """Return the names of the convolutions behind which no activation stands: the projections at the end
        of blocks, whose values of both signs are summed over many blocks."""
        nodes = {node.name: node for node in self.nodes(network)}

        def is_linear(node: Node) -> bool:
            while len(node.followers) == 1 and nodes[node.followers[0]].is_affine:
                node = nodes[node.followers[0]]
            return not any(nodes[name].kind in ACTIVATIONS for name in node.followers)

        return [node.name for node in nodes.values() if node.kind in CONVOLUTIONS and is_linear(node)]

    def float_layers(self, network: Any) -> tuple[str, ...]:
        """Return the names of the layers with weights in float."""
        nodes = self.nodes(network)
        return tuple(node.name for node in nodes if node.kind in PRODUCTS and not node.has_int8_weights)


def _read_openvino(folder: Path) -> Any:
    import openvino
    from openvino._offline_transformations import apply_moc_transformations

    network = openvino.Core().read_model(str(folder / "openvino.xml"))
    names = [layer.get_friendly_name() for layer in _convolutions(network)]
    # as OpenVINO's own converter does it: folds batch norms into weights, and makes Clamp of Min and Max
    apply_moc_transformations(network, cf=False)
    layers = _convolutions(network)
    if len(layers) == len(names):  # it renames them by a counter of the process
        for layer, name in zip(layers, names, strict=True):
            layer.set_friendly_name(name)
    return network


def _convolutions(network: Any) -> list[Any]:
    return [node for node in network.get_ordered_ops() if node.get_type_name() in CONVOLUTIONS]


def _openvino_nodes(network: Any) -> list[Node]:
    nodes = []
    for node in network.get_ordered_ops():
        kind = node.get_type_name()
        inputs = [value.get_node() for value in node.input_values()]
        readers = [reader.get_node() for output in node.outputs() for reader in output.get_target_inputs()]
        is_scale = kind in SCALES and any(put.get_type_name() == "Constant" for put in inputs)
        nodes.append(
            Node(
                node.get_friendly_name(),
                kind,
                [reader.get_friendly_name() for reader in readers],
                is_scale or kind == "BatchNormInference",
                kind in PRODUCTS and _is_int8(inputs[1]),
            )
        )
    return nodes


def _is_int8(weights: Any) -> bool:
    """Return whether weights are quantised: an int8 constant, behind a conversion and a scale."""
    if weights.get_type_name() in ("Constant", "FakeQuantize"):
        return weights.get_type_name() == "FakeQuantize" or weights.get_element_type().size == 1
    return any(_is_int8(value.get_node()) for value in weights.input_values()[:1])


def _save_openvino(network: Any, path: Path) -> None:
    import openvino

    openvino.save_model(network, str(path), compress_to_fp16=False)


def _read_onnx(folder: Path) -> Any:
    import onnx
    import onnxruntime

    # Fold batch norms and biases: what stands between a layer and its scale keeps an engine from int8.
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 4
    with TemporaryDirectory() as aside:
        options.optimized_model_filepath = str(Path(aside) / "folded.onnx")
        onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
        network = onnx.load(options.optimized_model_filepath)
    for number, node in enumerate(network.graph.node):
        node.name = node.name or f"{node.op_type} {number}"
    return network


def _onnx_nodes(network: Any) -> list[Node]:
    graph = network.graph
    readers: dict[str, list[str]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node.name)
    constants = {tensor.name for tensor in graph.initializer}
    scaled = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    return [
        Node(
            node.name,
            node.op_type,
            [reader for name in node.output for reader in readers.get(name, [])],
            node.op_type == "BatchNormalization"
            or (node.op_type in SCALES and not constants.isdisjoint(node.input)),
            node.op_type in PRODUCTS and node.input[1] in scaled,
        )
        for node in graph.node
    ]


def _save_onnx(network: Any, path: Path) -> None:
    import onnx

    onnx.save(network, str(path))


def _open_onnx(network: Any) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(network.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {INPUT: images})[0]


OPENVINO_QUANTIZER = Quantizer(
    file="openvino-int8.xml",
    read=_read_openvino,
    nodes=_openvino_nodes,
    save=_save_openvino,
    open=lambda network: lambda images: network({INPUT: images})[0],
)
ONNX_QUANTIZER = Quantizer(
    file="model-int8.onnx",
    read=_read_onnx,
    nodes=_onnx_nodes,
    save=_save_onnx,
    open=_open_onnx,
)
QUANTIZERS = {"onnx-int8": ONNX_QUANTIZER, "openvino-int8": OPENVINO_QUANTIZER}
