"""Mixing of batches: against timm, torchvision and torch, statistics against definitions, and randomness."""

from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from golden.make_augment import (
    BATCH_MIXES,
    CLASSES,
    MIXINGS,
    SEEDS,
    SIZE,
    SMOOTHINGS,
    draw_batch,
    draw_losses,
)
from helpers import GOLDEN, dense

from ppcls.cli import train
from ppcls.data.loader import Batch, mix_batches
from ppcls.data.mixing import Mix, Mixing, mix_images, mix_labels
from ppcls.training import batches as training_batches
from ppcls.training.step import cross_entropy


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN / "augment.npz")


def mixed_targets(labels, mix, classes):
    return dense(*mix_labels(labels[:, None], np.ones((len(labels), 1), np.float32), mix), classes)


@pytest.mark.parametrize("kind", MIXINGS)
def test_mixing_is_timms(golden, kind):
    """timm draws first whether to mix at all, from the same stream, and smooths before it mixes."""
    boxes = 0
    for number, seed in enumerate(SEEDS):
        random = np.random.RandomState(seed)
        random.uniform()
        images, labels = draw_batch(2)
        mix = Mixing(*MIXINGS[kind]).draw(SIZE, random)
        boxes += mix.box is not None
        mix_images(images, mix)
        targets = mixed_targets(labels, mix, CLASSES) * 0.9 + 0.1 / CLASSES
        np.testing.assert_allclose(images, golden[f"timm/{kind}/images"][number], rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(targets, golden[f"timm/{kind}/targets"][number], rtol=1e-6)
    assert boxes in {"mixup": (0,), "cutmix": (8,), "both": range(1, 8)}[kind]


@pytest.mark.parametrize("kind", BATCH_MIXES)
def test_mixing_a_batch_is_torchvisions(golden, kind):
    images, labels = draw_batch(5)
    mix = Mix(*BATCH_MIXES[kind])
    mix_images(images, mix)
    np.testing.assert_allclose(images, golden[f"torchvision/{kind}/images"], rtol=1e-6, atol=1e-6)
    targets = mixed_targets(labels, mix, CLASSES)
    np.testing.assert_allclose(targets, golden[f"torchvision/{kind}/targets"], rtol=1e-6)
    assert targets.dtype == np.float32 and images.dtype == np.float32


def test_the_loss_of_shares_is_torchs(golden):
    logits, targets = map(paddle.to_tensor, draw_losses())
    labels = paddle.arange(CLASSES).expand(targets.shape)
    for smoothing, expected in zip(SMOOTHINGS, golden["torch/losses"], strict=True):
        assert cross_entropy(logits, labels, smoothing, None, targets).item() == pytest.approx(
            expected, rel=1e-6
        )


def test_the_loss_of_labels_is_that_of_their_shares():
    logits, labels = paddle.to_tensor(draw_losses()[0]), np.array([0, 4, 2, 2, 1, 3])
    columns, shares = paddle.to_tensor(labels[:, None]), paddle.ones([6, 1])
    for smoothing in (0.0, 0.1):
        of_labels = cross_entropy(logits, paddle.to_tensor(labels), smoothing).item()
        found = cross_entropy(logits, columns, smoothing, None, shares).item()
        assert found == pytest.approx(of_labels, rel=1e-6)


def test_mixing_shares_follow_the_beta_distribution():
    random = np.random.RandomState(0)
    for alpha in (0.2, 1.0):
        shares = np.array([Mixing(alpha, 0.0).draw(32, random).share for _ in range(4000)])
        assert abs(shares.mean() - 0.5) < 0.02
        assert abs(shares.var() - 1 / (4 * (2 * alpha + 1))) < 0.006
    mixes = [Mixing(0.2, 1.0).draw(64, random) for _ in range(2000)]
    assert 900 < sum(mix.box is not None for mix in mixes) < 1100
    for mix in mixes:
        if mix.box is not None:
            top, bottom, left, right = mix.box
            assert 0 <= top <= bottom <= 64 and 0 <= left <= right <= 64
            assert mix.share == pytest.approx(1 - (bottom - top) * (right - left) / 64**2)


@pytest.mark.parametrize("mix", [Mix(0.3, None), Mix(0.75, (0, 4, 0, 4))])
@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_batches_of_any_size_are_mixed(mix, count):
    images = np.arange(count * 3 * 8 * 8, dtype=np.float32).reshape(count, 3, 8, 8)
    labels, before = np.arange(count), images.copy()
    mix_images(images, mix)
    partner = np.roll(before, 1, axis=0)
    if mix.box is None:
        expected = before * np.float32(0.3) + partner * np.float32(0.7)
    else:
        expected = before.copy()
        expected[:, :, :4, :4] = partner[:, :, :4, :4]
    np.testing.assert_allclose(images, expected, rtol=1e-6)
    targets = mixed_targets(labels, mix, 4)
    assert targets.shape == (count, 4)
    np.testing.assert_allclose(targets.sum(1), 1, rtol=1e-6)


def test_images_without_labels_are_not_mixed():
    batch = Batch(np.zeros((2, 3, 4, 4), np.float32), np.arange(2), None, [])
    with pytest.raises(ValueError, match="labels"):
        next(mix_batches([batch], Mixing(0.2, 0.0), seed=0, epoch=0, rank=0))


def test_each_rank_mixes_on_its_own(noise_config, monkeypatch):
    seen, mix = [], training_batches.mix_batches

    def mix_batches(*args, **options):
        seen.append(options)
        return mix(*args, **options)

    monkeypatch.setattr(training_batches, "mix_batches", mix_batches)
    ranks = SimpleNamespace(rank=lambda: 3, world_size=lambda: 4)  # for the order and the mixing alone
    monkeypatch.setattr(training_batches, "distributed", ranks)
    assert train.main(["-c", str(noise_config), "--check", "-o", "seed=7", "-o", "data.batch_size=5"]) == 0
    assert seen == [{"seed": 7, "epoch": 0, "rank": 3, "first": 0}]
