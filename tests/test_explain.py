"""Grad-CAM against torch's derivatives on timm's networks, and the pictures that infer.py writes."""

import threading

import cv2
import numpy as np
import paddle
import pytest
from golden.seeded import ODD_SIZE, draw_input, name_entry
from helpers import ARTIFACT, ROOT, build_filled, run_tool, write_config

from ppcls import Predictor, build_model
from ppcls.data.dataset import Dataset
from ppcls.errors import ConfigError
from ppcls.evaluation.explain import explain, grad_cam, last_features, overlay, picture_names
from ppcls.inference.engines.engine import LoadedEngine


@pytest.mark.parametrize("name", ["EfficientNetB0", "EfficientNetLite0", "ResNeXt101_32x8d_wsl"])
def test_heat_equals_torchs(name):
    model = build_filled(name)
    shape = (2, 3, *ODD_SIZE)
    with np.load(ROOT / "tests/golden/explain.npz") as golden:
        expected = golden[name_entry(name, shape)]
    _, heat = grad_cam(model, draw_input(*shape))
    assert np.linalg.norm(heat - expected) < 1e-5 * np.linalg.norm(expected)


def test_heat_equals_the_classifiers_weights_times_the_features():
    """Behind the last features stand an average and a linear layer, whose derivative is known."""
    paddle.seed(1)
    model = build_model("EfficientNetB0_small", num_classes=7)
    model.eval()
    images = np.random.RandomState(0).normal(size=(3, 3, 64, 96)).astype(np.float32)
    kept = []
    hook = last_features(model).register_forward_post_hook(lambda _, __, output: kept.append(output.numpy()))
    logits = model(paddle.to_tensor(images)).numpy()
    hook.remove()
    classes, heat = grad_cam(model, images)
    assert classes.tolist() == logits.argmax(1).tolist()
    weights = model.fc.weight.numpy()[:, classes].T / (2 * 3)  # [N, K], over the features' area
    expected = np.maximum(np.einsum("nk,nkhw->nhw", weights, kept[0]), 0)
    assert heat.shape == (3, 2, 3) and heat.max() > 0
    np.testing.assert_allclose(heat, expected, rtol=1e-3, atol=1e-5 * expected.max())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not last_features(model)._forward_post_hooks  # a later run keeps nothing


def test_another_thread_may_run_the_same_network():
    """As a server's threads do: it runs between the features of the explained image and its gradient."""
    model = build_filled("EfficientNetB0_small")
    images = np.random.RandomState(0).normal(size=(1, 3, 64, 64)).astype(np.float32)
    _, expected = grad_cam(model, images)
    main = threading.get_ident()

    def run_elsewhere(*_) -> None:
        if threading.get_ident() == main:
            other = threading.Thread(target=lambda: model(paddle.to_tensor(images)))
            other.start()
            other.join()

    hook = model.fc.register_forward_pre_hook(run_elsewhere)
    _, heat = grad_cam(model, images)
    hook.remove()
    np.testing.assert_array_equal(heat, expected)


def test_overlay_is_red_where_it_is_hot_and_the_image_where_it_is_cold():
    grey = np.full((64, 64, 3), 120, np.uint8)
    heat = np.zeros((4, 4), np.float32)
    heat[0, 0] = 5
    drawn = overlay(grey, heat)
    red, green, blue = drawn[0, 0].astype(int)
    assert red > green + 40 and red > blue + 40
    assert (drawn[32:, 32:] == 120).all()
    assert (overlay(grey, np.zeros((4, 4), np.float32)) == 120).all()


def test_every_file_has_a_picture_of_its_own(tmp_path):
    assert picture_names([str(tmp_path / "cat.png")]) == ["cat.jpg"]
    files = [str(tmp_path / name) for name in ("a/x.png", "b/x.png")]
    assert picture_names(files) == ["a/x.jpg", "b/x.jpg"]
    files = [str(tmp_path / name) for name in ("x.png", "x.bmp")]
    assert picture_names(files) == ["x.png.jpg", "x.bmp.jpg"]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A config with fresh weights, and pictures: a bright square on a dark ground; and a broken file."""
    folder = tmp_path_factory.mktemp("explain")
    (folder / "pictures").mkdir()
    for index in range(5):
        image = np.full((50, 60, 3), 30, np.uint8)
        image[10 * index : 10 * index + 10, 20:40] = 220
        cv2.imwrite(str(folder / "pictures" / f"square {index}.png"), image)
    (folder / "pictures" / "broken.png").write_text("no image")
    return write_config(folder, num_classes=4, short=48, crop=40)


def test_infer_writes_a_picture_of_each_readable_file(config, tmp_path):
    run = run_tool("infer", "-c", config, "-i", config.parent / "pictures", "--explain", tmp_path / "why")
    assert run.returncode == 1, run.stdout + run.stderr  # of the broken file
    assert "written: 5 pictures" in run.stdout
    written = sorted(path.name for path in (tmp_path / "why").iterdir())
    assert written == [f"square {index}.jpg" for index in range(5)]
    image = cv2.imread(str(tmp_path / "why" / "square 0.jpg"))
    assert image.shape == (40, 40, 3)
    assert np.ptp(image.astype(int), axis=2).max() > 40  # the picture is grey, the heat is not


def test_an_export_has_nothing_to_explain_with(config, exported, tmp_path):
    for options in ([exported], ["-c", config, "--engine", "paddle"]):
        run = run_tool("infer", *options, "-i", config.parent / "pictures", "--explain", tmp_path / "why")
        assert run.returncode == 2 and "--explain" in run.stderr
    assert not (tmp_path / "why").exists()


def test_a_predictor_over_an_export_has_nothing_to_explain_with(config, tmp_path):
    engine = LoadedEngine("onnxruntime", [lambda images: images])
    predictor = Predictor(ARTIFACT, lambda streams: engine)
    with pytest.raises(ConfigError, match="Received: .*onnxruntime.*eager"):
        explain(
            predictor, Dataset.of_files([str(config.parent / "pictures" / "square 0.png")]), tmp_path / "why"
        )
    assert not (tmp_path / "why").exists()
