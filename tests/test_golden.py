"""The networks' logits against those of published implementations. golden/README.md says how those were made.

`pytest -s tests/test_golden.py` prints each difference.
"""

import numpy as np
import paddle
import pytest
from golden.seeded import ODD_SIZE, draw_input, list_keys, list_stage_starts
from helpers import LIMIT, build_filled, read_golden, relative_difference

from ppcls import MODELS, build_model
from ppcls.inference.engines.eager import EagerEngine

EVERY_16TH = slice(None, None, 16)  # the channels of a block's output that the golden file holds
HUGE = [name for name in MODELS if "wsl" in name and "32x8d" not in name]  # 0.8 to 3.3 GB of weights
NAMES = [pytest.param(name, marks=pytest.mark.slow) if name in HUGE else name for name in MODELS]


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


@pytest.mark.parametrize("name", ["EfficientNetB0", "EfficientNetLite0", "ResNeXt101_32x8d_wsl"])
def test_embeddings_are_the_published_implementations(name, record_property):
    model = build_filled(name)
    golden = read_golden("embeddings.npz", name).items()
    differences = {f"{shape[2:]}": relative_difference(model.embed, shape, rows) for shape, rows in golden}
    record_property("relative differences", report(f"{name}, embeddings", differences))
    assert differences and max(differences.values()) <= LIMIT
    logits, embeddings = EagerEngine(model).run_all(draw_input(1, 3, 64, 64))
    expected = embeddings.astype(np.float64) @ model.fc.weight.numpy() + model.fc.bias.numpy()
    assert np.linalg.norm(logits - expected) <= 1e-6 * np.linalg.norm(expected)


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
