"""Augmentation: operators and tables against timm and torchvision, statistics against definitions, and that
what is random depends on nothing but seed, epoch, and image or step."""

import json
from collections import Counter

import numpy as np
import pytest
from golden.make_augment import FILL, GEOMETRIC, MOVES, TENSOR_STRENGTHS, TONES, draw_pictures
from helpers import GOLDEN, dense
from PIL import Image

from ppcls.cli import train
from ppcls.config import AugmentConfig
from ppcls.config_files import load_config
from ppcls.data import augment, show, transforms
from ppcls.data.augment import (
    RAND_SETS,
    V0,
    AutoAugment,
    Canvas,
    ColorJitter,
    RandAugment,
    RandomErasing,
    Step,
    apply_operator,
    draw_strength,
    image_operators,
    run_steps,
)
from ppcls.data.dataset import Dataset
from ppcls.data.loader import load_batches, mix_batches
from ppcls.data.mixing import Mixing
from ppcls.data.seeding import random_state
from ppcls.data.transforms import TrainTransform
from ppcls.errors import ConfigError
from ppcls.preprocessing import Preprocessing

SPEC = Preprocessing(24, 24, "bicubic", False, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CANVAS = Canvas(Image.Resampling.BICUBIC, FILL)
NAMES = RAND_SETS["tf"][0]


class Sign:
    """Instead of a RandomState: always the same sign."""

    def __init__(self, is_negative):
        self.value = 0.0 if is_negative else 0.9

    def uniform(self):
        return self.value


def operate(picture, name, strength, canvas=CANVAS, random=None):
    return np.asarray(apply_operator(Image.fromarray(picture), name, strength, canvas, random))


# Against the published implementations; tests/golden/make_augment.py made the files.


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN / "augment.npz")


@pytest.fixture(scope="module")
def tables():
    return json.loads((GOLDEN / "augment.json").read_text(encoding="utf-8"))


def test_the_policy_is_timms(tables):
    assert [[list(step) for step in pair] for pair in V0] == tables["v0"] and len(V0) == 25


def test_the_operators_and_their_probability_are_timms(tables):
    names, probability, highest = RAND_SETS["timm"]
    assert [[name, probability] for name in names] == tables["rand"] and highest == 10
    assert {*NAMES} == {*names, "Cutout"}


def test_magnitudes_mean_what_they_mean_to_timm(tables):
    for name in RAND_SETS["timm"][0]:
        strengths = [draw_strength(name, m / 2, Sign(False)) for m in range(21)]
        expected = tables["strengths"].get(name)
        assert strengths == (pytest.approx(expected, rel=1e-12) if expected else [0.0] * 21), name


@pytest.mark.parametrize("name", TONES)
def test_operators_on_tones_are_timms_to_the_bit(golden, name):
    for magnitude in TONES[name]:
        strength = draw_strength(name, magnitude, Sign(False))
        results = np.stack([operate(picture, name, strength) for picture in draw_pictures()])
        np.testing.assert_array_equal(results, golden[f"timm/{name}/{magnitude}"], err_msg=f"{magnitude}")


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("name", GEOMETRIC)
def test_operators_on_places_are_timms_to_the_bit(golden, name, interpolation):
    canvas = Canvas(Image.Resampling[interpolation.upper()], FILL)
    strengths = [draw_strength(name, magnitude, Sign(sign)) for magnitude in MOVES for sign in (False, True)]
    results = np.stack([operate(draw_pictures()[0], name, strength, canvas) for strength in strengths])
    expected = golden[f"timm/{name}/{interpolation}"]
    assert len({result.tobytes() for result in expected}) == 5  # no move twice, and two ways there and back
    np.testing.assert_array_equal(results, expected)


@pytest.mark.parametrize("name", TENSOR_STRENGTHS)
def test_operators_on_tones_are_torchvisions_for_tensors(golden, name):
    """Within a level, as Pillow rounds the grey that torchvision blends with."""
    for strength in TENSOR_STRENGTHS[name]:
        results = np.stack([operate(picture, name, strength) for picture in draw_pictures()])
        expected = golden[f"torchvision/{name}/{strength}"].astype(int)
        np.testing.assert_allclose(results, expected, atol=1, err_msg=f"{strength}")


# Operators that no reference computes today.


def test_posterize_without_bits_is_black():
    """As Pillow once did, and timm says of TensorFlow. The policy asks for it: Posterize at magnitude 2."""
    assert draw_strength("Posterize", 2, Sign(False)) == 0
    assert not operate(draw_pictures()[0], "Posterize", 0).any()


def test_cutout_is_a_square_around_any_pixel():
    picture = np.full((28, 56, 3), 255, np.uint8)
    seen = np.zeros((28, 56), int)
    random = np.random.RandomState(0)
    strength = draw_strength("Cutout", 10, random)
    areas = Counter()
    for _ in range(1000):
        is_cut = (operate(picture, "Cutout", strength, random=random) == FILL).all(2)
        rows, columns = np.flatnonzero(is_cut.any(1)), np.flatnonzero(is_cut.any(0))
        assert is_cut[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        areas[int(is_cut.sum())] += 1
        seen += is_cut
    assert max(areas) == 2 * 5 * 2 * 10 and seen.min() > 0  # half the side is 40 / 224 of the image's
    assert operate(picture, "Cutout", 0.0, random=random).min() == 255


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("magnitude", [0, 10, 17, 30])
def test_every_operator_keeps_the_shape_at_any_magnitude(name, magnitude):
    random = np.random.RandomState(0)
    for picture in (*draw_pictures(), np.zeros((1, 1, 3), np.uint8), np.full((2, 3, 3), 7, np.uint8)):
        before = picture.copy()
        result = run_steps(picture, [Step(name, 1.0, magnitude)], CANVAS, random)
        assert result.shape == picture.shape and result.dtype == np.uint8
        np.testing.assert_array_equal(picture, before)


def test_an_unknown_operator_is_an_error():
    with pytest.raises(ValueError, match="'Blur'"):
        operate(draw_pictures()[0], "Blur", 0)


# What is drawn.


def test_a_step_happens_as_often_as_it_should_and_to_both_sides():
    picture = draw_pictures()[0]
    results = Counter()
    random = np.random.RandomState(0)
    for _ in range(1000):
        results[run_steps(picture, [Step("ShearX", 0.6, 9)], CANVAS, random).tobytes()] += 1
    there, back = (operate(picture, "ShearX", sign * 0.27).tobytes() for sign in (1, -1))
    assert set(results) == {picture.tobytes(), there, back}
    assert abs(results[picture.tobytes()] - 400) < 50 and abs(results[there] - results[back]) < 80


def steps_of(monkeypatch, operator, count):
    """The steps that an operator hands on for each of many images."""
    seen = []
    monkeypatch.setattr(augment, "run_steps", lambda image, steps, *_: seen.append(steps) or image)
    random = np.random.RandomState(0)
    for _ in range(count):
        operator(draw_pictures()[0], random)
    return seen


def test_auto_augment_takes_each_pair_alike(monkeypatch):
    counts = Counter(steps_of(monkeypatch, AutoAugment(CANVAS), 5000))
    assert set(counts) == set(V0) and all(abs(count - 200) < 60 for count in counts.values())


@pytest.mark.parametrize("kind", RAND_SETS)
def test_rand_augment_takes_each_operator_alike_and_varies_the_magnitude(monkeypatch, kind):
    names, probability, highest = RAND_SETS[kind]
    drawn = steps_of(monkeypatch, RandAugment(CANVAS, kind, 3, 9.0, 0.5), 2000)
    assert {len(steps) for steps in drawn} == {3}
    steps = [step for steps in drawn for step in steps]
    counts = Counter(step.name for step in steps)
    assert set(counts) == set(names) and all(abs(n - 6000 / len(names)) < 90 for n in counts.values())
    assert {step.probability for step in steps} == {probability}
    magnitudes = np.array([step.magnitude for step in steps])
    assert abs(np.median(magnitudes) - 9) < 0.03 and magnitudes.max() <= highest
    assert abs(np.quantile(magnitudes, 0.1587) - 8.5) < 0.05
    (fixed,) = {
        step.magnitude
        for steps in steps_of(monkeypatch, RandAugment(CANVAS, kind, 1, 7.0), 50)
        for step in steps
    }
    assert fixed == 7.0


def test_magnitudes_stay_within_their_bounds(monkeypatch):
    for magnitude, ends in ((10.0, (0, 10)), (0.0, (0, 10))):
        drawn = steps_of(monkeypatch, RandAugment(CANVAS, "timm", 1, magnitude, 20.0), 300)
        magnitudes = [steps[0].magnitude for steps in drawn]
        assert (min(magnitudes), max(magnitudes)) == ends


def test_colour_jitter_multiplies_by_uniform_factors():
    grey = np.full((2, 2, 3), 100, np.uint8)
    random = np.random.RandomState(0)
    jitter = ColorJitter((0.4, 0.0, 0.0))
    values = np.array([jitter(grey, random)[0, 0, 0] for _ in range(3000)])
    assert values.min() in (59, 60) and values.max() in (139, 140)
    assert abs(values.mean() - 99.5) < 1.5 and abs(values.std() - 80 / np.sqrt(12)) < 1
    assert ColorJitter((3.0, 0.0, 0.0))(grey, random).dtype == np.uint8  # no negative factor


def test_colour_jitter_changes_what_it_names_in_any_order(monkeypatch):
    orders = set()
    order = []
    for name in ("Brightness", "Contrast", "Color"):
        original = augment._ENHANCERS[name]
        note = lambda image, name=name, original=original: order.append(name) or original(image)  # noqa: E731
        monkeypatch.setitem(augment._ENHANCERS, name, note)
    random = np.random.RandomState(0)
    for _ in range(100):
        order.clear()
        ColorJitter((0.1, 0.2, 0.3))(draw_pictures()[0], random)
        orders.add(tuple(order))
    assert len(orders) == 6 and {len(order) for order in orders} == {3}
    order.clear()
    ColorJitter((0.0, 0.2, 0.0))(draw_pictures()[0], random)
    assert order == ["Contrast"]


def test_erased_rectangles_follow_the_definition():
    """Area uniform from 0.02 to 1/3, the logarithm of the ratio uniform, every place alike."""
    random = np.random.RandomState(0)
    erasing = RandomErasing(1.0, "zero")
    boxes = []
    seen = np.zeros((100, 120), int)
    for _ in range(3000):
        image = np.ones((3, 100, 120), np.float32)
        erasing(image, random)
        is_erased = (image == 0).all(0)
        rows, columns = np.flatnonzero(is_erased.any(1)), np.flatnonzero(is_erased.any(0))
        height, width = len(rows), len(columns)
        assert is_erased[rows[0] : rows[0] + height, columns[0] : columns[0] + width].sum() == is_erased.sum()
        assert is_erased.sum() == height * width and (image != 0).sum() == 3 * (12000 - height * width)
        boxes.append((height, width, rows[0], columns[0]))
        seen += is_erased
    height, width, top, left = np.array(boxes, float).T
    areas, ratios = height * width / 12000, height / width
    assert 0.018 < areas.min() < 0.022 and 0.32 < areas.max() < 0.34
    small = areas < 0.2  # larger ones don't always fit, and are drawn again
    assert abs(np.quantile(areas[small], 0.5) - 0.11) < 0.006
    assert 0.28 < ratios.min() < 0.31 and 3.2 < ratios.max() < 3.6
    assert abs(np.log(ratios[small]).mean()) < 0.05
    assert abs(np.log(ratios[small]).std() - 2 * np.log(1 / 0.3) / np.sqrt(12)) < 0.03
    assert abs((top / (100 - height)).mean() - 0.5) < 0.02 and abs((left / (120 - width)).mean() - 0.5) < 0.02
    assert all(edge.max() > 0 for edge in (seen[0], seen[-1], seen[:, 0], seen[:, -1]))


def test_erasing_is_as_frequent_as_asked_and_fills_with_zeros_or_noise():
    random = np.random.RandomState(0)
    erased = []
    for _ in range(1000):
        image = np.full((3, 30, 30), 9, np.float32)
        RandomErasing(0.25, "pixel")(image, random)
        erased.append(image[image != 9])
    assert 200 < sum(len(values) > 0 for values in erased) < 300
    noise = np.concatenate(erased)
    assert (
        abs(noise.mean()) < 0.01 and abs(noise.std() - 1) < 0.01 and len(np.unique(noise)) > 0.9 * len(noise)
    )
    tiny = np.ones((3, 1, 1), np.float32)
    RandomErasing(1.0, "zero")(tiny, random)
    assert (tiny == 1).all()


# The way through loader and options.


def test_by_default_nothing_is_added():
    assert image_operators(AugmentConfig(), SPEC) == []
    picture = draw_pictures()[0]
    plain = TrainTransform(SPEC, AugmentConfig(), seed=3, epoch=1)
    random = random_state(3, 1, 5)
    expected = transforms.random_resized_crop(
        picture, 24, (0.08, 1.0), (3 / 4, 4 / 3), SPEC.interpolation, SPEC.antialias, random
    )
    expected = transforms.flip(expected) if random.uniform() < 0.5 else expected
    np.testing.assert_array_equal(plain(picture, 5), expected)
    out = np.ones((3, 24, 24), np.float32)
    plain.finish(out, 5)
    assert (out == 1).all()


def test_options_become_operators_in_their_order():
    config = AugmentConfig(auto_augment="v0", color_jitter=(0.4, 0.0, 0.0))
    canvas = Canvas(Image.Resampling.BICUBIC, (124, 116, 104))
    assert image_operators(config, SPEC) == [AutoAugment(canvas), ColorJitter((0.4, 0.0, 0.0))]
    config = AugmentConfig(rand_augment="tf", rand_layers=3, rand_magnitude=12.0, rand_magnitude_std=0.5)
    linear = Preprocessing(24, 24, "bilinear", True, (0.0, 1.0, 2.0), (1.0,) * 3)
    canvas = Canvas(Image.Resampling.BILINEAR, (0, 255, 255))
    assert image_operators(config, linear) == [RandAugment(canvas, "tf", 3, 12.0, 0.5)]


EVERYTHING = {
    "crop_area": (0.5, 1.0),
    "rand_augment": "tf",
    "rand_magnitude_std": 0.5,
    "color_jitter": (0.4, 0.4, 0.4),
    "random_erasing": 0.9,
    "mixup": 0.4,
    "cutmix": 1.0,
}


def load(dataset, order, *, num_workers=2, seed=0, epoch=0, rank=0, mixes=True, **options):
    config = AugmentConfig(**(options or EVERYTHING))
    transform = TrainTransform(SPEC, config, seed=seed, epoch=epoch)
    batches = load_batches(dataset, order, transform, SPEC, num_workers=num_workers, finish=transform.finish)
    if mixes:
        mixing = Mixing(config.mixup, config.cutmix)
        batches = mix_batches(batches, mixing, seed=seed, epoch=epoch, rank=rank)
    batches = list(batches)
    targets = [b.labels if b.shares is None else dense(b.labels, b.shares, 8) for b in batches]
    return np.stack([b.images for b in batches]), np.stack(targets)


FORWARD, BACKWARD = np.arange(8), np.arange(8)[::-1].copy()


def test_pixels_depend_on_seed_epoch_and_image_whatever_the_threads_and_the_order(noise):
    images, _ = load(noise, [FORWARD, BACKWARD], num_workers=1, mixes=False)
    np.testing.assert_array_equal(images[0], images[1][::-1])
    for num_workers in (2, 7):
        again, _ = load(noise, [FORWARD, BACKWARD], num_workers=num_workers, mixes=False)
        np.testing.assert_array_equal(again, images)
    for change in ({"seed": 1}, {"epoch": 1}):
        other, _ = load(noise, [FORWARD], mixes=False, **change)
        assert not any((a == b).all() for a, b in zip(images[0], other[0], strict=True))


@pytest.mark.parametrize(
    "option",
    [
        {"auto_augment": "v0"},
        {"rand_augment": "timm", "rand_magnitude_std": 0.5},
        {"color_jitter": (0.2, 0.2, 0.2)},
        {"random_erasing": 0.5},
    ],
)
def test_each_option_changes_pixels_and_repeats(noise, option):
    still = {"crop_area": (1.0, 1.0), "flip": 0.0}
    same = Dataset.of_files([noise.name(0)] * 8, np.arange(8))
    plain, _ = load(same, [FORWARD], mixes=False, **still)
    changed, _ = load(same, [FORWARD], mixes=False, **still, **option)
    assert (changed != plain).any() and len({image.tobytes() for image in changed[0]}) > 3
    again, _ = load(same, [FORWARD], mixes=False, num_workers=5, **still, **option)
    np.testing.assert_array_equal(again, changed)


def test_what_is_mixed_depends_on_seed_epoch_step_and_rank(noise):
    images, labels = load(noise, [FORWARD] * 3)
    assert labels.shape == (3, 8, 8) and labels.dtype == np.float32
    np.testing.assert_allclose(labels.sum(2), 1, rtol=1e-6)
    for num_workers in (1, 5):
        again = load(noise, [FORWARD] * 3, num_workers=num_workers)
        np.testing.assert_array_equal(again[0], images)
        np.testing.assert_array_equal(again[1], labels)
    shares = {float(labels[step, 0, 0]) for step in range(3)}
    for change in ({"seed": 1}, {"epoch": 1}, {"rank": 1}):
        shares |= {float(row[0, 0]) for row in load(noise, [FORWARD] * 3, **change)[1]}
    assert len(shares) == 12


def test_erasing_is_done_to_normalised_values(noise):
    """What is erased with zeros is exactly the mean, which no pixel of eight bits is."""
    erasing = {"random_erasing": 1.0, "random_erasing_mode": "zero"}
    images, _ = load(noise, [FORWARD], mixes=False, **erasing)
    assert all(0.01 < (image == 0).mean() < 0.4 for image in images[0])
    plain, _ = load(noise, [FORWARD], mixes=False, flip=0.5)
    assert (plain != 0).all()
    np.testing.assert_array_equal(images[images != 0], plain[images != 0])


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["augment.auto_augment=v1"],
            "augment.auto_augment must be one of v0. Received: 'v1'",
        ),
        (["augment.rand_augment=tim"], "did you mean timm"),
        (
            ["augment.random_erase=0.1"],
            "unknown option augment.random_erase; did you mean augment.random_erasing",
        ),
        (["augment.random_erasing=1.5"], "augment.random_erasing must be from 0 to 1"),
        (["augment.random_erasing_mode=pixels"], "did you mean pixel"),
        (["augment.rand_magnitude=31"], "augment.rand_magnitude must be from 0 to 30"),
        (["augment.rand_layers=0"], "augment.rand_layers must be at least 1"),
        (["augment.color_jitter=0.4"], "augment.color_jitter must be a list of 3 numbers"),
        (["augment.color_jitter=[0.4, -1, 0]"], "augment.color_jitter must be three numbers of 0 or more"),
        (["augment.mixup=-1"], "augment.mixup must be 0 or more"),
        (
            ["augment.auto_augment=v0", "augment.rand_augment=tf"],
            "augment.auto_augment.*augment.rand_augment.*'v0' and 'tf'",
        ),
        (["augment.rand_augment=timm", "augment.rand_magnitude=10.5"], "augment.rand_magnitude.*10"),
        (["augment.cutmix=1", "data.batch_size=1"], "data.batch_size.*1"),
    ],
)
def test_wrong_options_are_refused(tmp_path, overrides, words):
    (tmp_path / "c.yaml").write_text("model: {name: EfficientNetB0}")
    with pytest.raises(ConfigError, match=words):
        load_config(tmp_path / "c.yaml", overrides)


# Training with it, and what it shows.


def test_a_run_with_everything_repeats_itself(noise_config, tmp_path):
    losses = []
    for workers in (1, 3):
        options = ["-c", str(noise_config), "-o", f"data.num_workers={workers}", "--overwrite"]
        assert train.main(options) == 0
        (line,) = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
        losses.append(json.loads(line)["train_loss"])
    assert losses[0] == losses[1] and np.isfinite(losses[0])
    options = ["-c", str(noise_config), "--show-batch", str(tmp_path / "x.png")]
    assert train.main(options) == 0  # the run stays


def test_training_batches_are_erased(noise_config, tmp_path, monkeypatch):
    seen, draw = [], show.draw_batch
    monkeypatch.setattr(show, "draw_batch", lambda *args: seen.append(args[0]) or draw(*args))
    options = ["random_erasing=1", "random_erasing_mode=zero", "mixup=0", "cutmix=0", "rand_augment=null"]
    overrides = [word for option in options for word in ("-o", f"augment.{option}")]
    assert train.main(["-c", str(noise_config), "--show-batch", str(tmp_path / "x.png"), *overrides]) == 0
    assert all(0.01 < (image == 0).mean() < 0.4 for image in seen[0].images)
    assert seen[0].labels.dtype == np.int64
