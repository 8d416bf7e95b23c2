"""From a config to a network: what is run, and what training starts from."""

import json
import runpy
from dataclasses import replace

import numpy as np
import paddle
import pytest
from helpers import GOLDEN, arrays_of

from ppcls import MODELS, build_model, load_weights
from ppcls.build import build_to_run, build_to_train
from ppcls.config_files import best_weights, load_config, parse_config
from ppcls.errors import ConfigError, WeightsError
from ppcls.preprocessing import Preprocessing
from ppcls.weights import WeightsInfo, metadata_of, write_weights
from ppcls.weights.keymaps import key_map
from ppcls.weights.published import PUBLISHED
from ppcls.weights.published.record import Published

FORMAT1 = GOLDEN / "format1"
OWN = Preprocessing(28, 24, "bilinear", False, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
ROW = Published(
    "tests/tiny", ("https://host/tiny",), "paddleclas", None, None, "MIT", OWN, None, None, "none"
)


@pytest.fixture(autouse=True)
def networks():
    """The network of the files of format 1, one that differs in its size alone, and one of other layers."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("Tiny", "Tiny32", "Wider"):
            patch.setitem(MODELS, name, None)  # so that it is taken away afterwards
        runpy.run_path(str(FORMAT1 / "tiny.py"))
        patch.setitem(MODELS, "Tiny32", replace(MODELS["Tiny"], image_size=32))
        patch.setitem(MODELS, "Wider", replace(MODELS["Tiny"], squeeze_excite=False))
        for name in ("Tiny", "Tiny32", "Wider"):
            patch.setitem(
                PUBLISHED, name, (replace(ROW, tag=f"tests/{name}", urls=(f"https://host/{name}",)),)
            )
        yield


@pytest.fixture
def fetched(tmp_path, monkeypatch):
    """Serves drawn weights of Tiny for its address, and keeps the addresses that were asked for."""
    path, urls = tmp_path / "published.pdparams", []
    arrays = drawn(1)
    names = key_map("paddleclas", "Tiny", arrays)
    paddle.save({names[key]: paddle.to_tensor(array) for key, array in arrays.items()}, str(path))

    def fetch(given, **_):
        urls.extend(given)
        return path

    monkeypatch.setattr("ppcls.weights.download.fetch_on_all_ranks", fetch)
    return urls


def drawn(seed, num_classes=3, **options):
    paddle.seed(seed)
    return arrays_of(build_model("Tiny", num_classes, **options))


def write_own(path, seed, num_classes=3, **facts):
    """Write a file in this project's format, of a network with conventions of its own."""
    options = {"bn_epsilon": 1e-5, "padding": "symmetric"}
    paddle.seed(seed)
    model = build_model("Tiny", num_classes, **options)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_weights(path, arrays_of(model), metadata_of(model, **facts))
    return str(path)


def config(model="Tiny", num_classes=3, weights=None, **train):
    preprocessing = {"resize_short": 36, "crop_size": 32, "interpolation": "area", "antialias": True}
    tree = {"model": {"name": model, "num_classes": num_classes, "weights": weights}, "train": train}
    tree["data"] = {"preprocessing": preprocessing | {"mean": [0.1] * 3, "std": [0.2] * 3}}
    return parse_config(tree | {"device": "cpu", "seed": 7})


def assert_same(model, arrays, leave=()):
    for key, array in arrays_of(model).items():
        assert key in leave or np.array_equal(array, arrays[key]), key


def train_from(start, **options):
    """The network that training begins with, and the lines about it."""
    lines = []
    return build_to_train(config(**options, start_from=start), lines.append), "\n".join(lines)


def test_training_starts_from_random_weights_where_nothing_is_named(fetched):
    network, lines = train_from(None)
    assert_same(network.model, drawn(7))
    assert network.weights is None and "train.start_from" in lines
    assert fetched == []


def test_model_weights_do_not_concern_training(fetched, tmp_path):
    network, _ = train_from(None, weights="pretrained")
    assert_same(network.model, drawn(7))
    network, _ = train_from(write_own(tmp_path / "w", 2), weights="none.safetensors")
    assert_same(network.model, drawn(2))
    assert fetched == []


def test_what_training_starts_from_does_not_concern_what_is_run(fetched, tmp_path):
    weights = write_own(tmp_path / "w", 2)
    network = build_to_run(config(weights=weights, start_from="pretrained"), lambda line: None)
    assert_same(network.model, drawn(2))
    assert fetched == []


def test_training_starts_from_the_published_weights(fetched):
    network, lines = train_from("pretrained")
    assert_same(network.model, drawn(1))
    assert fetched == ["https://host/Tiny"] and "tests/Tiny" in network.weights.source
    assert "train.start_from" in lines and "pretrained" in lines and network.weights.sha256[:16] in lines


def test_training_starts_from_the_published_weights_of_a_model_with_the_same_layers(fetched):
    """As Fix_ResNeXt101_32x48d_wsl does from ResNeXt101_32x48d_wsl."""
    network, lines = train_from("Tiny", model="Tiny32")
    assert network.model.model_name == "Tiny32"
    assert_same(network.model, drawn(1))
    assert fetched == ["https://host/Tiny"]
    assert "tests/Tiny, " in network.weights.source and network.weights.license == "MIT"
    assert " Tiny " in lines and "train.start_from" in lines
    fetched.clear()
    train_from("pretrained", model="Tiny32")
    assert fetched == ["https://host/Tiny32"]


@pytest.mark.parametrize("other", ["Wider", "EfficientNetB0", "ResNeXt101_32x48d_wsl"])
def test_training_does_not_start_from_a_model_with_other_layers(fetched, other):
    with pytest.raises(ConfigError, match=rf"train\.start_from.*{other}.*Tiny\b"):
        train_from(other)
    assert fetched == []


@pytest.mark.parametrize("given", ["run", "run/train.yaml"])
def test_training_starts_from_the_best_weights_of_a_run(tmp_path, given):
    run = tmp_path / "run"
    best = write_own(best_weights(run), 3, class_names=[(letter, f"class {letter}") for letter in "abc"])
    (run / "train.yaml").write_text("model: {name: Tiny}\n")
    network, lines = train_from(str(tmp_path / given))
    assert_same(network.model, drawn(3))
    assert network.weights.path == best and str(run) in lines
    assert network.class_names.names == ("class a", "class b", "class c")


def test_training_starts_from_a_run_of_format_1():
    network, _ = train_from(str(FORMAT1 / "run"))
    expected = build_model("Tiny", 3)
    load_weights(expected, str(FORMAT1 / "run/checkpoints/best/model.safetensors"))
    assert_same(network.model, arrays_of(expected))
    assert (network.model.bn_epsilon, network.model.padding) == (1e-5, "symmetric")
    assert network.weights.license == "CC-BY-NC-4.0"


@pytest.mark.parametrize(
    ("start", "words"),
    [
        ("pretraind", r"\bpretrained\?"),
        ("EfficientNetB00", r"\bEfficientNetB0\?"),
        ("none.pdparams", r"none\.pdparams"),
        ("htps://host/w", "htps://host/w"),
    ],
)
def test_a_start_that_is_no_file_is_refused_by_its_option(tmp_path, monkeypatch, start, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match=rf"train\.start_from.*Received: .*{words}") as error:
        train_from(start)
    assert "model.weights" not in str(error.value)


def test_a_folder_without_weights_to_start_from_is_refused_by_its_option(tmp_path):
    with pytest.raises(WeightsError, match=r"train\.start_from.*Received: none") as error:
        train_from(str(tmp_path))
    assert "model.weights" not in str(error.value)


def test_a_run_without_best_weights_is_named(tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "train.yaml").write_text("model: {name: Tiny, num_classes: 3}\ndevice: cpu\n")
    for use in (lambda: train_from(str(run)), lambda: build_to_run(load_config(run), print)):
        with pytest.raises(
            WeightsError, match=rf"{run}\b.*best/model\.safetensors.*train {run} --resume auto"
        ):
            use()
    with pytest.raises(WeightsError, match=rf"model\.weights.*eval {run}$"):
        build_to_run(config(weights=str(run)), print)
    with pytest.raises(WeightsError, match=r"model\.weights.*\bpretrained\?"):
        build_to_run(config(weights="pretraind"), print)


def test_the_variant_of_the_start_is_its_own_option(monkeypatch):
    """And that of what is run, model.variant."""
    seen = []

    def load(model, weights, variant=None, *_, **__):
        seen.append((weights, variant))
        raise WeightsError("seen")

    monkeypatch.setattr("ppcls.weights.load_weights", load)
    both = replace(config(weights="pretrained", start_from="pretrained", start_variant="of/start"))
    both = replace(both, model=replace(both.model, variant="of/model"))
    for build in (build_to_train, build_to_run):
        with pytest.raises(WeightsError, match="seen"):
            build(both, lambda line: None)
    assert seen == [("pretrained", "of/start"), ("pretrained", "of/model")]


def test_the_names_given_win_over_those_of_the_weights_with_a_note(tmp_path):
    weights = write_own(tmp_path / "w", 2, class_names=[(letter, f"class {letter}") for letter in "abc"])
    (tmp_path / "names.txt").write_text("one\ntwo\nthree\n")
    given, lines = config(weights=weights), []
    given = replace(given, data=replace(given.data, class_names=str(tmp_path / "names.txt")))
    assert build_to_run(given, lines.append).class_names.names == ("one", "two", "three")
    assert sum(line.startswith("note: ") and "data.class_names" in line for line in lines) == 1
    lines.clear()
    (tmp_path / "names.txt").write_text("a\tclass a\nb\tclass b\nc\tclass c\n")
    assert build_to_run(given, lines.append).class_names.folders == ("a", "b", "c")
    assert not any("data.class_names" in line for line in lines)


def test_the_license_and_a_size_that_is_not_the_published_one_are_shown(tmp_path):
    lines = []
    weights = write_own(tmp_path / "w", 2, license="CC-BY-NC-4.0")  # do not say their preprocessing
    build_to_run(config(weights=weights), lines.append)
    assert any("license" in line and "CC-BY-NC-4.0" in line for line in lines)
    assert any(line.startswith("note: ") and "is 32" in line and "Tiny" in line for line in lines)
    lines.clear()
    train_from(None)  # random weights were made for no size
    build_to_run(config("Tiny32", weights=weights), lines.append)
    assert not any("data.preprocessing.crop_size" in line for line in lines)


def test_other_classes_start_with_a_classifier_of_their_own(tmp_path):
    weights = write_own(tmp_path / "w", 4, num_classes=5, class_names=[(str(n), str(n)) for n in range(5)])
    with pytest.raises(WeightsError, match=r"model\.num_classes=5.*train\.reset_head"):
        train_from(weights)
    network, _ = train_from(weights, reset_head=True)
    head = ("fc.weight", "fc.bias")
    assert_same(network.model, drawn(4, num_classes=5), leave=head)
    assert all(np.array_equal(arrays_of(network.model)[key], drawn(7)[key]) for key in head)
    assert network.class_names is None


def test_a_file_of_a_network_with_the_same_layers_is_read(tmp_path):
    """In this project's own format, whose metadata name the model."""
    weights = write_own(tmp_path / "w.safetensors", 5, preprocessing=OWN, license="MIT")
    network = build_to_run(config("Tiny32", weights=weights), lambda line: None)
    assert_same(network.model, drawn(5))
    assert network.weights.source.endswith(" Tiny") and network.weights.license == "MIT"
    assert (network.model.bn_epsilon, network.model.padding) == (1e-5, "symmetric")
    same = build_to_run(config("Tiny", weights=weights), lambda line: None)
    assert "Tiny" not in same.weights.source
    with pytest.raises(WeightsError, match=r"w\.safetensors.*\bTiny\b.*Wider"):
        build_to_run(config("Wider", weights=weights), lambda line: None)


def test_a_resumed_run_has_the_conventions_of_its_start_without_the_file(tmp_path):
    path = tmp_path / "w"
    weights = write_own(path, 6, preprocessing=OWN, license="CC-BY-NC-4.0")
    start = train_from(weights)[0].weights
    assert WeightsInfo.from_dict(json.loads(json.dumps(start.to_dict()))) == start  # as a state has it
    assert any("1e-05" in note for note in start.notes)
    path.unlink()
    network = build_to_train(config(start_from=weights), lambda line: None, start)
    assert (network.model.bn_epsilon, network.model.padding) == (1e-5, "symmetric")
    assert network.weights == start and network.weights.license == "CC-BY-NC-4.0"


def test_the_options_win_over_the_weights_own_preprocessing_with_a_note(tmp_path):
    weights, lines = write_own(tmp_path / "w", 2, preprocessing=OWN), []
    network = build_to_run(config(weights=weights), lines.append)
    assert network.preprocessing == Preprocessing(36, 32, "area", True, (0.1,) * 3, (0.2,) * 3)
    for name, used, own in (("crop_size", 32, 24), ("interpolation", "area", "bilinear")):
        notes = [line for line in lines if line.startswith("note: ") and f"data.preprocessing.{name}" in line]
        assert len(notes) == 1 and str(used) in notes[0] and str(own) in notes[0]
    plain = parse_config({"model": {"name": "Tiny", "num_classes": 3, "weights": weights}, "device": "cpu"})
    lines.clear()
    assert build_to_run(plain, lines.append).preprocessing == OWN
    assert not any("data.preprocessing" in line for line in lines)


def test_a_folder_with_one_file_of_weights_stands_for_it(tmp_path):
    own = write_own(tmp_path / "downloaded" / "model.safetensors", 3)
    network = build_to_run(config(weights=str(tmp_path / "downloaded")), print)
    assert network.weights.path == own
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match="empty.*model.weights"):
        build_to_run(config(weights=str(tmp_path / "empty")), print)
