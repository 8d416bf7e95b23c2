"""The exported folder: what it holds, that it computes what the network does, and is whole or absent."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import paddle
import pytest
import yaml
from helpers import ARTIFACT, ROOT, arrays_of, run_python

from ppcls import build_model
from ppcls.cli import export as cli
from ppcls.errors import ConfigError, DataError, ExportError, WeightsError
from ppcls.inference import export
from ppcls.inference.artifact import read_artifact
from ppcls.inference.eager import describe
from ppcls.inference.engines import ENGINES, installed_engines, open_engine
from ppcls.inference.engines.eager import EagerEngine
from ppcls.inference.engines.engine import EngineType, LoadedEngine
from ppcls.inference.formats import FORMATS, format, onnx, writable_formats
from ppcls.inference.formats.format import PLAIN, ExportOptions
from ppcls.inference.predictions import softmax as to_probabilities
from ppcls.weights import hash_parameters, metadata_of, write_weights

IS_PADDLE2 = paddle.__version__.startswith("2.")


class Small(paddle.nn.Layer):
    """A network that is exported in no time, with the attributes that the export reads."""

    model_name, num_classes, bn_epsilon, padding = "EfficientNetB0_small", 6, 1e-3, "same"

    def __init__(self):
        super().__init__()
        self.conv = paddle.nn.Conv2D(3, 64, 3, stride=2)
        self.bn = paddle.nn.BatchNorm2D(64)
        self.drop = paddle.nn.Dropout(0.5)
        self.fc = paddle.nn.Linear(64, 6)

    def embed(self, images):
        features = paddle.nn.functional.relu(self.bn(self.conv(images)))
        return paddle.nn.functional.adaptive_avg_pool2d(features, 1).flatten(1)

    def forward(self, images):
        return self.fc(self.drop(self.embed(images)))


@pytest.fixture(scope="module")
def small():
    paddle.seed(3)
    model = Small()
    model.eval()
    return model


def write(model, folder, preprocessing, formats=("paddle",), **options):
    others = {key: options.pop(key) for key in ("overwrite", "log") if key in options}
    others = {"threads": 1, "log": lambda line: None, "options": ExportOptions(**options)} | others
    return export.export_model(model, folder, describe(model, preprocessing), formats=formats, **others)


def require(kind, model, **options):
    reason = FORMATS[kind].why_not(model, ExportOptions(**options))
    if reason is not None:
        pytest.skip(reason)


def snapshot(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_folder_has_all_that_is_needed_to_run_it(exported, network, preprocessing):
    artifact = read_artifact(exported)
    assert (artifact.model, artifact.num_classes, artifact.output) == ("EfficientNetB0", 40, "logits")
    assert artifact.preprocessing == preprocessing
    assert artifact.class_names.names[7] == "class 7" and artifact.class_names.folders[7] == "n7"
    assert artifact.parameters_sha256 == hash_parameters(network)
    assert set(artifact.versions) >= {"ppcls"} and any("paddlepaddle" in name for name in artifact.versions)
    for package, number in artifact.versions.items():
        if package != "ppcls":
            assert number == version(package)
    program = "inference.pdmodel" if IS_PADDLE2 else "inference.json"
    assert set(artifact.files["paddle"]) == {program, "inference.pdiparams"}
    listed = {name for sizes in artifact.files.values() for name in sizes}
    assert {path.name for path in exported.iterdir()} == listed | {"inference.yml"}
    assert not [path for path in exported.parent.iterdir() if path != exported]
    for figures in artifact.parity.values():
        assert set(figures) == {"64x64", "199x153"}
        assert all(0 <= value < 5e-5 for value in figures.values())
    assert set(artifact.parity) == set(artifact.files)


def test_all_formats_are_written_where_all_packages_are_installed(exported):
    for package in ("paddle2onnx", "onnxruntime", "openvino"):
        pytest.importorskip(package)
    assert tuple(read_artifact(exported).files) == ("paddle", "onnx", "openvino")


def test_the_onnx_file_is_valid_and_runs_without_this_project(exported, tmp_path):
    pytest.importorskip("onnxruntime")
    if "onnx" not in read_artifact(exported).files:
        pytest.skip("paddle2onnx is not installed")
    shutil.copy(exported / "model.onnx", tmp_path / "alone.onnx")
    code = """
import json, numpy as np, onnxruntime, sys
session = onnxruntime.InferenceSession("alone.onnx", providers=["CPUExecutionProvider"])
images = np.random.RandomState(0).normal(size=(2, 3, 65, 97)).astype(np.float32)
(logits,) = session.run(None, {"x": images})
put, *others = session.get_inputs()
print(json.dumps([put.name, put.shape, put.type, len(others), logits.tolist(), "ppcls" in sys.modules]))
"""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    name, shape, kind, count, logits, has_ppcls = json.loads(run.stdout)
    assert (name, kind, count, has_ppcls) == ("x", "tensor(float)", 0, False)
    assert shape[1] == 3 and not any(isinstance(shape[axis], int) for axis in (0, 2, 3))
    assert np.isfinite(logits).all() and np.shape(logits) == (2, 40)
    package = pytest.importorskip("onnx")
    package.checker.check_model(str(tmp_path / "alone.onnx"), full_check=True)
    graph = package.load(str(tmp_path / "alone.onnx")).graph
    assert not {"If", "Loop", "Scan"} & {node.op_type for node in graph.node}


def test_the_openvino_network_has_free_sizes_and_full_precision(exported):
    openvino = pytest.importorskip("openvino")
    if "openvino" not in read_artifact(exported).files:
        pytest.skip("paddle2onnx is not installed")
    shape = openvino.Core().read_model(str(exported / "openvino.xml")).input(0).partial_shape
    assert [dimension.is_dynamic for dimension in shape] == [True, False, True, True]
    assert "f16" not in (exported / "openvino.xml").read_text()


@pytest.mark.parametrize("kind", FORMATS)
def test_with_softmax_inside_probabilities_come_out(small, preprocessing, tmp_path, capfd, kind):
    require(kind, small)
    artifact = write(small, tmp_path / "out", preprocessing, [kind], softmax=True)
    assert capfd.readouterr() == ("", "")  # the converters' own output would mislead
    assert artifact.output == read_artifact(tmp_path / "out").output == "probabilities"
    assert tuple(artifact.files) == (kind,)
    images = np.random.RandomState(0).normal(size=(3, 3, 33, 40)).astype(np.float32)
    engine = open_engine(tmp_path / "out", artifact, FORMATS[kind].checked_with, threads=1)
    assert np.allclose(engine.run(images), to_probabilities(EagerEngine(small).run(images)), atol=1e-6)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_weight_that_differs_is_an_error_and_nothing_is_left(
    small, preprocessing, tmp_path, monkeypatch, kind
):
    require(kind, small)
    weight = small.conv.weight
    before = weight.numpy()
    original = export.write_formats

    def write_then_break(*arguments):
        files = original(*arguments)
        weight.set_value(before * 1.01)
        return files

    monkeypatch.setattr(export, "write_formats", write_then_break)
    try:
        with pytest.raises(ExportError, match=rf"{kind} .*\b{FORMATS[kind].checked_with}\b.* 1e-04\b"):
            write(small, tmp_path / "out", preprocessing, [kind])
    finally:
        weight.set_value(before)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("second", "words"),
    [(1 + 2e-5, "another class"), (0.9, r"7\.1e-02"), (np.nan, "nan")],
)
def test_another_first_class_is_an_error_however_near(
    small, preprocessing, tmp_path, monkeypatch, second, words
):
    artifact = read_artifact_of(small, preprocessing, tmp_path)
    outputs = np.array([[1, second, 0]], np.float32)
    monkeypatch.setattr(export, "open_engine", lambda *_, **__: LoadedEngine("test", [lambda _: outputs]))
    batches = {"32x32": np.zeros((1, 3, 32, 32), np.float32)}
    expected = np.array([[1, 1 - 1e-5, 0]], np.float32)
    reference = {"32x32": export.Reference(expected, export.TOLERANCE)}
    with pytest.raises(ExportError, match=words):
        export._check_parity(tmp_path, artifact, "paddle", batches, reference, 1)
    outputs[0, 1] = 1 - 2e-5
    (difference,) = export._check_parity(tmp_path, artifact, "paddle", batches, reference, 1).values()
    assert difference == pytest.approx(1e-5 / np.sqrt(2), rel=0.01)


def test_a_network_that_amplifies_rounding_is_held_to_what_it_can_keep():
    random = np.random.RandomState(1)
    batches = {"8x8": random.uniform(1, 2, (2, 3, 8, 8)).astype(np.float32)}

    def tolerance(function):
        engine = LoadedEngine("eager", [lambda images: function(images.reshape(2, -1))])
        return export._reference(engine, batches, ExportOptions())["8x8"].tolerance

    assert tolerance(lambda pixels: 3 * pixels) == export.TOLERANCE
    # only the digits after the third: a change of the input by 1e-6 changes them by about 0.5%
    assert 0.01 < tolerance(lambda pixels: pixels - np.round(pixels, 3)) < 0.5


def read_artifact_of(model, preprocessing, tmp_path):
    return replace(ARTIFACT, model=model.model_name, preprocessing=preprocessing)


def test_an_export_that_is_killed_leaves_no_folder_that_looks_finished(preprocessing, tmp_path):
    code = f"""
import os, signal
from pathlib import Path
from ppcls.inference import export
from ppcls.preprocessing import Preprocessing
from test_export import Small, write
export._check_parity = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
write(Small(), Path({str(tmp_path / "out")!r}), Preprocessing.from_dict({preprocessing.to_dict()}))
"""
    run = run_python("-c", code, path=[ROOT / "tests"])
    assert run.returncode == -signal.SIGKILL, run.stderr
    assert not (tmp_path / "out").exists()
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".") and not (left / "inference.yml").exists()
    with pytest.raises(ExportError, match="inference.yml"):
        read_artifact(left)


def test_a_folder_in_use_is_kept(small, preprocessing, tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    write(small, out, preprocessing)  # an empty folder is free
    before = snapshot(out)
    with pytest.raises(ExportError, match=f"{out} .*--output.*--overwrite"):
        write(small, out, preprocessing)
    assert snapshot(out) == before
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    monkeypatch.setattr(export, "AMPLIFIED", -1.0)
    with pytest.raises(ExportError, match="paddle .*64x64"):
        write(small, out, preprocessing, overwrite=True)
    assert snapshot(out) == before and list(tmp_path.iterdir()) == [out]
    monkeypatch.undo()
    write(small, out, preprocessing, overwrite=True, softmax=True)
    assert read_artifact(out).output == "probabilities" and list(tmp_path.iterdir()) == [out]


def test_the_old_folder_comes_back_where_the_new_one_cannot_take_its_place(
    small, preprocessing, tmp_path, monkeypatch
):
    write(small, tmp_path / "out", preprocessing)
    before = snapshot(tmp_path / "out")
    replace_file, calls = os.replace, []

    def fail_the_second_time(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError(5, "the disk", str(target))
        replace_file(source, target)

    monkeypatch.setattr(os, "replace", fail_the_second_time)
    with pytest.raises(OSError, match="the disk"):
        write(small, tmp_path / "out", preprocessing, overwrite=True)
    assert snapshot(tmp_path / "out") == before


def test_what_is_not_an_export_is_never_replaced(small, preprocessing, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("mine")
    for name in ("file", "photos"):
        with pytest.raises(ExportError, match=f"{name} .*--output"):
            write(small, tmp_path / name, preprocessing, overwrite=True)
    assert (tmp_path / "photos" / "a.jpg").read_text() == (tmp_path / "file").read_text() == "mine"


def raise_an_error():
    raise RuntimeError("\n\nC++ Traceback\n0  p2o::Run()\nError: no mapper for pd_op.swish\n")


@pytest.mark.parametrize(
    ("writer", "words"),
    [
        (lambda *_: None, "paddle .*no file"),
        (lambda _, folder, __: (folder / "inference.json").touch(), "paddle .*inference.json, empty"),
        (lambda *_: raise_an_error(), "paddle .*: Error: no mapper for pd_op.swish"),
    ],
)
def test_a_converter_that_writes_nothing_usable_is_an_error(
    small, preprocessing, tmp_path, monkeypatch, writer, words
):
    monkeypatch.setitem(FORMATS, "paddle", replace(FORMATS["paddle"], write=writer))
    with pytest.raises(ExportError, match=words):
        write(small, tmp_path / "out", preprocessing)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(IS_PADDLE2, reason="with Paddle 2 paddle2onnx writes the file itself")
@pytest.mark.parametrize("graph", [None, b""])
def test_a_paddle2onnx_that_returns_nothing_is_an_error(small, preprocessing, tmp_path, monkeypatch, graph):
    require("onnx", small)
    monkeypatch.setattr("paddle2onnx.export", lambda *_, **__: graph)
    with pytest.raises(ExportError, match="format onnx .*paddle2onnx returned no graph"):
        write(small, tmp_path / "out", preprocessing, ["onnx"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(IS_PADDLE2, reason="paddle2onnx 1.3 puts all weights into the ONNX file")
def test_large_weights_have_a_file_beside_the_onnx_file(small, preprocessing, tmp_path, monkeypatch):
    require("onnx", small)
    monkeypatch.setattr(onnx, "EMBEDDED_BYTES", 8000)
    artifact = write(small, tmp_path / "out", preprocessing, ["onnx"])
    sizes = artifact.files["onnx"]
    assert set(sizes) == {"model.onnx", "model.onnx.data"}
    assert sizes["model.onnx.data"] > 4 * 64 * 27 > sizes["model.onnx"]
    assert max(artifact.parity["onnx"].values()) < 1e-5
    from onnx import load

    places = load(str(tmp_path / "out" / "model.onnx"), load_external_data=False).graph.initializer
    offsets = [
        int(next(item.value for item in tensor.external_data if item.key == "offset")) for tensor in places
    ]
    assert len(offsets) == len(small.state_dict()) and not any(offset % 4096 for offset in offsets)
    shutil.move(tmp_path / "out", tmp_path / "moved")  # the place of the weights is relative
    images = np.ones((1, 3, 40, 40), np.float32)
    outputs = open_engine(tmp_path / "moved", artifact, "onnxruntime", threads=1).run(images)
    assert np.allclose(outputs, EagerEngine(small).run(images), rtol=1e-4, atol=1e-5)
    (tmp_path / "moved" / "model.onnx.data").unlink()
    with pytest.raises(ExportError, match="model.onnx.data .*missing"):
        read_artifact(tmp_path / "moved")


def test_weights_that_are_not_finite_are_not_exported(small, preprocessing, tmp_path):
    before = small.fc.bias.numpy()
    small.fc.bias.set_value(np.full_like(before, np.nan))
    try:
        with pytest.raises(ExportError, match="not finite"):
            write(small, tmp_path / "out", preprocessing)
    finally:
        small.fc.bias.set_value(before)
    assert list(tmp_path.iterdir()) == []


def test_the_network_can_be_trained_on_afterwards(small, preprocessing, tmp_path):
    before = hash_parameters(small)
    write(small, tmp_path / "out", preprocessing)
    assert hash_parameters(small) == before
    small.train()
    small(paddle.zeros([2, 3, 32, 32])).sum().backward()
    assert small.fc.weight.grad is not None
    small.clear_gradients()
    small.eval()


@pytest.mark.parametrize(
    ("kind", "lacking", "paddle_version", "words"),
    [
        ("onnx", {"paddle2onnx"}, "3.3.1", r"paddle2onnx .*'ppcls\[onnx\]'"),
        ("onnx", {"onnx", "onnxruntime"}, "3.3.1", r"onnxruntime and onnx .*'ppcls\[onnx\]'"),
        ("onnx", {"paddle2onnx"}, "2.6.2", r"paddle2onnx .*'ppcls\[onnx-paddle2\]'"),
        ("openvino", {"openvino"}, "2.6.2", r"openvino .*'ppcls\[openvino\]'"),
        ("openvino", {"openvino", "onnx"}, "3.3.1", r"openvino and onnx .*'ppcls\[onnx,openvino\]'"),
    ],
)
def test_what_is_not_installed_is_named_with_its_extra(
    small, preprocessing, tmp_path, monkeypatch, kind, lacking, paddle_version, words
):
    monkeypatch.setattr(format, "find_spec", lambda name: None if name in lacking else object())
    monkeypatch.setattr(paddle, "__version__", paddle_version)
    monkeypatch.setattr(
        "importlib.metadata.version", lambda _: "1.3.1" if paddle_version[0] == "2" else "2.1.0"
    )
    with pytest.raises(ExportError, match=f"format {kind} .*: {words}"):
        write(small, tmp_path / "out", preprocessing, ["paddle", kind])
    possible, missing = writable_formats(small)
    assert kind not in possible and "paddle" in possible and kind in missing
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("paddle_version", "converter"), [("3.3.1", "1.3.1"), ("2.6.2", "2.1.0")])
def test_a_converter_for_another_paddle_is_refused(small, monkeypatch, paddle_version, converter):
    monkeypatch.setattr(format, "find_spec", lambda name: object())
    monkeypatch.setattr(paddle, "__version__", paddle_version)
    monkeypatch.setattr("importlib.metadata.version", lambda _: converter)
    reason = FORMATS["onnx"].why_not(small, PLAIN)
    assert f"paddle2onnx {converter} " in reason and f"Paddle {paddle_version}: pip install" in reason


def test_two_gigabytes_are_refused_with_paddle_2_only(small, monkeypatch):
    monkeypatch.setattr(format, "find_spec", lambda name: object())
    monkeypatch.setattr(onnx, "PROTOBUF_BYTES", 8000)
    monkeypatch.setattr("importlib.metadata.version", lambda _: export_version)
    monkeypatch.setattr(paddle, "__version__", "2.6.2")
    export_version = "1.3.1"
    reason = FORMATS["onnx"].why_not(small, PLAIN)
    assert "2 GiB" in reason and "--formats paddle openvino" in reason
    assert (
        FORMATS["paddle"].why_not(small, PLAIN) is None and FORMATS["openvino"].why_not(small, PLAIN) is None
    )
    monkeypatch.setattr(paddle, "__version__", "3.3.1")
    export_version = "2.1.0"
    assert FORMATS["onnx"].why_not(small, PLAIN) is None


def test_the_48d_network_is_too_large_for_onnx_with_paddle_2(monkeypatch):
    monkeypatch.setattr(format, "find_spec", lambda name: object())
    monkeypatch.setattr("importlib.metadata.version", lambda _: "1.3.1")
    monkeypatch.setattr(paddle, "__version__", "2.6.2")
    with paddle.LazyGuard():
        huge, large = build_model("ResNeXt101_32x48d_wsl"), build_model("ResNeXt101_32x32d_wsl")
    assert "3.1 GiB" in FORMATS["onnx"].why_not(huge, PLAIN)
    assert FORMATS["onnx"].why_not(large, PLAIN) is None


@pytest.fixture(scope="module")
def trained():
    paddle.seed(3)
    return build_model("EfficientNetB0_small", num_classes=6)


@pytest.fixture(scope="module")
def weights(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    write_weights(path, arrays_of(trained), metadata_of(trained))
    return path


def options(weights):
    sizes = [f"data.preprocessing.{option}" for option in ("crop_size=32", "resize_short=36")]
    more = ["model.num_classes=6", "data.class_names=null", "device=cpu", *sizes]
    given = [f"model.weights={weights}" if weights else "model.weights=null", *more]
    config = str(ROOT / "configs" / "EfficientNetB0_small.yaml")
    return ["-c", config, *(part for option in given for part in ("-o", option))]


def test_the_tool_obeys_its_options(trained, weights, tmp_path, capsys):
    command = [*options(weights), "--output", str(tmp_path / "out"), "--formats", "paddle", "--softmax"]
    assert cli.main([*command, "--check"]) == 0
    assert "check passed: paddle " in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    assert "paddle: 13." in said and all(f" at {size}" in said for size in ("32x32", "199x153"))
    assert "probabilities" in said and "license: not stated" in said
    artifact = read_artifact(tmp_path / "out")
    assert (artifact.output, artifact.preprocessing.resize_short) == ("probabilities", 36)
    assert artifact.parameters_sha256 == hash_parameters(trained) and "sha256" in artifact.weights
    with pytest.raises(ExportError, match="--overwrite"):
        cli.main(command)


def test_the_tool_refuses_what_it_cannot_do(weights, tmp_path, monkeypatch):
    with pytest.raises(WeightsError, match="model.weights is null"):
        cli.main([*options(None), "--output", str(tmp_path / "out")])
    monkeypatch.setenv("PADDLE_TRAINERS_NUM", "2")
    with pytest.raises(ConfigError, match="one process"):
        cli.main([*options(weights), "--output", str(tmp_path / "out")])


def test_versions_leave_out_what_is_not_installed(monkeypatch):
    from ppcls.inference import versions

    def fake(package):
        if package == "onnx":
            return "1.17.0"
        raise PackageNotFoundError

    monkeypatch.setattr("importlib.metadata.version", fake)
    assert set(versions.versions()) == {"ppcls", "onnx"}


def test_another_format_is_a_record(small, preprocessing, tmp_path, monkeypatch):
    """Its file is converted from Paddle's program, which is removed again, and compared on its own engine."""
    seen = []

    def convert(model, folder, options):
        seen.append(({path.suffix for path in folder.iterdir()}, options.softmax))
        (folder / "model.copy").write_bytes(b"1234")

    def load(file, threads, streams):
        seen.append(file.name)
        return [EagerEngine(small).run], True

    record = format.Format(
        "copy", (".copy",), "json", ("numpy",), lambda: "paddle", lambda model, options: None, convert
    )
    monkeypatch.setitem(FORMATS, "copy", record)
    monkeypatch.setitem(ENGINES, "json", EngineType("json", (".copy",), "extra", (), load))
    written = write(small, tmp_path / "out", preprocessing, ["copy"])
    program = ".pdmodel" if IS_PADDLE2 else ".json"
    assert seen == [({".pdiparams", program}, False), "model.copy"]
    assert written == read_artifact(tmp_path / "out") and written.files == {"copy": {"model.copy": 4}}
    assert written.parity == {"copy": {"64x64": 0.0, "199x153": 0.0}}
    assert written.versions["numpy"] == np.__version__
    assert set(snapshot(tmp_path / "out")) == {"model.copy", "inference.yml"}
    assert "copy" in writable_formats(small)[0]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("softmax", [False, True])
def test_embeddings_are_a_second_output(small, preprocessing, tmp_path, kind, softmax):
    require(kind, small)
    artifact = write(small, tmp_path / "out", preprocessing, [kind], embeddings=True, softmax=softmax)
    assert artifact.embeddings == read_artifact(tmp_path / "out").embeddings == 64
    assert "embeddings: 64\n" in (tmp_path / "out" / "inference.yml").read_text()
    names = [name for size in ("64x64", "199x153") for name in (size, f"{size} embeddings")]
    assert list(artifact.parity[kind]) == names and max(artifact.parity[kind].values()) < 1e-5
    images = np.random.RandomState(0).normal(size=(3, 3, 33, 40)).astype(np.float32)
    engine = open_engine(tmp_path / "out", artifact, FORMATS[kind].checked_with, threads=1)
    outputs, embeddings = engine.run_all(images)
    logits, expected = EagerEngine(small).run_all(images)
    assert np.allclose(outputs, to_probabilities(logits) if softmax else logits, atol=1e-6)
    assert embeddings.shape == (3, 64) and np.allclose(embeddings, expected, atol=1e-6)


def test_without_options_no_key_speaks_of_them(small, preprocessing, tmp_path):
    artifact = write(small, tmp_path / "out", preprocessing)
    text = (tmp_path / "out" / "inference.yml").read_text()
    assert "input: 'x: float32 [N, 3, H, W], red first" in text and "format_version: 1\n" in text
    assert not {"embeddings", "fp16", "opset", "batch_size", "image_size"} & yaml.safe_load(text).keys()
    assert artifact.input_shape == (None, 3, None, None)


def test_embeddings_that_differ_are_an_error(small, preprocessing, tmp_path, monkeypatch):
    artifact = replace(read_artifact_of(small, preprocessing, tmp_path), embeddings=2)
    outputs, embeddings = np.array([[1, 0, 0]], np.float32), np.array([[3, 4]], np.float32)
    wrong = LoadedEngine("test", [lambda _: (outputs, embeddings + [[0, 1e-3]])])
    monkeypatch.setattr(export, "open_engine", lambda *_, **__: wrong)
    rows = {"32x32": outputs, "32x32 embeddings": embeddings}
    reference = {name: export.Reference(values, export.TOLERANCE) for name, values in rows.items()}
    batches = {"32x32": np.zeros((1, 3, 32, 32), np.float32)}
    with pytest.raises(ExportError, match=r"32x32 embeddings .*2\.0e-04"):
        export._check_parity(tmp_path, artifact, "paddle", batches, reference, 1)


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_weights_in_half_precision(trained, preprocessing, tmp_path, kind):
    require(kind, trained, fp16=True)
    half = write(trained, tmp_path / "half", preprocessing, [kind], fp16=True)
    assert half.fp16 and read_artifact(tmp_path / "half") == half
    parameters = 4 * sum(parameter.size for parameter in trained.state_dict().values())
    assert 0.5 * parameters < sum(half.files[kind].values()) < 0.6 * parameters
    assert all(1e-5 < difference < export.FP16_TOLERANCE for difference in half.parity[kind].values())
    for name in installed_engines(half):
        images = np.random.RandomState(0).normal(size=(2, 3, 65, 40)).astype(np.float32)
        outputs, expected = (
            open_engine(tmp_path / "half", half, name, threads=1).run(images),
            EagerEngine(trained).run(images),
        )
        assert 1e-5 < np.linalg.norm(outputs - expected) / np.linalg.norm(expected) < 2e-2


def test_half_precision_is_refused_where_no_engine_runs_it(small, preprocessing, tmp_path):
    with pytest.raises(ExportError, match="format paddle .*--fp16.*--formats onnx"):
        write(small, tmp_path / "out", preprocessing, fp16=True)
    assert "paddle" in writable_formats(small, ExportOptions(fp16=True))[1]
    if IS_PADDLE2:
        reason = FORMATS["onnx"].why_not(small, ExportOptions(fp16=True))
        assert "Paddle 3" in reason and "--formats openvino" in reason


@pytest.mark.parametrize("opset", [7, 19])
def test_the_requested_opset_is_written(small, preprocessing, tmp_path, opset):
    require("onnx", small)
    artifact = write(small, tmp_path / "out", preprocessing, ["onnx"], opset=opset)
    assert artifact.opset == read_artifact(tmp_path / "out").opset == opset
    if not IS_PADDLE2:
        from onnx import load

        (used,) = load(str(tmp_path / "out" / "model.onnx")).opset_import
        assert used.version == opset


def test_an_opset_that_cannot_be_written_is_refused(small, preprocessing, tmp_path):
    require("onnx", small)
    last = 19 if IS_PADDLE2 else 21
    for opset in (6, last + 1):  # of these paddle2onnx aborts the process
        with pytest.raises(ExportError, match=f"--opset .*7 to {last}.*Received: {opset}"):
            write(small, tmp_path / "out", preprocessing, ["onnx"], opset=opset)
    with pytest.raises(ConfigError, match="--opset .*--formats paddle"):
        write(small, tmp_path / "out", preprocessing, ["paddle"], opset=13)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", FORMATS)
def test_a_fixed_shape(small, preprocessing, tmp_path, kind):
    require(kind, small)
    artifact = write(small, tmp_path / "out", preprocessing, [kind], batch_size=1, image_size=64)
    assert read_artifact(tmp_path / "out") == artifact and artifact.input_shape == (1, 3, 64, 64)
    assert "x: float32 [1, 3, 64, 64]" in (tmp_path / "out" / "inference.yml").read_text()
    assert list(artifact.parity[kind]) == ["64x64"]
    engine = open_engine(tmp_path / "out", artifact, FORMATS[kind].checked_with, threads=1)
    assert engine.run(np.zeros((1, 3, 64, 64), np.float32)).shape == (1, 6)
    for shape in ((2, 3, 64, 64), (1, 3, 64, 65)):
        with pytest.raises(
            DataError, match=r"\[1, 3, 64, 64\] only. Received: " + re.escape(f"{list(shape)}")
        ):
            engine.run(np.zeros(shape, np.float32))
    if kind == "onnx":
        import onnxruntime

        assert onnxruntime.InferenceSession(tmp_path / "out/model.onnx").get_inputs()[0].shape == [
            1,
            3,
            64,
            64,
        ]


def test_sizes_that_contradict_the_preprocessing_are_refused(small, preprocessing, tmp_path):
    with pytest.raises(ConfigError, match=r"--image-size .*\b64\b.*224.*crop_size=224"):
        write(small, tmp_path / "out", preprocessing, image_size=224)
    with pytest.raises(ConfigError, match="--batch-size .*Received: 0"):
        ExportOptions(batch_size=0)


def test_the_tools_options_reach_the_export(weights, tmp_path, capsys):
    command = [*options(weights), "--output", str(tmp_path / "out"), "--formats", "paddle"]
    more = ["--embeddings", "--batch-size", "2", "--image-size", "32"]
    for wrong, words in ((["--image-size", "64"], "--image-size"), (["--opset", "13"], "--opset")):
        with pytest.raises(ConfigError, match=words):
            cli.main([*command, *wrong, "--check"])
    with pytest.raises(ExportError, match="--fp16"):
        cli.main([*command, "--fp16", "--check"])
    assert cli.main([*command, *more]) == 0
    artifact = read_artifact(tmp_path / "out")
    assert (artifact.embeddings, artifact.input_shape) == (1280, (2, 3, 32, 32))
