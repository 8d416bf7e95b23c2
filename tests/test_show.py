"""A batch as a picture, as `ppcls train --show-batch` draws it."""

import numpy as np
import pytest
from golden.make_augment import draw_pictures
from PIL import Image

from ppcls.cli import train
from ppcls.data import show, transforms
from ppcls.data.loader import Batch
from ppcls.errors import ConfigError
from ppcls.preprocessing import Preprocessing

SPEC = Preprocessing(24, 24, "bicubic", False, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_show_batch_draws_what_the_network_sees(noise_config, tmp_path, capsys, monkeypatch):
    seen, draw = [], show.draw_batch
    monkeypatch.setattr(show, "draw_batch", lambda *args: seen.append(args) or draw(*args))
    assert train.main(["-c", str(noise_config), "--show-batch", str(tmp_path / "x.png")]) == 0
    assert "the first 4 images of the first batch are drawn in" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    ((batch, spec, names),) = seen
    assert names == tuple(f"class {letter}" for letter in "abcdefgh")
    with Image.open(tmp_path / "x.png") as picture:
        pixels = np.asarray(picture)
    width, height = 112 + 4, 32 + 2 * 14 + 4
    assert pixels.shape == (2 * height, 2 * width, 3)
    for number, image in enumerate(batch.images):
        top, left = number // 2 * height, number % 2 * width
        expected = np.clip(np.rint((image.transpose(1, 2, 0) * 0.5 + 0.5) * 255), 0, 255)
        np.testing.assert_allclose(pixels[top : top + 32, left : left + 32], expected, atol=1)
        assert (pixels[top + 32 : top + 60, left : left + 112] < 100).any()  # the label


def test_labels_are_told_by_name_and_share():
    images = np.zeros((3, 3, 8, 8), np.float32)
    plain = Batch(images, np.arange(3), np.array([2, 0, 1]), [])
    assert show.label_lines(plain, 0, ["a", "b", "虎"]) == ["2 ?"]
    assert show.label_lines(plain, 1, None) == ["class 0"]
    shares = np.array([[0.25, 0.75], [0.4, 0.6], [0.5, 0.5]], np.float32)
    mixed = plain._replace(labels=np.array([[0, 1], [0, 0], [2, 2]]), shares=shares)
    assert show.label_lines(mixed, 0, ["a", "b", "c"]) == ["0.75 1 b", "0.25 0 a"]
    assert show.label_lines(mixed, 1, ["a", "b", "c"]) == ["1.00 0 a"]
    assert show.label_lines(plain._replace(labels=None), 0, None) == []
    many = Batch(np.zeros((70, 3, 8, 8), np.float32), np.arange(70), np.zeros(70, int), [])
    spec = Preprocessing(8, 8, "bilinear", False, (0.5,) * 3, (0.5,) * 3)
    assert show.draw_batch(many, spec, None).size == (8 * 116, 8 * 26)


def test_denormalizing_is_the_inverse():
    picture = draw_pictures()[0][:, :20]
    out = np.empty((3, 20, 20), np.float32)
    transforms.Normalizer(SPEC.mean, SPEC.std)(picture, out)
    np.testing.assert_array_equal(show.denormalize(out, SPEC), picture)


def test_show_batch_wants_a_png(noise_config, tmp_path):
    with pytest.raises(ConfigError, match=r"--show-batch.*Received: .*x\.jpg"):
        train.main(["-c", str(noise_config), "--show-batch", str(tmp_path / "x.jpg")])
