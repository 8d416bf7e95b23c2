"""Files in the published formats: recognised by their keys, told apart by what lies around them."""

import json
from pathlib import Path

import numpy as np
import paddle
import pytest
from golden.seeded import draw, list_keys
from safetensors.numpy import save_file

from ppcls import MODELS, build_model, load_weights
from ppcls.cli.convert import main as convert_main
from ppcls.errors import PpclsError, WeightsError
from ppcls.weights.find import find_weights
from ppcls.weights.keymaps import TORCH_SOURCES, TRANSPOSED, key_map, sources_of
from ppcls.weights.published import PUBLISHED
from ppcls.weights.readers import Entry

NAME = "EfficientNetB1"  # its first stage has two blocks, which timm and torchvision name apart
PUBLISHED_TORCHVISION = next(row for row in PUBLISHED[NAME] if row.file_format == "torchvision")


@pytest.fixture(scope="module")
def drawn():
    with paddle.LazyGuard():
        model = build_model(NAME)
    return {key: draw(NAME, key, tuple(p.shape)) for key, p in model.state_dict().items()}


def write(path: Path, drawn, source: str) -> Path:
    """The drawn weights as a file of a source."""
    names = key_map(source, NAME, drawn)
    if source not in TORCH_SOURCES:
        paddle.save({names[key]: paddle.to_tensor(array) for key, array in drawn.items()}, str(path))
        return path
    arrays = {
        names[key]: np.ascontiguousarray(array.T) if key in TRANSPOSED else array
        for key, array in drawn.items()
    }
    counts = {key for key in arrays if key.endswith(".running_mean")}
    arrays |= {key.replace("running_mean", "num_batches_tracked"): np.zeros(1, np.int64) for key in counts}
    save_file(arrays, path)
    return path


def load(path, variant=None):
    with paddle.LazyGuard():
        model = build_model(NAME)
    return model, load_weights(model, str(path), variant)


@pytest.mark.parametrize(
    ("source", "variant", "epsilon", "padding", "mean"),
    [
        ("paddleclas", None, 1e-3, "same", None),
        ("paddleclas-names", None, 1e-3, "same", None),
        ("lukemelas", None, 1e-3, "same", None),
        ("lukemelas", "lukemelas/aa", 1e-3, "same", 0.485),
        ("lukemelas", "lukemelas/advprop", 1e-3, "same", 0.5),
        ("timm", "timm/tf_efficientnet_b1.aa_in1k", 1e-3, "same", 0.485),
        ("timm", "timm/tf_efficientnet_b1.ap_in1k", 1e-3, "same", 0.5),
        ("timm", "timm/efficientnet_b1", 1e-5, "symmetric", 0.485),
        ("torchvision", None, 1e-5, "symmetric", None),
    ],
)
def test_each_format_fills_the_network_and_sets_its_conventions(
    tmp_path, drawn, source, variant, epsilon, padding, mean
):
    model, info = load(write(tmp_path / "named at random.txt", drawn, source), variant)
    for key, parameter in model.state_dict().items():
        np.testing.assert_array_equal(parameter.numpy(), drawn[key], err_msg=key)
    assert (model.bn_epsilon, model.padding) == (epsilon, padding)
    assert model.stem.bn._epsilon == epsilon
    assert info.license is None
    assert mean == (info.preprocessing and info.preprocessing.mean[0])
    assert (info.assumed is None) == (mean is not None)
    assert bool(info.notes) == (epsilon != 1e-3)


def test_what_stays_ambiguous_is_refused_with_the_choices(tmp_path, drawn):
    path = write(tmp_path / "file", drawn, "timm")
    tags = [row.tag for row in PUBLISHED[NAME] if row.file_format == "timm"]
    assert len(tags) > 1
    with pytest.raises(WeightsError) as error:
        load(path)
    assert all(tag in str(error.value) for tag in tags)
    assert "model.variant" in str(error.value)
    with pytest.raises(WeightsError, match=r"model\.variant.*x\b"):
        load(path, f"{tags[0]}x")


def test_a_left_out_tag_is_refused_where_it_matters(tmp_path, drawn):
    path = write(tmp_path / "file", drawn, "timm")
    with pytest.raises(WeightsError, match=r"ap_in1k.*model\.variant"):
        load(path, "timm/tf_efficientnet_b1")


def test_timms_config_beside_the_file_decides(tmp_path, drawn):
    path = write(tmp_path / "model.safetensors", drawn, "timm")
    facts = {"tag": "ft_in1k", "input_size": [3, 256, 256], "crop_pct": 1.0, "interpolation": "bicubic"}
    facts |= {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "license": "apache-2.0"}
    config = {"architecture": "efficientnet_b1", "pretrained_cfg": facts}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model, info = load(path)
    assert (model.bn_epsilon, model.padding) == (1e-5, "symmetric")
    assert (info.preprocessing.resize_short, info.preprocessing.crop_size) == (256, 256)
    assert "config.json" in info.source and "ft_in1k" not in info.source and info.license is None
    load(path, "timm/efficientnet_b1.ft_in1k")
    with pytest.raises(WeightsError, match=r"timm/efficientnet_b1\b.*timm/tf_efficientnet_b1\.ap_in1k"):
        load(path, "timm/tf_efficientnet_b1.ap_in1k")
    config["architecture"] = "tf_efficientnet_b1"
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load(path)[0].padding == "same"


def test_the_hash_of_a_published_file_decides(tmp_path, drawn, monkeypatch):
    path = write(tmp_path / "file", drawn, "lukemelas")
    row = next(row for row in PUBLISHED[NAME] if row.tag == "lukemelas/advprop")
    monkeypatch.setattr("ppcls.weights.load.sha256_of", lambda path: row.sha256 + "0" * 56)
    _, info = load(path)
    assert info.source == "lukemelas/advprop, by its hash"
    with pytest.raises(WeightsError, match="lukemelas/advprop.*lukemelas/aa"):
        load(path, "lukemelas/aa")


def test_weights_of_another_network_say_what_is_wrong(tmp_path, drawn):
    path = write(tmp_path / "file", drawn, "paddleclas")
    with paddle.LazyGuard():
        model = build_model("EfficientNetB0")
    with pytest.raises(WeightsError, match="EfficientNetB0.*unexpected: "):
        load_weights(model, str(path))


def test_a_file_of_a_lite_fits_no_other(tmp_path):
    """Lite1 and Lite2 have the same keys. Lite0 has keys and shapes of B0_small, which has no such files."""
    lites = [f"EfficientNetLite{number}" for number in range(5)]
    with paddle.LazyGuard():
        models = {name: build_model(name) for name in (*lites, "EfficientNetB0_small")}
    for name in lites:
        shapes = {key: list(p.shape) for key, p in models[name].state_dict().items()}
        names = key_map("lukemelas", name, shapes)
        arrays = {names[k]: np.zeros(s[::-1] if k in TRANSPOSED else s, "f4") for k, s in shapes.items()}
        save_file(arrays, tmp_path / "file")
        for other, model in models.items():
            if other != name:
                with pytest.raises(WeightsError, match=other):
                    load_weights(model, str(tmp_path / "file"))
        info = load_weights(models[name], str(tmp_path / "file"))
        assert (info.bn_epsilon, info.padding, info.license) == (1e-3, "same", None)
        assert info.assumed.crop_size == MODELS[name].image_size


def test_every_source_of_every_model_has_a_map():
    for name in PUBLISHED:
        keys = list_keys(name)
        for source in sources_of(name):
            assert len(set(key_map(source, name, keys).values())) == len(keys)


@pytest.mark.parametrize("container", ["safetensors", "pdparams"])
@pytest.mark.parametrize("to", ["ppcls", "paddleclas", "torchvision", "timm"])
def test_converted_weights_come_back_bit_for_bit(tmp_path, drawn, to, container):
    origin = write(tmp_path / "origin", drawn, "paddleclas")
    there, back = tmp_path / f"there.{container}", tmp_path / "back.pdparams"
    convert_main([str(origin), str(there), "-m", NAME, "--to", to])
    again = ["--variant", "timm/tf_efficientnet_b1.aa_in1k"] if to == "timm" else []
    convert_main([str(there), str(back), "-m", NAME, "--to", "paddleclas", *again])
    first, last = (paddle.load(str(path), return_numpy=True) for path in (origin, back))
    assert first.keys() - {"StructuredToParameterName@@"} == last.keys()
    for key, array in last.items():
        assert array.tobytes() == first[key].tobytes(), key


def test_converted_weights_keep_their_facts(tmp_path, drawn, capsys):
    origin = write(tmp_path / "origin", drawn, "torchvision")
    tag = ["--variant", PUBLISHED_TORCHVISION.tag]
    convert_main([str(origin), str(tmp_path / "own.safetensors"), "-m", NAME, *tag])
    model, info = load(tmp_path / "own.safetensors")
    assert (model.bn_epsilon, model.padding) == (1e-5, "symmetric")
    assert info.preprocessing == PUBLISHED_TORCHVISION.preprocessing
    convert_main([str(origin), str(tmp_path / "pc.safetensors"), "-m", NAME, "--to", "paddleclas"])
    assert "note: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["x", "out.txt", "-m", NAME], r"\.safetensors.*\.pdparams.*Received: out\.txt"),
        (["x", "out.pdparams", "-m", "EfficientNetB9"], "Received: EfficientNetB9"),
        (["none", "out.pdparams", "-m", NAME], "file none"),
    ],
)
def test_wrong_conversions_are_refused(arguments, words):
    with pytest.raises(PpclsError, match=words):
        convert_main(arguments)


def test_nothing_is_converted_to_where_no_network_is(tmp_path):
    with pytest.raises(WeightsError, match="torchvision.*EfficientNetLite0"):
        convert_main(["x", str(tmp_path / "y.pdparams"), "-m", "EfficientNetLite0", "--to", "torchvision"])


def test_a_file_of_keys_that_were_never_published_is_refused(tmp_path):
    """A timm file of B0_small would be one of B0 without its squeeze-excite; timm has none."""
    small = build_model("EfficientNetB0_small")
    names = key_map("timm", "EfficientNetB0_small", small.state_dict())
    arrays = {names[key]: p.numpy() for key, p in small.state_dict().items()}
    arrays["classifier.weight"] = arrays["classifier.weight"].T.copy()
    save_file(arrays, tmp_path / "file")
    with pytest.raises(WeightsError, match="timm.*EfficientNetB0_small"):
        load_weights(small, str(tmp_path / "file"))


def test_twins_without_metadata_must_be_named(tmp_path):
    with paddle.LazyGuard():
        model = build_model("EfficientNetLite0")
    small = build_model("EfficientNetB0_small")
    paddle.save(small.state_dict(), str(tmp_path / "twin"))
    with pytest.raises(
        WeightsError,
        match=r"EfficientNetB0_small.*EfficientNetLite0.*model\.variant=ppcls/EfficientNetLite0",
    ):
        load_weights(model, str(tmp_path / "twin"))
    load_weights(model, str(tmp_path / "twin"), "ppcls/EfficientNetLite0")


def test_a_resnexts_layout_tells_torch_from_paddle(tmp_path, monkeypatch):
    """Both use the same names; the real networks are too large for this, so three entries stand for them."""
    with paddle.LazyGuard():
        model = build_model("ResNeXt101_32x8d_wsl")
    for source, shape in (("paddleclas-names", (2048, 1000)), ("torchvision", (1000, 2048))):
        for kind in ("torch", "safetensors", "pdparams"):
            entries = {"conv1.weight": Entry((64, 3, 7, 7), np.dtype("f4"), None)}
            entries["fc.weight"] = Entry(shape, np.dtype("f4"), None)
            file = kind, entries, {"values": {}, "skipped": {}}
            monkeypatch.setattr("ppcls.weights.find.read_file", lambda path, file=file: file)
            found = find_weights(tmp_path / "file", model)
            assert (found.source in TORCH_SOURCES) == (source == "torchvision")
