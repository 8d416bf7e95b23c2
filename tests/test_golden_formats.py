"""Files of the published formats: their logits here against those that each source's own code computes.

The quick tests write the drawn weights under a source's names themselves; a hash of the keys and shapes in
the source's own state dict shows that it would have written the same. The slow one takes the files that the
sources wrote, of all networks; golden/README.md says how. `pytest -s` prints each difference.
"""

import hashlib
import json
import os
from functools import cache
from pathlib import Path

import numpy as np
import paddle
import pytest
from golden.seeded import draw
from helpers import GOLDEN, LIMIT, read_golden, relative_difference
from safetensors.numpy import save_file

from ppcls import build_model, load_weights
from ppcls.weights.keymaps import TORCH_SOURCES, TRANSPOSED, key_map

FILES = json.loads((GOLDEN / "formats_keys.json").read_text(encoding="utf-8"))
# B0_small and three Lites too. From B5 on torchvision's epsilon is another.
SMALL = ("B0", "B1", "small", "Lite0", "Lite1", "Lite4")
QUICK = [file for file, facts in FILES.items() if facts["model"].endswith(SMALL)]
QUICK += ["torchvision/efficientnet_b5.pth", "wsl/ResNeXt101_32x8d_wsl.pth"]


def source_of(file: str) -> str:
    """As key_map knows it."""
    folder = file.split("/")[0]
    return "torchvision" if folder in ("wsl", "fixres") else folder


def variant_of(file: str) -> str | None:
    """What a user must say of a file that has no config.json: lukemelas's come in two normalisations."""
    return "lukemelas/aa" if file.startswith("lukemelas/efficientnet-b") else None


@cache
def shapes_of(name: str) -> dict[str, tuple[int, ...]]:
    with paddle.LazyGuard():
        model = build_model(name)
    return {key: tuple(parameter.shape) for key, parameter in model.state_dict().items()}


def lay_out(file: str, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays by this project's keys, as the source of a file keeps them."""
    source = source_of(file)
    names = key_map(source, FILES[file]["model"], values)
    if source not in TORCH_SOURCES:
        return {names[key]: array for key, array in values.items()}
    arrays = {names[key]: array.T if key in TRANSPOSED else array for key, array in values.items()}
    means = [key for key in arrays if key.endswith(".running_mean")]
    counters = {key.replace("running_mean", "num_batches_tracked"): np.zeros((), np.int64) for key in means}
    return arrays | counters


def hash_keys(arrays: dict[str, np.ndarray]) -> str:
    lines = sorted(f"{key} {list(array.shape)}" for key, array in arrays.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def write(folder: Path, file: str, architecture: str | None = None) -> Path:
    """The drawn weights in the container of a file's source, of which torch's own needs torch.

    architecture: for timm's, what the config beside the file says instead of the truth.
    """
    name = FILES[file]["model"]
    arrays = lay_out(file, {key: draw(name, key, shape) for key, shape in shapes_of(name).items()})
    assert hash_keys(arrays) == FILES[file]["keys"]
    path = folder / Path(file).name
    if source_of(file) not in TORCH_SOURCES:
        paddle.save({key: paddle.to_tensor(array) for key, array in arrays.items()}, str(path))
        return path
    save_file({key: np.ascontiguousarray(array) for key, array in arrays.items()}, path)
    if source_of(file) == "timm":
        facts = {"input_size": [3, 224, 224], "crop_pct": 0.875, "interpolation": "bicubic"}
        facts |= {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
        config = {"architecture": architecture or file.split("/")[1], "pretrained_cfg": facts}
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return path


def compare(path: Path, file: str) -> float:
    with paddle.LazyGuard():
        model = build_model(FILES[file]["model"])
    load_weights(model, str(path), variant_of(file))
    model.eval()
    # the same network under other keys
    computed = file.replace("paddleclas-names", "paddleclas")
    [(shape, expected)] = read_golden("formats.npz", computed).items()
    difference = relative_difference(model, shape, expected)
    print(f"\n{file}: {difference:.1e}")
    return difference


@pytest.mark.parametrize("file", FILES)
def test_our_names_and_shapes_are_the_sources(file):
    # without memory for their values
    arrays = {key: np.broadcast_to(0, shape) for key, shape in shapes_of(FILES[file]["model"]).items()}
    assert hash_keys(lay_out(file, arrays)) == FILES[file]["keys"]


@pytest.mark.parametrize("file", QUICK)
def test_loaded_weights_compute_what_their_source_does(file, tmp_path, record_property):
    path = write(tmp_path, file)
    difference = compare(path, file)
    path.unlink()  # pytest keeps the folders of three runs
    record_property("relative difference", difference)
    assert difference <= LIMIT


def test_the_wrong_variant_misses_the_limit_by_a_hundred_times(tmp_path, record_property):
    file = "timm/efficientnet_b0/model.safetensors"
    difference = compare(write(tmp_path, file, architecture="tf_efficientnet_b0"), file)
    record_property("relative difference", difference)
    assert difference >= 100 * LIMIT


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
def test_files_that_their_source_wrote_compute_what_it_does(file, record_property):
    folder = os.environ.get("PPCLS_FORMATS")
    if folder is None:
        pytest.skip("set PPCLS_FORMATS to the folder of make_formats_torch.py and make_formats_paddle.py")
    path = Path(folder, file)
    if not path.is_file():
        pytest.skip(f"{path} is not made")
    difference = compare(path, file)
    record_property("relative difference", difference)
    assert difference <= LIMIT
