"""Options of the test run, and what several of its modules share."""

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
    """A cache of the run's own, so that no test sees or changes the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PPCLS_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="session")
def network():
    """EfficientNetB0 with the weights that the golden numbers were made with. It pads for the size of its
    input and has every kind of layer that is hard to convert."""
    from golden.seeded import draw
    from ppcls import build_model

    model = build_model("EfficientNetB0")
    for key, parameter in model.state_dict().items():
        parameter.set_value(draw("EfficientNetB0", key, tuple(parameter.shape)))
    model.eval()
    return model


@pytest.fixture(scope="session")
def spec():
    from ppcls.preprocessing import Preprocessing

    return Preprocessing(36, 32, "bilinear", False, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


@pytest.fixture(scope="session")
def exported(network, spec, tmp_path_factory) -> Path:
    """`network`, exported in each format that can be written here. Copy it before changing it."""
    from ppcls.data.class_names import ClassNames
    from ppcls.inference.export import export_model, writable_formats

    names = tuple(f"class {number}" for number in range(1000))
    folder = tmp_path_factory.mktemp("exported") / "model"
    export_model(
        network,
        folder,
        preprocessing=spec,
        class_names=ClassNames(names=names, folders=tuple(f"n{number}" for number in range(1000))),
        info=None,
        formats=writable_formats(network)[0],
        threads=2,
        say=lambda line: None,
    )
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """A folder of 40 pictures of different sizes, each with a colour of its own that shows through noise."""
    import cv2

    folder = tmp_path_factory.mktemp("pictures")
    for number in range(40):
        random = np.random.RandomState(number)
        shape = (40 + number % 7, 60 - number % 5, 3)
        picture = random.randint(0, 256, (1, 1, 3)) // 2 + random.randint(0, 128, shape)
        ending = ("png", "jpg", "bmp")[number % 3]
        cv2.imwrite(str(folder / f"picture {number:02d}.{ending}"), picture.astype(np.uint8))
    return folder
