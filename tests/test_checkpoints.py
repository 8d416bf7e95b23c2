"""Checkpoints of other people's training code: loaded with the right weights, or refused with the cause.

golden/checkpoints/* were written by torch itself, see golden/make_checkpoints.py.
"""

import json
import pickle
import runpy
from pathlib import Path

import numpy as np
import paddle
import pytest
from helpers import GOLDEN, arrays_of
from safetensors.numpy import save_file

from ppcls import MODELS, build_model, load_weights
from ppcls.build import build_to_run, build_to_train
from ppcls.cli.convert import main as convert_main
from ppcls.config_files import parse_config
from ppcls.errors import ConfigError, PpclsError, WeightsError
from ppcls.inference.cache import export_key
from ppcls.weights import metadata_of, write_weights
from ppcls.weights.keymaps import TORCH_SOURCES, TRANSPOSED, key_map
from ppcls.weights.published import PUBLISHED

ROOT = GOLDEN.parent.parent
FOLDER = GOLDEN / "checkpoints"
MINI = runpy.run_path(str(FOLDER / "mini.py"))
NAME, CLASSES, draw = "EfficientNetB0", MINI["CLASSES"], MINI["draw"]
HEAD = {"fc.weight", "fc.bias"}


@pytest.fixture(autouse=True)
def small_b0(monkeypatch):
    """The names of EfficientNetB0, so that a file may state them, for a network of one block."""
    monkeypatch.setitem(MODELS, NAME, MINI["MINI"])


def fresh(classes=CLASSES):
    return build_model(NAME, classes)


def drawn(kind="raw"):
    shapes = {key: tuple(p.shape) for key, p in fresh().state_dict().items()}
    return {key: draw(kind, key, shape) for key, shape in shapes.items()}


def named(source, kind="raw", start=""):
    """The drawn weights by a source's names, in its layout."""
    arrays = drawn(kind)
    names = key_map(source, NAME, arrays)
    turned = TRANSPOSED if source in TORCH_SOURCES else ()
    return {
        start + names[key]: np.ascontiguousarray(a.T if key in turned else a) for key, a in arrays.items()
    }


def save_pickle(path, value):
    path.write_bytes(pickle.dumps(value, 4))
    return path


def load(path, variant=None, model=None, **options):
    model = model or fresh()
    return model, load_weights(model, str(path), variant, **options)


def kind_of(model, leave=()):
    """ "raw" or "average": the drawn weights that fill the network."""
    for kind in ("raw", "average"):
        expected = drawn(kind)
        if all(np.array_equal(a, expected[key]) for key, a in arrays_of(model).items() if key not in leave):
            return kind
    return None


def config(weights, variant=None, model=(), **sections):
    tree = {"model": {"name": NAME, "num_classes": CLASSES, "weights": str(weights), "variant": variant}}
    tree["model"] |= dict(model)
    return parse_config(tree | {"device": "cpu"} | sections)


# Where the weights are

TIMM = "timm/tf_efficientnet_b0.aa_in1k"


@pytest.mark.parametrize(
    ("file", "variant", "kind", "place"),
    [
        ("timm.pth.tar", None, "average", "state_dict_ema/"),
        ("timm.stream.pth.tar", None, "average", "state_dict_ema/"),
        ("torchvision.pth", None, "average", "model_ema/module."),
        ("torchvision_ema_unused.pth", None, "raw", "model/"),
        ("ema_incomplete.pth", TIMM, "raw", "state_dict/"),
        ("averaged_model.pth", TIMM, "average", "module."),
        ("lightning.ckpt", TIMM, "raw", "criterion"),
        ("wrapped.pth", TIMM, "raw", "rng"),
    ],
)
def test_weights_are_found_in_files_that_torch_wrote(file, variant, kind, place):
    model, info = load(FOLDER / file, variant)
    assert kind_of(model) == kind
    assert any(place in note for note in info.notes)
    assert (model.bn_epsilon, model.padding) == (
        (1e-5, "symmetric") if file.startswith("torchvision") else (1e-3, "same")
    )


@pytest.mark.parametrize("file", ["timm.pth.tar", "torchvision.pth"])
def test_an_option_takes_the_raw_weights(file, tmp_path, capsys):
    path = FOLDER / file
    _, info = load(path)
    assert "model.averaged=false" in info.notes[-2]
    model, info = load(path, averaged=False)
    assert kind_of(model) == "raw" and "model.averaged=false" in info.notes[-2]
    network = build_to_run(config(path, model={"averaged": False}), lambda line: None)
    assert kind_of(network.model) == "raw"
    start = {"start_from": str(path), "start_averaged": False}
    network = build_to_train(config("none", train=start), lambda line: None)
    assert kind_of(network.model) == "raw" and "train.start_averaged=false" in " ".join(network.weights.notes)
    for more, kind in (((), "average"), (("--raw",), "raw")):
        convert_main([str(path), str(tmp_path / "x.safetensors"), "-m", NAME, *more])
        model, _ = load(tmp_path / "x.safetensors")
        assert kind_of(model) == kind and kind in capsys.readouterr().out


def test_the_export_of_averages_has_a_key_of_its_own():
    keys = [export_key(config(FOLDER / "timm.pth.tar", model={"averaged": value})) for value in (True, False)]
    assert keys[0] != keys[1]


def test_raw_weights_that_are_not_there_are_refused():
    with pytest.raises(WeightsError, match=r'averaged_model.pth .*"module\.".*model\.averaged=false'):
        load(FOLDER / "averaged_model.pth", averaged=False)


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "model.",
        "net.",
        "module.",
        "_orig_mod.",
        "module._orig_mod.model.",
        "backbone/",
        "a/b/module.net.",
    ],
)
@pytest.mark.parametrize("source", ["ppcls", "timm", "torchvision", "lukemelas", "paddleclas"])
def test_any_prefix_is_found(prefix, source, tmp_path):
    arrays = drawn() if source == "ppcls" else named(source)
    *folders, start = prefix.split("/")
    value = {start + key: array for key, array in arrays.items()}
    if start:
        value["criterion.weight"] = np.ones(3, np.float32)
    for folder in reversed(folders):
        value = {folder: value, "epoch": 3}
    variant = TIMM if source == "timm" else None
    model, info = load(save_pickle(tmp_path / "file", value), variant)
    assert kind_of(model) == "raw"
    assert any("criterion" in note for note in info.notes) == bool(start)


@pytest.mark.parametrize(
    "beside",
    [
        {"ema": {"decay": 0.9, "shadow_params": [1]}},
        {"ema_model": paddle.no_grad},  # an object of a class, as a whole network would be
        {"net.ema.blocks.0.0.conv_dw.weight": np.ones(3, np.float32)},
        None,
    ],
)
def test_an_average_that_is_not_complete_is_said(beside, tmp_path):
    value = named("torchvision", start="net.model.") | {"args": {"model_ema": False}} | (beside or {})
    model, info = load(save_pickle(tmp_path / "file", value))
    assert kind_of(model) == "raw"
    assert any("raw" in note and "average" in note for note in info.notes) == (beside is not None)


def test_two_complete_copies_are_refused_with_both_prefixes():
    with pytest.raises(WeightsError, match=r'"student/" and "teacher/backbone\."'):
        load(FOLDER / "two_networks.pth")


def test_of_two_networks_with_the_same_names_the_one_that_fits_is_taken(tmp_path):
    wider = {key: np.repeat(array, 2, axis=0) for key, array in named("torchvision", "average").items()}
    path = save_pickle(tmp_path / "file", {"student": named("torchvision"), "teacher": wider})
    model, info = load(path)
    assert kind_of(model) == "raw" and any("teacher" in note for note in info.notes)


def test_an_array_that_is_unknown_below_the_prefix_is_refused(tmp_path):
    arrays = named("torchvision", start="net.") | {"net.features.9.weight": np.ones(3, np.float32)}
    with pytest.raises(WeightsError, match=r'"net\.".*1 unexpected: features\.9\.weight'):
        load(save_pickle(tmp_path / "file", arrays))


# Classifiers


@pytest.mark.parametrize("file", ["no_head.pth", "mlp_head.pth"])
def test_another_classifier_is_replaced_on_request(file):
    with pytest.raises(
        WeightsError, match=rf"{file}.*2 missing: fc\.weight, fc\.bias.*train\.reset_head=true"
    ):
        load(FOLDER / file, TIMM)
    model = fresh(7)
    head = model.fc.weight.numpy()
    load(FOLDER / file, TIMM, model, reset_head=True)
    assert kind_of(model, HEAD) == "raw" and (model.fc.weight.numpy() == head).all()


def test_a_classifier_inside_a_sequential_is_replaced_on_request(tmp_path):
    arrays = named("torchvision")
    for leaf in ("weight", "bias"):
        arrays[f"classifier.1.0.{leaf}"] = arrays.pop(f"classifier.1.{leaf}")
    model, _ = load(save_pickle(tmp_path / "file", arrays), reset_head=True)
    assert kind_of(model, HEAD) == "raw"
    arrays["features.9.0.weight"] = np.ones(3, np.float32)
    with pytest.raises(WeightsError, match=r"unexpected: features\.9\.0\.weight"):
        load(save_pickle(tmp_path / "file", arrays), reset_head=True)


def test_hub_networks_have_any_number_of_classes(monkeypatch, tmp_path):
    monkeypatch.setattr("ppcls.weights.download.fetch_on_all_ranks", lambda *args, **options: tmp_path / "w")
    save_pickle(tmp_path / "w", named("paddleclas"))
    hub = runpy.run_path(str(ROOT / "hubconf.py"))
    model = hub[NAME](pretrained=True, num_classes=7)
    assert model.fc.bias.shape == [7] and kind_of(model, HEAD) == "raw"


def test_a_shipped_config_with_other_classes_names_the_cure():
    names = {"class_names": "imagenet1k"}
    with pytest.raises(ConfigError, match=r"1000 classes.*model\.num_classes is 3\b.*data\.class_names=null"):
        build_to_run(config(FOLDER / "timm.pth.tar", data=names), lambda line: None)


# What a file states about its network


@pytest.mark.parametrize(
    ("values", "conventions"),
    [
        ({"arch": "tf_efficientnet_b0"}, (1e-3, "same")),
        ({"arch": "efficientnet_b0"}, (1e-5, "symmetric")),
        ({"args": {"model": "hf_hub:timm/efficientnet_b0.ra_in1k"}}, (1e-5, "symmetric")),
        ({"arch": "tf_efficientnet_b0.ap_in1k", "args": {"model": "efficientnet_b1"}}, (1e-3, "same")),
    ],
)
def test_the_name_in_a_file_decides_epsilon_and_padding_alone(values, conventions, tmp_path):
    model, info = load(save_pickle(tmp_path / "file", values | {"state_dict": named("timm")}))
    assert (model.bn_epsilon, model.padding) == conventions
    assert (info.license, info.preprocessing, info.class_names) == (None, None, None)


def test_a_name_in_a_file_does_not_overrule_its_keys(tmp_path):
    """timm's efficientnet_b0 computes as torch, lukemelas's efficientnet-b0 as TensorFlow."""
    path = save_pickle(tmp_path / "file", {"arch": "efficientnet-b0", "state_dict": named("lukemelas")})
    model, _ = load(path)
    assert (model.bn_epsilon, model.padding) == (1e-3, "same")


@pytest.mark.parametrize("name", ["efficientnet", "resnet50", "efficientnetv2_b0", 3])
def test_a_name_that_says_nothing_leaves_the_choice(name, tmp_path):
    with pytest.raises(WeightsError, match=r"model\.variant"):
        load(save_pickle(tmp_path / "file", {"arch": name, "state_dict": named("timm")}))


@pytest.mark.parametrize(
    ("name", "cure"),
    [
        ("tf_efficientnet_b3_ns", "EfficientNetB3"),
        ("efficientnet-b7", "EfficientNetB7"),
        ("EfficientNetB0_small", "EfficientNetB0_small"),
        ("tf_efficientnet_lite0", "EfficientNetLite0"),
        ("tf_efficientnet_lite4", "EfficientNetLite4"),
        ("ig_resnext101_32x16d", "ResNeXt101_32x16d_wsl"),
    ],
)
def test_a_wrong_model_is_named(name, cure, tmp_path):
    path = save_pickle(tmp_path / "file", {"arch": name, "state_dict": named("torchvision")})
    with pytest.raises(WeightsError, match=rf"file .*{name}.*model\.name={cure}\b"):
        load(path)


# Provenance


@pytest.mark.parametrize("source", ["paddleclas", "torchvision", "lukemelas"])
def test_keys_state_neither_license_nor_preprocessing(source, tmp_path):
    path, lines = save_pickle(tmp_path / "file", named(source)), []
    network = build_to_run(config(path), lines.append)
    info = network.weights
    assert info.source == f"{source} format" and (info.license, info.preprocessing) == (None, None)
    assert "license of the weights: not stated" in lines
    rows = [row for row in PUBLISHED[NAME] if row.file_format == source]
    assert network.preprocessing == rows[0].preprocessing
    assert any("assumed" in line and "resize_short" in line for line in lines)
    lines.clear()
    given = rows[0].preprocessing.to_dict() | {"resize_short": 300}
    network = build_to_run(config(path, data={"preprocessing": given}), lines.append)
    assert network.preprocessing.resize_short == 300 and not any("assumed" in line for line in lines)
    convert_main([str(path), str(tmp_path / "own.safetensors"), "-m", NAME])
    _, converted = load(tmp_path / "own.safetensors")
    assert (converted.license, converted.preprocessing) == (None, None)
    assert converted.assumed.mean == rows[0].preprocessing.mean


def test_a_named_variant_is_the_users_word(tmp_path):
    _, info = load(save_pickle(tmp_path / "file", named("timm")), "timm/tf_efficientnet_b0.ap_in1k")
    assert info.license is None and info.preprocessing.mean == (0.5, 0.5, 0.5)
    assert "timm/tf_efficientnet_b0.ap_in1k" in info.source and "model.variant" in info.source


def test_a_published_address_and_a_hash_state_the_license(tmp_path, monkeypatch):
    row = next(row for row in PUBLISHED[NAME] if row.file_format == "torchvision")
    asked = {}

    def fetch(urls, **options):
        asked.update(options, urls=urls)
        return save_pickle(tmp_path / "w", named("torchvision"))

    monkeypatch.setattr("ppcls.weights.download.fetch_on_all_ranks", fetch)
    _, info = load(row.url)
    assert (info.license, info.preprocessing) == (row.license, row.preprocessing)
    assert row.tag in info.source and asked["sha256"] == row.sha256
    _, info = load("https://example.org/w.pth")
    assert (info.license, info.preprocessing) == (None, None) and asked["sha256"] is None
    monkeypatch.setattr("ppcls.weights.load.sha256_of", lambda path: row.sha256 + "0" * 56)
    _, info = load(tmp_path / "w")
    assert (info.license, info.preprocessing) == (row.license, row.preprocessing)


def test_an_own_file_keeps_its_license(tmp_path):
    model = fresh()
    write_weights(tmp_path / "own", arrays_of(model), metadata_of(model, license="MIT"))
    assert load(tmp_path / "own")[1].license == "MIT"


# Folders and other containers


def save_folder(folder: Path, arrays, names=("model.safetensors",), architecture="efficientnet_b0", **more):
    folder.mkdir(exist_ok=True)
    for name in names:
        save_file(arrays, folder / name)
    facts = {"input_size": [3, 32, 32], "crop_pct": 0.8, "interpolation": "bilinear", "tag": "ra_in1k"}
    facts |= {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "license": "apache-2.0"}
    text = json.dumps({"architecture": architecture, "pretrained_cfg": facts} | more)
    (folder / "config.json").write_text(text, encoding="utf-8")
    return folder


def test_a_hugging_face_folder_is_a_file_with_its_sizes_and_names(tmp_path):
    more = {"label_names": ["a", "b", "c"], "label_descriptions": {"b": "Bee"}}
    folder = save_folder(tmp_path / "hub", named("timm"), **more)
    (folder / "pytorch_model.bin").write_bytes(b"not read")
    model, info = load(folder)
    assert kind_of(model) == "raw" and info.path == str(folder / "model.safetensors")
    assert (model.bn_epsilon, model.padding) == (1e-5, "symmetric")
    assert (info.preprocessing.resize_short, info.preprocessing.crop_size) == (40, 32)
    assert info.preprocessing.mean == (0.1, 0.2, 0.3) and info.license is None
    assert info.class_names == (("a", "a"), ("b", "Bee"), ("c", "c"))
    assert "ra_in1k" not in info.source
    convert_main([str(folder), str(tmp_path / "x.safetensors"), "-m", NAME])
    assert load(tmp_path / "x.safetensors")[1].class_names == info.class_names
    with pytest.raises(WeightsError, match=r"config\.json.*efficientnet_b2.*model\.name=EfficientNetB2"):
        load(save_folder(tmp_path / "hub", named("timm"), architecture="efficientnet_b2"))


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"), r"00001.*single file"),
        (("a.safetensors", "b.safetensors"), r"hub .*model\.weights.*a\.safetensors, b\.safetensors"),
        ((), r"hub .*Received: none"),
    ],
)
def test_a_folder_without_one_file_is_refused(names, words, tmp_path):
    with pytest.raises(WeightsError, match=words):
        load(save_folder(tmp_path / "hub", named("timm"), names))


def test_a_shard_is_refused_with_the_cure(tmp_path):
    folder = save_folder(tmp_path / "hub", named("timm"), ["model-00001-of-00002.safetensors"])
    (folder / "model.safetensors.index.json").write_text("{}")
    for path in folder.glob("model*"):
        with pytest.raises(WeightsError, match=rf"{path.name}.*save_file"):
            load(path)
    whole = save_folder(tmp_path / "one", named("timm"), ["model-00001-of-00001.safetensors"])
    assert kind_of(load(whole)[0]) == "raw"


def test_bfloat16_safetensors_are_read(tmp_path):
    """Written by hand: numpy has no bfloat16."""
    header, data = {}, b""
    for key, array in named("torchvision").items():
        half = (array.view(np.uint32) >> 16).astype("<u2").tobytes()
        header[key] = {
            "dtype": "BF16",
            "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + len(half)],
        }
        data += half
    text = json.dumps(header).encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    model, _ = load(path)
    for key, array in drawn().items():
        expected = (array.view(np.uint32) >> 16 << 16).view(np.float32)
        assert np.array_equal(arrays_of(model)[key], expected), key
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(WeightsError, match="safetensors"):
        load(path)


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("whole_model.pth", r"train\.Network.*torch\.save\(model\.state_dict\(\)"),
        ("script.pt", r"TorchScript.*torch\.jit\.load"),
    ],
)
def test_programs_are_named_with_the_cure(file, words):
    with pytest.raises(WeightsError, match=words):
        load(FOLDER / file)


def test_an_optimizer_file_of_paddleclas_is_named(tmp_path):
    """PaddleClas 2.6 writes a list of optimizers' states."""
    model = fresh()
    optimizer = paddle.optimizer.Momentum(0.1, parameters=model.parameters())
    model(paddle.ones([2, 3, 24, 24])).sum().backward()
    optimizer.step()
    paddle.save([optimizer.state_dict()], str(tmp_path / "best_model.pdopt"))
    with pytest.raises(WeightsError, match=r"best_model\.pdopt.*optimizer.*velocity_0.*\.pdparams"):
        load(tmp_path / "best_model.pdopt")


# Options and other programs


@pytest.mark.parametrize(
    ("weights", "variant", "words"),
    [
        ("none.pth", None, r"train\.start_from"),
        ("file", None, r"train\.start_variant=TAG"),
        ("file", "timm/x", r"train\.start_variant"),
        ("pretrained", "x", r"train\.start_variant"),
    ],
)
def test_messages_at_the_start_of_training_name_its_options(weights, variant, words, tmp_path):
    save_pickle(tmp_path / "file", named("timm"))
    start = {"start_from": str(tmp_path / "file") if weights == "file" else weights, "start_variant": variant}
    usual = PUBLISHED[NAME][0].preprocessing.to_dict()
    with pytest.raises(WeightsError, match=words) as error:
        build_to_train(config("none", train=start, data={"preprocessing": usual}), lambda line: None)
    assert "model.variant" not in str(error.value) and "model.weights" not in str(error.value)


def test_converted_pickles_are_readable_with_numpy_1(tmp_path):
    save_pickle(tmp_path / "w", named("torchvision"))
    path = tmp_path / "pc.pdparams"
    convert_main([str(tmp_path / "w"), str(path), "-m", NAME, "--to", "paddleclas"])
    assert b"numpy._core" not in path.read_bytes() and b"numpy.core.multiarray" in path.read_bytes()
    arrays = paddle.load(str(path), return_numpy=True)
    for key, array in named("paddleclas").items():
        assert np.array_equal(arrays[key], array), key
    assert kind_of(load(path)[0]) == "raw"


def test_what_cannot_be_resumed_from_is_named(tmp_path):
    from ppcls.training.checkpoint import read_state

    save_pickle(tmp_path / "x.pdparams", named("paddleclas"))
    for path, words in ((tmp_path / "x.pdparams", "train.start_from"), (tmp_path, "folder")):
        with pytest.raises(PpclsError, match=words) as error:
            read_state(path)
        assert str(path) in str(error.value) and "damaged" not in str(error.value)
        assert type(error.value) is PpclsError
