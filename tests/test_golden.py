"""The networks' logits against those of published implementations. golden/README.md says how those were made.

`pytest -s tests/test_golden.py` prints each difference.
"""

from pathlib import Path

import numpy as np
import paddle
import pytest
from golden.seeded import ODD_SIZE, draw, draw_input, list_keys, list_stage_starts

from ppcls import MODELS, build_model

GOLDEN = Path(__file__).parent / "golden"
LIMIT = 1e-5  # of ||a - b|| / ||b||, float32: single small logits differ by 1e-3
EVERY_16TH = slice(None, None, 16)  # the channels of a block's output that the golden file holds
HUGE = [name for name in MODELS if "wsl" in name and "32x8d" not in name]  # 0.8 to 3.3 GB of weights
NAMES = [pytest.param(name, marks=pytest.mark.slow) if name in HUGE else name for name in MODELS]


def read_golden(file: str, start: str) -> dict[tuple[int, ...], np.ndarray]:
    """The published outputs by the input's shape, of the entries named `start`/shape."""
    with np.load(GOLDEN / file) as arrays:
        entries = [entry.rsplit("/", 1) for entry in arrays.files]
        shapes = [shape for entry, shape in entries if entry == start]
        return {tuple(map(int, shape.split("x"))): arrays[f"{start}/{shape}"] for shape in shapes}


def build_filled(name: str, prefix: str = "", **options):
    """The network with drawn weights; only those under `prefix`, the rest is not even allocated."""
    with paddle.LazyGuard():
        model = build_model(name, **options)
    for key, parameter in model.state_dict().items():
        if key.startswith(prefix):
            parameter.set_value(draw(name, key, tuple(parameter.shape)))
    model.eval()
    return model


@paddle.no_grad()
def relative_difference(layer, shape: tuple[int, ...], expected: np.ndarray, channels=slice(None)) -> float:
    actual = layer(paddle.to_tensor(draw_input(*shape))).numpy()[:, channels]
    assert actual.shape == expected.shape
    difference = actual.astype(np.float64) - expected
    return float(np.linalg.norm(difference) / np.linalg.norm(expected))


def compare(name: str, **options) -> dict[str, float]:
    """The difference to each published implementation at each size."""
    model = build_filled(name, **options)
    differences = {}
    for file in ("paddleclas", "timm", "efficientnet_lite_pytorch"):
        for shape, expected in read_golden(f"{file}.npz", name).items():
            size = f"{shape[2]}x{shape[3]}"
            differences[f"{file} {size}"] = relative_difference(model, shape, expected)
    return differences


def report(name: str, differences: dict[str, float]) -> str:
    text = ", ".join(f"{what}: {difference:.1e}" for what, difference in differences.items())
    print(f"\n{name}: {text}")
    return text


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_the_published_implementations(name, record_property):
    differences = compare(name)
    record_property("relative differences", report(name, differences))
    sizes = {what.split()[1] for what in differences}
    assert "{0}x{0}".format(MODELS[name].image_size) in sizes
    assert "{}x{}".format(*ODD_SIZE) in sizes or name.startswith("Fix_")  # 32x48d, which has the odd size
    assert max(differences.values()) <= LIMIT


@pytest.mark.parametrize("name", [name for name in HUGE if not name.startswith("Fix_")])
def test_blocks_of_the_huge_networks_are_the_published_implementations(name, record_property):
    differences = {}
    for index in list_stage_starts(name):
        [(shape, expected)] = read_golden("paddleclas_blocks.npz", f"{name}/{index}").items()
        block = build_filled(name, prefix=f"blocks.{index}.").blocks[index]
        differences[f"block {index}"] = relative_difference(block, shape, expected, EVERY_16TH)
    record_property("relative differences", report(name, differences))
    assert max(differences.values()) <= LIMIT


@pytest.mark.parametrize("mistake", [{"padding": "symmetric"}, {"bn_epsilon": 1e-5}])
def test_mistakes_miss_the_limit_by_a_hundred_times(mistake, record_property):
    differences = compare("EfficientNetB0", **mistake)
    record_property("relative differences", report(f"EfficientNetB0 with {mistake}", differences))
    assert min(differences.values()) >= 100 * LIMIT


@pytest.mark.parametrize("name", MODELS)
def test_drawn_keys_are_the_networks(name):
    with paddle.LazyGuard():
        model = build_model(name)
    assert sorted(list_keys(name)) == sorted(model.state_dict())
