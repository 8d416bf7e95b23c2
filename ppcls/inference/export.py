"""From a network to an exported model: written in each format, run, compared with the network, then moved
into place. Paddle's program comes from paddle.jit, ONNX from paddle2onnx, OpenVINO's IR from OpenVINO."""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ppcls.data.class_names import ClassNames
from ppcls.data.opencv import cv2
from ppcls.data.transforms import Normalizer
from ppcls.errors import ExportError
from ppcls.inference.artifact import FORMATS, SPEC, Artifact
from ppcls.inference.engines import EagerEngine, first_line, open_engine
from ppcls.inference.versions import versions
from ppcls.preprocessing import Preprocessing
from ppcls.weights import WeightsInfo, hash_parameters

if TYPE_CHECKING:
    from paddle import nn

OPSET = 13
TOLERANCE = 1e-4  # of ||a - b|| / ||b||; float32 engines differ by 1e-6 to 5e-6
ODD_SIZE = 199, 153  # every strided layer meets an odd and an even map in it
EMBEDDED_BYTES = 1 << 30  # larger weights lie beside the ONNX file; one protobuf holds less than 2 GiB
PROTOBUF_BYTES = 1 << 31
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
        files = _write_formats(model, aside, formats, softmax, say)
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


def _write_formats(
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
            with _quiet():
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
    with _quiet():
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


@contextmanager
def _quiet() -> Iterator[None]:
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
