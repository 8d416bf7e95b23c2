"""Options of the test run, and what several of its modules share."""

import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests of several minutes or gigabytes too")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--slow"):
        return
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="several minutes or gigabytes; run with --slow"))


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """A cache of the run's own, so that no test sees or changes the user's. What is measured for it takes
    no long time, and need not be exact."""
    from ppcls.inference import fastest
    from ppcls.inference.timing import time_in_blocks

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PPCLS_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setattr(fastest, "time_in_blocks", partial(time_in_blocks, seconds=0.01, pause=0))
        yield


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """A folder of 40 pictures of different sizes, each with a pattern of its own and noise."""
    import cv2

    folder = tmp_path_factory.mktemp("pictures")
    for number in range(40):
        random = np.random.RandomState(number)
        height, width = 40 + number % 7, 60 - number % 5
        pattern = random.randint(0, 2, (8, 10, 3))[np.arange(height) // 6][:, np.arange(width) // 6]
        picture = 200 * pattern + random.randint(0, 56, (height, width, 3))
        ending = ("png", "jpg", "bmp")[number % 3]
        cv2.imwrite(str(folder / f"picture {number:02d}.{ending}"), picture.astype(np.uint8))
    return folder


@pytest.fixture(scope="session")
def noise(tmp_path_factory):
    """A dataset of 8 coarse pictures of noise, each of a class of its own."""
    from PIL import Image

    from ppcls.data.dataset import Dataset

    folder = tmp_path_factory.mktemp("noise")
    random = np.random.RandomState(0)
    paths = []
    for number in range(8):
        paths.append(str(folder / f"{number}.png"))
        coarse = random.randint(0, 256, (5, 6, 3)).repeat(8, 0).repeat(8, 1)
        Image.fromarray(coarse.astype(np.uint8)).save(paths[-1])
    return Dataset.of_files(paths, np.arange(8))


@pytest.fixture
def noise_config(noise, tmp_path):
    """A config that trains on `noise` for an epoch, with every kind of augmentation."""
    lines = "\n".join(f"{Path(noise.name(index)).name} {label}" for index, label in enumerate(noise.labels))
    (tmp_path / "list.txt").write_text(lines)
    (tmp_path / "names.txt").write_text("\n".join(f"class {letter}" for letter in "abcdefgh"))
    root, listed = str(Path(noise.name(0)).parent), str(tmp_path / "list.txt")
    (tmp_path / "c.yaml").write_text(
        f"""
model: {{name: EfficientNetB0_small, num_classes: 8}}
data: {{train_root: {root}, train_list: {listed}, eval_root: {root}, eval_list: {listed}, batch_size: 4,
       allow_overlap: true,
       class_names: {tmp_path / "names.txt"}, num_workers: 2, preprocessing: {{resize_short: 32,
       crop_size: 32, interpolation: bilinear, antialias: false, mean: [0.5, 0.5, 0.5],
       std: [0.5, 0.5, 0.5]}}}}
augment: {{rand_augment: timm, random_erasing: 0.5, mixup: 0.2, cutmix: 1.0}}
train: {{epochs: 1, label_smoothing: 0.1}}
output_dir: {tmp_path / "run"}
device: cpu
"""
    )
    return tmp_path / "c.yaml"


@pytest.fixture
def photos(tmp_path):
    """A folder of 44 different pictures in four class folders."""
    from helpers import PHOTOS, write_picture

    seed = 0
    for name, count in PHOTOS.items():
        for number in range(count):
            write_picture(tmp_path / "my photos" / name / f"{number} x.png", seed)
            seed += 1
    return tmp_path / "my photos"


@pytest.fixture(scope="session")
def preprocessing():
    from ppcls.preprocessing import Preprocessing

    return Preprocessing(72, 64, "bilinear", False, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


@pytest.fixture(scope="session")
def network(pictures, preprocessing):
    """EfficientNetB0, which pads for the size of its input and has every kind of layer that is hard to
    convert. Its weights are drawn, and its classifier set so that it tells `pictures` from one another."""
    import paddle
    from helpers import build_filled

    from ppcls.data.dataset import Dataset
    from ppcls.data.folders import find_images
    from ppcls.data.loader import load_batch
    from ppcls.data.transforms import EvalTransform

    model = build_filled("EfficientNetB0", num_classes=40)
    files = find_images(str(pictures))
    batch = load_batch(
        Dataset.of_files(files), np.arange(40), EvalTransform(preprocessing), preprocessing, on_error="fail"
    )
    with paddle.no_grad():
        logits = model(paddle.to_tensor(batch.images))
        gain = 1 / float(logits.std(axis=0).mean())
        model.fc.weight.set_value(model.fc.weight * gain)
        model.fc.bias.set_value((model.fc.bias - logits.mean(axis=0)) * gain)
    return model


@pytest.fixture(scope="session")
def embedding_export(network, preprocessing, tmp_path_factory) -> Path:
    """`network`, exported with embeddings for three images of 64 x 64 pixels at a time."""
    from ppcls.inference.eager import describe
    from ppcls.inference.export import export_model
    from ppcls.inference.formats import writable_formats
    from ppcls.inference.formats.format import ExportOptions

    folder = tmp_path_factory.mktemp("embeddings") / "model"
    export_model(
        network,
        folder,
        describe(network, preprocessing),
        formats=writable_formats(network)[0],
        threads=2,
        options=ExportOptions(embeddings=True, batch_size=3, image_size=64),
        log=lambda line: None,
    )
    return folder


@pytest.fixture(scope="session")
def exported(network, preprocessing, tmp_path_factory) -> Path:
    """`network`, exported in each format that can be written here. Copy it before changing it."""
    from ppcls.data.class_names import ClassNames
    from ppcls.inference.eager import describe
    from ppcls.inference.export import export_model
    from ppcls.inference.formats import writable_formats

    names = ClassNames.of_pairs((f"n{number}", f"class {number}") for number in range(40))
    folder = tmp_path_factory.mktemp("exported") / "model"
    export_model(
        network,
        folder,
        describe(network, preprocessing, names),
        formats=writable_formats(network)[0],
        threads=2,
        log=lambda line: None,
    )
    return folder


@pytest.fixture
def refused(tmp_path):
    """A function that writes the bytes of a file of weights, checks the message with which they are refused,
    and returns it."""
    from ppcls.errors import WeightsError
    from ppcls.weights.readers import read_file

    def check(data: bytes, words: str | None = None) -> str:
        path = tmp_path / "file"
        path.unlink(missing_ok=True)  # to overwrite a file is much slower
        path.write_bytes(data)
        with pytest.raises(WeightsError) as error:
            read_file(path)
        message = str(error.value)
        assert message.startswith(f"{path} ")
        assert re.search(words or "", message.removeprefix(str(path))), message
        return message

    return check


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from chromium import BROWSER, Chromium

    if BROWSER is None:
        pytest.skip("there is no Chromium here (Debian: apt-get install chromium)")
    chromium = Chromium(tmp_path_factory.mktemp("profile"))
    yield chromium
    chromium.close()
