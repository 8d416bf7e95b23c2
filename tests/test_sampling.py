"""Repeat factors: how often an epoch uses the images of each class, and what it uses them for."""

import tracemalloc

import numpy as np
import pytest
from PIL import Image

from ppcls.config import AugmentConfig
from ppcls.config_files import parse_config
from ppcls.data.dataset import Dataset
from ppcls.data.files import Files
from ppcls.data.loader import load_batches, train_batch_indices
from ppcls.data.sampling import draw_epoch, imbalance_hint, repeat_factors
from ppcls.data.seeding import SAMPLING, random_state
from ppcls.data.transforms import TrainTransform
from ppcls.preprocessing import Preprocessing
from ppcls.training.batches import train_batches

COUNTS = np.array([300, 90, 0, 40, 5, 1])  # images of each class; one has none
LABELS = np.random.RandomState(0).permutation(np.repeat(np.arange(6), COUNTS))
SIZE = len(LABELS)
FILES = Files([""] * SIZE)
SPEC = Preprocessing(16, 16, "bilinear", False, (0.0,) * 3, (1.0,) * 3)
DRAWN = [20, 13, 5, 6, 2, 4, 0]  # of seven images, the last one three times


def config_of(*overrides):
    return parse_config({"model": {"name": "EfficientNetB0_small", "num_classes": 6}}, overrides)


@pytest.mark.parametrize(("sampling", "power"), [("natural", 1.0), ("sqrt", 0.5), ("balanced", 0.0)])
def test_classes_are_used_as_often_as_their_sizes_to_the_power(sampling, power):
    """The mean of 400 epochs is within four standard errors of the definition."""
    factors = repeat_factors(LABELS, sampling)
    expected = np.where(COUNTS > 0, np.maximum(COUNTS, 1.0) ** power, 0)
    expected *= SIZE / expected.sum()
    drawn = []
    for epoch in range(400):
        (uses,) = train_batch_indices(FILES, SIZE, seed=3, epoch=epoch, factors=factors)
        drawn.append(np.bincount(LABELS[uses % SIZE], minlength=6))
    error = np.std(drawn, axis=0) / np.sqrt(len(drawn))
    assert (np.sum(drawn, axis=1) == SIZE).all()
    assert (np.abs(np.mean(drawn, axis=0) - expected) <= 4 * error + 1e-9).all()
    assert (np.abs(drawn - expected) < 0.05 * SIZE).all()  # each epoch by itself, too


@pytest.mark.parametrize("sampling", ["sqrt", "balanced"])
def test_an_image_is_used_its_factor_rounded_up_or_down(sampling):
    factors = repeat_factors(LABELS, sampling)
    uses = np.array(
        [np.bincount(draw_epoch(factors, FILES, SIZE, 0, e) % SIZE, minlength=SIZE) for e in range(400)]
    )
    assert (uses >= np.floor(factors - 1e-9)).all() and (uses <= np.ceil(factors + 1e-9)).all()
    np.testing.assert_allclose(uses.mean(axis=0), factors, atol=4 * 0.5 / np.sqrt(400))
    assert len({row.tobytes() for row in uses}) == 400


def test_factors_are_those_of_lvis_up_to_a_common_one():
    """Equation of arXiv 1908.03195, section on repeat factor sampling: r = max(1, sqrt(t / f))."""
    shares = (COUNTS / SIZE)[LABELS]
    published = np.maximum(1, np.sqrt(shares.max() / shares))
    np.testing.assert_allclose(repeat_factors(LABELS, "sqrt"), published * SIZE / published.sum())
    np.testing.assert_allclose(repeat_factors(LABELS, "balanced"), SIZE / (5 * COUNTS[LABELS]))


def test_of_several_labels_the_rarest_decides():
    labels = np.array([[0, 0], [0, 0], [0, 0], [0, 1]])  # padded with the last label
    factors = repeat_factors(labels, "balanced")
    np.testing.assert_allclose(factors, np.array([1, 1, 1, 4]) * 4 / 7)
    single = np.array([0, 0, 1])
    np.testing.assert_array_equal(repeat_factors(single[:, None], "sqrt"), repeat_factors(single, "sqrt"))


def test_the_natural_order_is_that_of_earlier_versions():
    assert repeat_factors(LABELS, "natural") is None
    batches = train_batch_indices(FILES, 8, seed=5, epoch=2)
    np.testing.assert_array_equal(
        np.concatenate(batches), random_state(5, 2).permutation(SIZE)[: SIZE // 8 * 8]
    )


def test_the_draw_stays_what_it_is():
    """Another numpy must not change a run that is repeated."""
    factors = repeat_factors(np.array([0, 0, 0, 0, 0, 0, 1]), "balanced")
    assert draw_epoch(factors, Files([""] * len(factors)), len(factors), 1, 2).tolist() == DRAWN
    assert (
        draw_epoch(factors, Files([""] * len(factors)), len(factors), 1, 3).tolist()
        != DRAWN
        != draw_epoch(factors, Files([""] * len(factors)), len(factors), 2, 2).tolist()
    )


def draw_at_once(factors, source, uses, seed, epoch):
    """The same draw without blocks, as the first version had it: states of runs rely on it."""
    count, random = len(factors), random_state(seed, epoch, 0, SAMPLING)
    images = random.permutation(count)
    ends = np.floor(np.cumsum(factors[images]) * (uses / count) + random.uniform()).astype(np.int64)
    ends[-1] = uses
    times = np.diff(ends, prepend=0)
    number_of_use = np.arange(uses) - np.repeat(ends - times, times)
    drawn = np.repeat(images, times) + count * number_of_use
    return drawn[random.permutation(uses)]


@pytest.mark.parametrize("block", [1, 10, 436, 1 << 16])
def test_the_draw_does_not_depend_on_its_blocks(monkeypatch, block):
    monkeypatch.setattr("ppcls.data.sampling._BLOCK", block)
    for sampling, uses in (("sqrt", SIZE), ("balanced", SIZE + 100), ("balanced", 3 * SIZE)):
        factors = repeat_factors(LABELS, sampling)
        expected = draw_at_once(factors, FILES, uses, 4, 5)
        np.testing.assert_array_equal(draw_epoch(factors, FILES, uses, 4, 5), expected)


def test_an_order_takes_few_bytes_an_image():
    size = 1 << 20
    labels = np.minimum(random_state(1).geometric(0.01, size), 999)

    def order(sampling):
        factors = repeat_factors(labels, sampling)
        return train_batch_indices(Files(range(size)), 32, seed=0, epoch=0, factors=factors)

    for sampling, most in (("natural", 8), ("sqrt", 20)):
        tracemalloc.start()
        try:
            kept = order(sampling)
            now, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        blocks = 5 * 2**20  # of a few arrays of 65,536 images
        assert kept.nbytes == 8 * size <= now < 8 * size + blocks and peak < most * size + blocks


class Extreme(np.random.RandomState):
    """A stream whose uniform numbers are the smallest."""

    def uniform(self):
        return 0.0


@pytest.mark.parametrize("kind", [np.random.RandomState, Extreme])
def test_the_number_of_uses_is_exact_whatever_the_rounding(kind, monkeypatch):
    monkeypatch.setattr("ppcls.data.sampling.random_state", lambda *entropy: kind(entropy))
    for size in range(1, 60):
        factors = np.full(size, 0.1)
        assert len(draw_epoch(factors / factors.mean(), Files([""] * size), size, 0, size)) == size
        factors = random_state(size).uniform(size=size) ** 9
        assert len(draw_epoch(factors / factors.mean(), Files([""] * size), size, 0, size)) == size


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_share_the_draw_in_steps_of_one_length(world):
    factors = repeat_factors(LABELS, "balanced")
    options = {"seed": 1, "epoch": 4, "world_size": world, "factors": factors}
    shares = [train_batch_indices(FILES, 8, rank=rank, **options) for rank in range(world)]
    assert [len(share) for share in shares] == [SIZE // (8 * world)] * world
    merged = np.concatenate([np.stack(parts, axis=1).ravel() for parts in zip(*shares, strict=True)])
    np.testing.assert_array_equal(merged, draw_epoch(factors, FILES, SIZE, 1, 4)[: len(merged)])


@pytest.fixture
def noise(tmp_path):
    """Eight pictures: seven of class 0, one of class 1."""
    random = np.random.RandomState(0)
    for number in range(8):
        pixels = random.randint(0, 256, (30, 40, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    return Dataset.of_files([str(tmp_path / f"{n}.png") for n in range(8)], np.array([0] * 7 + [1]))


@pytest.mark.parametrize("options", [{"crop_area": (0.2, 1.0)}, {"center_crop": True, "random_erasing": 1.0}])
def test_a_further_use_of_an_image_is_augmented_in_another_way(noise, options):
    augment = AugmentConfig(flip=0.0, **options)
    transform = TrainTransform(SPEC, augment, seed=0, epoch=0)
    order = [np.array([7, 7 + 8, 7 + 16, 2 + 8])]
    options = {"num_workers": 2, "finish": transform.finish}
    (batch,) = load_batches(noise, order, transform, SPEC, **options)
    assert batch.indices.tolist() == [7, 7, 7, 2] and batch.labels.tolist() == [1, 1, 1, 0]
    assert len({image.tobytes() for image in batch.images}) == 4
    (first,) = load_batches(noise, [np.array([7])], transform, SPEC, **options)
    np.testing.assert_array_equal(first.images[0], batch.images[0])


def test_an_unreadable_image_is_named_at_every_use(noise, tmp_path):
    (tmp_path / "7.png").write_bytes(b"no image")
    transform = TrainTransform(SPEC, AugmentConfig(), seed=0, epoch=0)
    (batch,) = load_batches(noise, [np.array([15, 3])], transform, SPEC, num_workers=1, on_error="skip")
    assert batch.indices.tolist() == [3] and batch.unreadable[0].index == 7
    assert batch.unreadable[0].name.endswith("7.png")


def test_training_batches_are_drawn_by_the_option_and_from_any_step(noise):
    config = config_of("data.sampling=balanced", "data.batch_size=2", "seed=9")
    found = list(train_batches(config, SPEC, noise, epoch=1, num_workers=1))
    drawn = draw_epoch(repeat_factors(noise.labels, "balanced"), noise.source, len(noise), 9, 1)
    assert np.concatenate([batch.indices for batch in found]).tolist() == (drawn % 8).tolist()
    assert sum(batch.labels.sum() for batch in found) == 4  # half of the epoch is the one picture of class 1
    for whole, rest in zip(
        found[2:], train_batches(config, SPEC, noise, epoch=1, first_step=2, num_workers=1), strict=True
    ):
        np.testing.assert_array_equal(whole.images, rest.images)


def test_the_hint_names_the_options_where_classes_are_very_unequal():
    labels = np.repeat([0, 2], [30, 5])
    hint = imbalance_hint(config_of(), labels)
    for word in ("6 times", "data.sampling=balanced", "train.class_weights=balanced", "train.best_by"):
        assert word in hint
    assert imbalance_hint(config_of(), labels[5:]) is None
    assert imbalance_hint(config_of("data.sampling=sqrt"), labels) is None
    assert imbalance_hint(config_of("train.class_weights=balanced"), labels) is None
