"""Configs: every file under configs/ loads, and what is wrong is refused with a cure."""

from pathlib import Path

import pytest
import yaml

from ppcls import MODELS
from ppcls.config import Config, load_config
from ppcls.errors import ConfigError
from ppcls.preprocessing import Preprocessing

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))
SIZES = {  # resize-short and crop sizes of the model-zoo page
    "ResNeXt101_32x8d_wsl": (256, 224),
    "ResNeXt101_32x16d_wsl": (256, 224),
    "ResNeXt101_32x32d_wsl": (256, 224),
    "ResNeXt101_32x48d_wsl": (256, 224),
    "Fix_ResNeXt101_32x48d_wsl": (320, 320),
    "EfficientNetB0": (256, 224),
    "EfficientNetB1": (272, 240),
    "EfficientNetB2": (292, 260),
    "EfficientNetB3": (332, 300),
    "EfficientNetB4": (412, 380),
    "EfficientNetB5": (488, 456),
    "EfficientNetB6": (560, 528),
    "EfficientNetB7": (632, 600),
    "EfficientNetB0_small": (256, 224),
    "EfficientNetLite0": (256, 224),
}


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text("model: {name: EfficientNetB0}\noptim: {weight_decay: 1e-5}\n")
    return path


def test_there_is_a_config_for_each_model():
    assert {path.stem for path in CONFIGS} == {*MODELS, "digits", "digits_efficientnet_recipe"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_load(path):
    config = load_config(path)
    assert config.output_dir == f"output/{path.stem}"
    if path.stem.startswith("digits"):
        return
    assert path.stem == config.model.name
    assert path.read_text().startswith(f"#   python tools/eval.py -c configs/{path.name}")
    assert (config.data.resize_short, config.data.crop_size) == SIZES[path.stem]
    assert MODELS[path.stem].image_size == config.data.crop_size
    assert config.data.interpolation == ("bilinear" if "_wsl" in path.stem else "bicubic")
    config.data.preprocessing(None)
    assert "tools/train.py" in path.read_text() and "Never run in full" in path.read_text()


def test_the_resolved_config_loads_again(small, tmp_path):
    config = load_config(small, ["data.mean=[0.5, 0.5, 0.5]", "model.bn_momentum=0.9"])
    (tmp_path / "again.yaml").write_text(config.to_yaml())
    assert load_config(tmp_path / "again.yaml") == config
    assert set(yaml.safe_load(config.to_yaml())) == set(Config.__dataclass_fields__)


def test_lists_and_pairs_of_any_length(small, tmp_path):
    config = load_config(small, ["train.freeze=[stem.*, blocks.1.*]", "optim.lr_factors={fc.*: 10}"])
    assert config.train.freeze == ("stem.*", "blocks.1.*")
    assert config.optim.lr_factors == {"fc.*": 10.0}
    (tmp_path / "again.yaml").write_text(config.to_yaml())
    assert load_config(tmp_path / "again.yaml") == config


def test_overrides_come_last_and_are_typed(small):
    config = load_config(
        small, ["data.batch_size=8", "data.batch_size=64", "optim.lr=1e-3", "model.weights=a=b"]
    )
    assert config.data.batch_size == 64
    assert config.optim.lr == 1e-3
    assert config.optim.weight_decay == 1e-5  # YAML 1.1 reads this as a string
    assert config.model.weights == "a=b"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.batchsize=3", "unknown option data.batchsize; did you mean data.batch_size"),
        ("dat.batch_size=3", "unknown option dat; did you mean data"),
        ("train.epoch=3", "did you mean train.epochs"),
        ("data.batch_size=0", "data.batch_size must be at least 1. Received: 0"),
        ("data.batch_size=1.5", "data.batch_size must be a whole number"),
        ("data.batch_size=true", "data.batch_size must be a whole number"),
        ("data.batch_size=", "data.batch_size must be a whole number. Received: None"),
        ("data.antialias=1", "data.antialias must be true or false"),
        ("model=EfficientNetB1", "model is a section"),
        ("model.name=3", "model.name must be text"),
        ("model.name.x=3", "name is a value, not a section"),
        ("model.name=EfficientnetB1x", "did you mean EfficientNetB1"),
        ("optim.lr=.nan", "optim.lr must be a finite number"),
        ("optim.lr=0", "optim.lr must be more than 0"),
        ("data.interpolation=cubic", "did you mean bicubic"),
        ("data.mean=[0.5, 0.5]", "data.mean must be a list of 3 numbers"),
        ("data.std=[0, 1, 1]", "data.std must be three numbers above 0"),
        ("augment.crop_area=[0.5, 0.1]", "smallest <= largest"),
        ("data.crop_size=300", "must not exceed data.resize_short"),
        ("output_dir=2024-99-99", "no valid YAML"),
        (f"optim.lr=1{'0' * 400}", "optim.lr must be a finite number"),
        ("device=tpu", "device must be one of auto, cpu, gpu"),
        ("train.freeze=stem.*", "train.freeze must be a list. Received: 'stem"),
        ("train.freeze=[1]", "train.freeze must be text. Received: 1"),
        ("optim.lr_factors=[1]", "optim.lr_factors must be pairs such as {name: value}"),
        ("optim.lr_factors={fc.*: 0}", r"optim.lr_factors\[fc..\] must be more than 0. Received: 0"),
        ("optim.lr_factors={1: 2}", "a name in optim.lr_factors must be text. Received: 1"),
        ("optim.betas=[0.9, 1]", "optim.betas must be at least 0 and less than 1"),
        ("train.amp=fp8", "train.amp must be one of bf16, fp16"),
        ("no equals sign", "has the form section.option=value"),
        ("data.mean={", "no valid YAML"),
    ],
)
def test_wrong_options_are_refused(small, override, words):
    with pytest.raises(ConfigError, match=words):
        load_config(small, ["data.resize_short=256", override])


def test_options_of_the_other_family_are_refused(small):
    with pytest.raises(ConfigError, match="has no option 'dropout'"):
        load_config(small, ["model.name=ResNeXt101_32x8d_wsl", "model.dropout=0.1"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "must hold sections"),
        ("- a", "must hold sections"),
        ("model: [", "no valid YAML"),
        ("data: {batch_size: 3}", "model is missing"),
        ("model: {num_classes: 3}", "model.name is missing"),
        ("model: {name: EfficientNetB0, name: EfficientNetB1}", "stands there twice"),
    ],
)
def test_wrong_files_are_refused(tmp_path, text, words):
    (tmp_path / "wrong.yaml").write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_config(tmp_path / "wrong.yaml")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="none.yaml cannot be read: No such file"):
        load_config(tmp_path / "none.yaml")


def test_preprocessing_takes_what_is_given_and_the_weights_own_for_the_rest(small):
    own = Preprocessing(256, 224, "bicubic", True, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    data = load_config(small, ["data.crop_size=192"]).data
    assert data.preprocessing(own) == Preprocessing(256, 192, "bicubic", True, (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(ConfigError, match=r"crop_size \(257\) must not exceed data.resize_short \(256\)"):
        load_config(small, ["data.crop_size=257"]).data.preprocessing(own)
    with pytest.raises(ConfigError, match="data.resize_short, data.interpolation"):
        data.preprocessing(None)


def test_a_bare_name_is_the_config_that_comes_with_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config("EfficientNetB4").model.name == "EfficientNetB4"
    (tmp_path / "EfficientNetB4").write_text("model: {name: EfficientNetB1}")
    assert load_config("EfficientNetB4").model.name == "EfficientNetB1"
    with pytest.raises(ConfigError, match="did you mean EfficientNetB7"):
        load_config("EfficientNetB71")
