"""Pixels to the network's input: PaddleClas's and torchvision's results, and the arithmetic itself."""

import json
import math

import numpy as np
import pytest
from golden.make_preprocess import RAW_SETTING, RAW_SIZES, SIZES, digest, draw_picture
from helpers import GOLDEN
from PIL import Image

from ppcls.data import transforms
from ppcls.data.opencv import cv2
from ppcls.data.transforms import (
    Normalizer,
    flip,
    random_resized_crop,
    resize,
    resize_short_center_crop,
    resized_size,
)
from ppcls.errors import DataError
from ppcls.preprocessing import Preprocessing

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CODES = {
    "bilinear": cv2.INTER_LINEAR,
    "bicubic": cv2.INTER_CUBIC,
    "area": cv2.INTER_AREA,
    "lanczos": cv2.INTER_LANCZOS4,
}
FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "area": Image.Resampling.BOX,
    "lanczos": Image.Resampling.LANCZOS,
}


def spec(short, size, interpolation="bilinear", antialias=False):
    return Preprocessing(short, size, interpolation, antialias, MEAN, STD)


# Against the published implementations; tests/golden/make_preprocess.py made the files.


def cases(name):
    return json.loads((GOLDEN / name).read_text(encoding="utf-8"))["cases"]


def test_bilinear_is_paddleclas_to_the_bit():
    rows = cases("preprocess_paddleclas.json")
    wrong = []
    for case in rows:
        picture = draw_picture(*case["size"])
        result = resize_short_center_crop(picture, spec(case["resize_short"], case["crop_size"]))
        assert result.shape == (case["crop_size"], case["crop_size"], 3) and result.dtype == np.uint8
        if digest(result) != case["sha256"]:
            wrong.append(case)
    assert len(rows) == len(SIZES) and not wrong


@pytest.mark.parametrize("interpolation", ["bicubic", "area", "lanczos"])
def test_other_interpolations_are_paddleclas_within_a_level(interpolation):
    expected = np.load(GOLDEN / "preprocess_paddleclas.npz")
    for height, width in RAW_SIZES:
        result = resize_short_center_crop(draw_picture(height, width), spec(*RAW_SETTING, interpolation))
        golden = expected[f"{interpolation}/{height}x{width}"].astype(int)
        np.testing.assert_allclose(result, golden, atol=1, err_msg=f"{height}x{width}")


def test_antialias_is_torchvision_to_the_bit():
    rows = cases("preprocess_torchvision.json")
    wrong = []
    for case in rows:
        setting = spec(case["resize_short"], case["crop_size"], case["interpolation"], antialias=True)
        if digest(resize_short_center_crop(draw_picture(*case["size"]), setting)) != case["sha256"]:
            wrong.append(case)
    assert len(rows) >= 60 and not wrong


def test_sizes_are_rounded_half_to_even():
    assert resized_size(375, 500, 256) == (256, 341)
    assert resized_size(500, 375, 256) == (341, 256)
    assert resized_size(64, 65, 32) == (32, 32)  # 32.5
    assert resized_size(64, 67, 32) == (32, 34)  # 33.5
    assert resized_size(1, 1, 256) == (256, 256)


def test_crop_offsets_are_rounded_down():
    picture = draw_picture(64, 67)
    np.testing.assert_array_equal(
        resize_short_center_crop(picture, spec(64, 61)), picture[1 : 1 + 61, 3 : 3 + 61]
    )


# Resizing only what the crop needs.


def plain(picture, short, size, interpolation, antialias):
    """The documented steps, one by one, on the whole picture."""
    height, width = picture.shape[:2]
    percent = float(short) / min(width, height)
    width, height = int(round(width * percent)), int(round(height * percent))
    if antialias:
        resized = np.asarray(Image.fromarray(picture).resize((width, height), FILTERS[interpolation]))
    else:
        resized = cv2.resize(picture, (width, height), interpolation=CODES[interpolation])
    left, top = (width - size) // 2, (height - size) // 2
    return resized[top : top + size, left : left + size]


def random_sizes(count):
    """Odd and even, enlarged and shrunk, of one pixel, long and thin, equal to the target."""
    random = np.random.RandomState(0)
    yield from [
        (1, 1),
        (1, 50),
        (50, 1),
        (1, 400),
        (2, 3),
        (3, 2),
        (224, 224),
        (256, 256),
        (256, 300),
        (300, 256),
    ]
    yield from [
        (512, 512),
        (375, 500),
        (500, 375),
        (1500, 30),
        (30, 1500),
        (257, 255),
        (255, 257),
        (64, 2000),
    ]
    for number in range(count):
        limit = (20, 100, 400, 900)[number % 4]
        yield tuple(random.randint(1, limit, 2).tolist())


SETTINGS = [(256, 224), (64, 64), (37, 20), (72, 71), (256, 1), (100, 33)]


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("interpolation", CODES)
def test_a_part_of_the_resized_picture_is_that_part_of_the_whole(interpolation, antialias):
    random, checked = np.random.RandomState(1), 0
    for number, (height, width) in enumerate(random_sizes(60 if antialias else 500)):
        short, size = SETTINGS[number % len(SETTINGS)]
        if math.prod(resized_size(height, width, short)) > 500_000:
            short, size = 40, 32
        if is_thin(height, width, short):
            continue  # the next test
        checked += 1
        picture = np.frombuffer(random.bytes(height * width * 3), np.uint8).reshape(height, width, 3)
        result = resize_short_center_crop(picture, spec(short, size, interpolation, antialias))
        np.testing.assert_array_equal(
            result,
            plain(picture, short, size, interpolation, antialias),
            err_msg=f"{height}x{width} to {short}, {size}",
        )
    assert checked > (50 if antialias else 430)


def is_thin(height, width, short):
    height, width = resized_size(height, width, short)
    return max(height, width) > 16 * min(height, width)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("interpolation", CODES)
def test_of_a_long_and_thin_picture_the_part_around_the_crop_is_resized(interpolation, antialias):
    """To nearly the pixels of the whole: the difference is within a level, seldom more."""
    random = np.random.RandomState(2)
    for number in range(24):
        height, ratio = random.randint(1, 60), random.uniform(17, 60)
        width = math.ceil(height * ratio)
        coarse = random.randint(0, 256, (max(2, height // 4), max(2, width // 4), 3)).astype(np.uint8)
        picture = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        picture = picture if number % 2 else np.ascontiguousarray(picture.transpose(1, 0, 2))
        short, size = SETTINGS[number % 4]
        assert is_thin(*picture.shape[:2], short)
        result = resize_short_center_crop(picture, spec(short, size, interpolation, antialias))
        expected = plain(picture, short, size, interpolation, antialias)
        assert result.shape == expected.shape and result.dtype == np.uint8
        difference = np.abs(result.astype(int) - expected)
        # of the area, one line of the crop may begin a pixel later
        assert (difference > 1).mean() <= (1 / size if interpolation == "area" else 0.002), picture.shape
        assert difference.mean() < 1 and difference.max() < 80


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("interpolation", CODES)
def test_a_long_and_thin_picture_is_never_resized_whole(monkeypatch, interpolation, antialias):
    """The whole would be 256 x 512,000 pixels and take 1.25 GB."""
    sizes = []
    resize_opencv, resize_pillow = cv2.resize, Image.Image.resize

    def note(result, size):
        sizes.append(math.prod(size))
        return result

    monkeypatch.setattr(
        transforms.cv2,
        "resize",
        lambda *args, **options: (lambda out: note(out, out.shape[:2]))(resize_opencv(*args, **options)),
    )
    monkeypatch.setattr(
        Image.Image,
        "resize",
        lambda *args, **options: (lambda out: note(out, out.size))(resize_pillow(*args, **options)),
    )
    picture = draw_picture(10, 20_000)
    assert resize_short_center_crop(picture, spec(256, 224, interpolation, antialias)).shape == (224, 224, 3)
    assert len(sizes) == 1 and sizes[0] < 8_000_000


def test_only_a_part_is_resized(monkeypatch):
    """Of a wide picture the right side is never looked at."""
    seen = []
    original = cv2.resize
    monkeypatch.setattr(
        transforms.cv2,
        "resize",
        lambda image, *args, **kwargs: seen.append(image.shape) or original(image, *args, **kwargs),
    )
    resize_short_center_crop(draw_picture(300, 900), spec(256, 224))
    assert seen[0][0] < 300 and 560 < seen[0][1] < 620


def test_the_interpolations_differ():
    picture = draw_picture(150, 201)
    results = {
        resize_short_center_crop(picture, spec(64, 56, interpolation, antialias)).tobytes()
        for interpolation in CODES
        for antialias in (False, True)
    }
    assert len(results) == 8


def test_a_picture_too_long_and_thin_is_refused():
    with pytest.raises(DataError, match="5000 x 1"):
        resize_short_center_crop(np.zeros((1, 5000, 3), np.uint8), spec(256, 224))


def test_a_view_and_a_read_only_picture_are_taken():
    picture = draw_picture(150, 201)
    view = picture[::-1, ::-1]
    for antialias in (False, True):
        setting = spec(64, 56, antialias=antialias)
        expected = resize_short_center_crop(np.ascontiguousarray(view), setting)
        np.testing.assert_array_equal(resize_short_center_crop(view, setting), expected)


# Augmentation.

RATIO = (3 / 4, 4 / 3)


def positions(height, width):
    """Red is the row and green the column, so that a crop shows where it was."""
    rows, columns = np.mgrid[:height, :width]
    return np.dstack([rows, columns, np.zeros_like(rows)]).astype(np.uint8)


def crop_window(monkeypatch, picture, random, area=(0.08, 1.0), ratio=RATIO):
    """Height and width of the crop that is resized, and the place of its first pixel."""
    seen = []
    monkeypatch.setattr(transforms, "resize", lambda crop, *args: seen.append(crop) or crop)
    random_resized_crop(picture, 8, area, ratio, "bilinear", False, random)
    return seen[0].shape[0], seen[0].shape[1], int(seen[0][0, 0, 0]), int(seen[0][0, 0, 1])


def test_crops_follow_the_paper(monkeypatch):
    """Area uniform, the logarithm of the ratio uniform, every place alike."""
    random = np.random.RandomState(0)
    picture = positions(200, 240)
    windows = np.array([crop_window(monkeypatch, picture, random) for _ in range(4000)], float)
    height, width, top, left = windows.T
    areas, ratios = height * width / (200 * 240), width / height
    assert areas.min() > 0.075 and areas.max() <= 1
    assert ratios.min() > 3 / 4 * 0.97 and ratios.max() < 4 / 3 * 1.03
    small = areas < 0.5  # larger ones often don't fit, and are drawn again
    assert abs(np.quantile(areas[small], 0.5) - 0.29) < 0.02
    assert abs(np.log(ratios[small]).mean()) < 0.02
    assert abs(np.log(ratios[small]).std() - math.log(16 / 9) / math.sqrt(12)) < 0.01
    assert abs((top / np.maximum(200 - height, 1))[small].mean() - 0.5) < 0.03
    assert abs((left / np.maximum(240 - width, 1))[small].mean() - 0.5) < 0.03
    assert top[small].min() == left[small].min() == 0
    assert (top + height)[small].max() == 200 and (left + width)[small].max() == 240
    assert (areas == 1).mean() < 0.01  # what ten draws that don't fit would give


@pytest.mark.parametrize(
    ("size", "area", "ratio"),
    [
        ((1, 1), (0.08, 1.0), RATIO),
        ((1, 200), (0.08, 1.0), RATIO),
        ((200, 1), (0.08, 1.0), RATIO),
        ((3, 2), (0.08, 1.0), RATIO),
        ((1, 1), (0.5, 1.0), (0.01, 0.02)),
        ((1, 1), (0.5, 1.0), (50.0, 60.0)),
        ((40, 200), (1.0, 1.0), RATIO),
        ((200, 40), (1.0, 1.0), RATIO),
        ((50, 60), (0.0001, 0.0002), RATIO),
        ((50, 60), (0.5, 1.0), (20.0, 30.0)),
        ((50, 60), (0.5, 1.0), (0.01, 0.02)),
    ],
)
def test_crops_stay_inside(monkeypatch, size, area, ratio):
    random, picture = np.random.RandomState(0), positions(*size)
    for _ in range(200):
        height, width, top, left = crop_window(monkeypatch, picture, random, area, ratio)
        assert height >= 1 and width >= 1 and top + height <= size[0] and left + width <= size[1]


def test_a_crop_that_never_fits_is_the_largest_one_in_the_middle(monkeypatch):
    window = crop_window(monkeypatch, positions(40, 200), np.random.RandomState(0), (1.0, 1.0))
    assert window == (40, 53, 0, 73)
    assert crop_window(monkeypatch, positions(200, 40), np.random.RandomState(0), (1.0, 1.0)) == (
        53,
        40,
        73,
        0,
    )
    assert crop_window(monkeypatch, positions(40, 44), np.random.RandomState(0), (1.0, 1.0), (1.1, 1.1))[
        :2
    ] == (40, 44)


@pytest.mark.parametrize("antialias", [False, True])
def test_a_crop_is_resized_to_the_size(antialias):
    picture = draw_picture(60, 70)
    random = np.random.RandomState(3)
    result = random_resized_crop(picture, 32, (0.5, 1.0), RATIO, "bicubic", antialias, random)
    assert result.shape == (32, 32, 3) and result.dtype == np.uint8
    whole = random_resized_crop(picture[:, :60], 32, (1.0, 1.0), (1.0, 1.0), "bicubic", antialias, random)
    np.testing.assert_array_equal(whole, resize(picture[:, :60], 32, 32, "bicubic", antialias))


def test_flip_exchanges_left_and_right():
    picture = draw_picture(5, 4)
    np.testing.assert_array_equal(flip(picture), picture[:, ::-1])


# Normalising.


@pytest.mark.parametrize(
    ("mean", "std"), [(MEAN, STD), ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), ((0, 0, 0), (1, 2, 3))]
)
def test_normalizing_is_the_arithmetic_in_float32(mean, std):
    values = np.arange(256, dtype=np.uint8)
    picture = np.stack(
        [values.reshape(16, 16), values[::-1].reshape(16, 16), values.reshape(16, 16).T], axis=2
    )
    batch = np.full((2, 3, 16, 16), np.nan, np.float32)
    Normalizer(mean, std)(picture, batch[1])
    steps = picture.astype("float32") * np.float32(1.0 / 255.0)
    steps = (steps - np.array(mean, np.float32)) / np.array(std, np.float32)
    assert steps.dtype == np.float32
    np.testing.assert_array_equal(batch[1], steps.transpose(2, 0, 1))
    assert np.isnan(batch[0]).all()


def test_normalizing_a_crop_of_a_larger_picture():
    picture = draw_picture(40, 50)
    normalize = Normalizer(MEAN, STD)
    out, expected = np.empty((2, 3, 24, 24), np.float32)
    normalize(picture[3:27, 5:29], out)
    normalize(np.ascontiguousarray(picture[3:27, 5:29]), expected)
    np.testing.assert_array_equal(out, expected)


def test_a_picture_that_does_not_fill_its_slot_is_an_error():
    """OpenCV would put its result elsewhere and leave the slot with whatever was in memory."""
    with pytest.raises(ValueError, match="slot"):
        Normalizer(MEAN, STD)(draw_picture(24, 23), np.empty((3, 24, 24), np.float32))
