"""Configs: every file under configs/ loads, and what is wrong is refused with a cure."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from ppcls import MODELS
from ppcls.architectures import are_same_network
from ppcls.config import Config, PreprocessingConfig
from ppcls.config_files import best_weights, find_run, load_config
from ppcls.errors import ConfigError
from ppcls.option_names import SYNONYMS
from ppcls.preprocessing import Preprocessing
from ppcls.typed import option_names

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))
FORMAT1 = Path(__file__).parent / "golden" / "format1"
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
    "EfficientNetLite1": (
        272,
        240,
    ),  # from here on by Google's table; timm takes 300 and 380 for the last two
    "EfficientNetLite2": (292, 260),
    "EfficientNetLite3": (312, 280),
    "EfficientNetLite4": (332, 300),
}
BILINEAR = ("_wsl", "Lite3", "Lite4")


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text("model: {name: EfficientNetB0}\noptim: {weight_decay: 1e-5}\n")
    return path


def test_there_is_a_config_for_each_model():
    others = {"digits", "digits_efficientnet_recipe", "finetune", "ResNeXt101_32x8d_wsl_pretraining"}
    assert {path.stem for path in CONFIGS} == {*MODELS} | others


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_load(path):
    config = load_config(path)
    assert config.output_dir == f"output/{path.stem}"
    if path.stem == "finetune":
        assert config.data.preprocessing == PreprocessingConfig()  # that of the weights, of any model
        assert all(load_config(path, [f"model.name={name}"]) for name in MODELS)
        return
    preprocessing = config.data.preprocessing.resolve(None)
    if path.stem.startswith("digits") or path.stem.endswith("pretraining"):
        assert config.model.weights is None and config.train.start_from is None
        return
    assert path.stem == config.model.name
    text = path.read_text()
    assert f"#   python tools/eval.py -c configs/{path.name}" in text.splitlines()  # nothing to add
    shown = yaml.safe_load(text)["data"]["preprocessing"]
    assert (shown["resize_short"], shown["crop_size"]) == SIZES[path.stem]
    assert (preprocessing.resize_short, preprocessing.crop_size) == SIZES[path.stem]
    assert MODELS[path.stem].image_size == preprocessing.crop_size
    assert preprocessing.interpolation == ("bilinear" if path.stem.endswith(BILINEAR) else "bicubic")
    assert "tools/train.py" in text and "never run in full" in text.replace("\n# ", " ").lower()


@pytest.mark.parametrize("name", MODELS)
def test_a_models_config_names_what_is_evaluated_and_what_training_starts_from(name):
    config = load_config(name)
    assert (config.model.weights, config.model.variant) == ("pretrained", None)
    if name.startswith("EfficientNet"):
        assert config.train.start_from is None
    elif name == "Fix_ResNeXt101_32x48d_wsl":
        assert config.train.start_from == "ResNeXt101_32x48d_wsl"
        assert are_same_network(config.train.start_from, name)
    else:
        assert config.train.start_from == "pretrained"
    assert not config.train.reset_head and config.train.start_variant is None


def test_the_resolved_config_loads_again(small, tmp_path):
    config = load_config(small, ["data.preprocessing.mean=[0.5, 0.5, 0.5]", "model.bn_momentum=0.9"])
    (tmp_path / "again.yaml").write_text(config.to_yaml())
    assert load_config(tmp_path / "again.yaml") == config
    assert set(yaml.safe_load(config.to_yaml())) == set(Config.__dataclass_fields__)


DEFAULTS = """
model: {num_classes: 1000, weights: null, variant: null, bn_momentum: null, dropout: null, drop_connect:
  null}
data: {train_root: null, train_list: null, eval_root: null, eval_list: null, class_names: null,
  batch_size: 32, num_workers: null, on_error: fail, allow_overlap: false}
augment: {center_crop: false, crop_area: [0.08, 1.0], crop_ratio: [0.75, 1.3333333333333333], flip: 0.5,
  auto_augment: null, rand_augment: null, rand_layers: 2, rand_magnitude: 9.0, rand_magnitude_std: 0.0,
  color_jitter: [0.0, 0.0, 0.0], random_erasing: 0.0, random_erasing_mode: pixel, mixup: 0.0, cutmix:
  0.0}
train: {epochs: 100, min_steps_per_epoch: null, freeze_epochs: 0,
  start_from: null, start_variant: null, reset_head: false, label_smoothing: 0.0,
  freeze: [], ema_decay: null, accumulate: 1, on_nan: fail, patience: null, sync_bn: false, recompute:
  false, amp: null, amp_level: O1, keep_last: 2, keep_best: true, checkpoint_minutes: 30.0,
  checkpoint_steps: null, histograms: false, log_seconds: 10.0}
optim: {name: sgd, lr: 0.1, lr_factors: {}, momentum: 0.9, nesterov: false, betas: [0.9, 0.999], rho: 0.9,
  epsilon: null, weight_decay: 0.0001, clip_norm: null, schedule: cosine, warmup_epochs: 0.0,
  decay_epochs: null, decay_factor: null}
device: auto
seed: 0
output_dir: null
"""


def test_the_defaults(tmp_path):
    """They are part of each recipe: a run of today is repeated by its YAML tomorrow."""
    (tmp_path / "least.yaml").write_text("model: {name: EfficientNetB0}")
    found = yaml.safe_load(load_config(tmp_path / "least.yaml").to_yaml())
    for section, expected in yaml.safe_load(DEFAULTS).items():
        options = found[section]
        assert (options | expected if isinstance(expected, dict) else expected) == options, section
    assert set(found["data"]["preprocessing"].values()) == {None}


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
    assert load_config(small, "data.batch_size=8").data.batch_size == 8  # one, not in a list


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.batchsize=3", r"data\.batchsize.*data\.batch_size"),
        ("dat.batch_size=3", r"\bdat\b.*\bdata\b"),
        ("train.epoch=3", r"train\.epoch\b.*train\.epochs"),
        ("data.batch_size=0", r"data\.batch_size.* 1.*Received: 0"),
        ("data.batch_size=1.5", r"data\.batch_size.*Received: 1\.5"),
        ("data.batch_size=true", r"data\.batch_size.*Received: True"),
        ("data.batch_size=", r"data\.batch_size.*Received: None"),
        ("data.preprocessing.antialias=1", r"data\.preprocessing\.antialias.*true or false.*Received: 1"),
        ("data.preprocessing.crop=3", r"data\.preprocessing\.crop\b.*data\.preprocessing\.crop_size"),
        ("data.preprocessing=256", r"data\.preprocessing.*Received: 256"),
        ("data.preprocessing={crop_size: 0}", r"data\.preprocessing\.crop_size.* 1.*Received: 0"),
        ("model=EfficientNetB1", "model.*Received: 'EfficientNetB1'"),
        ("model.name=3", r"model\.name.*Received: 3"),
        ("model.name.x=3", r"model\.name\.x"),
        ("model.name=EfficientnetB1x", r"Received: EfficientnetB1x.*EfficientNetB1\b"),
        ("optim.lr=.nan", r"optim\.lr.*Received: nan"),
        ("optim.lr=0", r"optim\.lr.* 0.*Received: 0"),
        ("data.preprocessing.interpolation=cubic", r"data\.preprocessing\.interpolation.*'cubic'.*bicubic"),
        ("data.preprocessing.mean=[0.5, 0.5]", r"data\.preprocessing\.mean.* 3 .*Received: \[0.5, 0.5\]"),
        ("data.preprocessing.std=[0, 1, 1]", r"data\.preprocessing\.std.*Received: \(0.0, 1.0, 1.0\)"),
        ("augment.crop_area=[0.5, 0.1]", r"augment\.crop_area.*Received: \(0.5, 0.1\)"),
        ("data.preprocessing.crop_size=300", r"data\.preprocessing\.crop_size.*300.*256"),
        ("output_dir=2024-99-99", "output_dir=2024-99-99.*YAML"),
        (f"optim.lr=1{'0' * 400}", r"optim\.lr.*Received: inf"),
        ("device=tpu", "device.*auto, cpu, gpu.*Received: 'tpu'"),
        ("train.freeze=stem.*", r"train\.freeze.*list.*Received: 'stem"),
        ("train.freeze=[1]", r"train\.freeze.*Received: 1"),
        ("optim.lr_factors=[1]", r"optim\.lr_factors.*Received: \[1\]"),
        ("optim.lr_factors={fc.*: 0}", r"optim\.lr_factors\[fc..\].* 0.*Received: 0"),
        ("optim.lr_factors={1: 2}", r"optim\.lr_factors.*Received: 1"),
        ("optim.betas=[0.9, 1]", r"optim\.betas.*Received: 1"),
        ("train.amp=fp8", r"train\.amp.*bf16, fp16.*Received: 'fp8'"),
        ("train.start_variant=paddleclas", r"train\.start_variant.*train\.start_from"),
        ("train.reset_head=true", r"train\.reset_head.*train\.start_from"),
        ("no equals sign", "section.option=value.*Received: 'no equals sign'"),
        ("data.class_names={", "data.class_names=.*YAML"),
    ],
)
def test_wrong_options_are_refused(small, override, words):
    with pytest.raises(ConfigError, match=re.compile(words, re.DOTALL)):
        load_config(small, ["data.preprocessing.resize_short=256", override])


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("learning_rate=0.1", "optim.lr"),
        ("train.learning_rate=0.1", "optim.lr"),
        ("optim.learning-rate=0.1", "optim.lr"),
        ("batch_size=64", "data.batch_size"),  # the name of one option, in no section ...
        ("train.lr=0.1", "optim.lr"),  # ... or in another
        ("optim.Epochs=3", "train.epochs"),
        ("train.early_stop=5", "train.patience"),
        ("image_size=224", "data.preprocessing.crop_size"),
        ("data.image_size=[3, 224, 224]", "data.preprocessing.crop_size"),
        ("crop_size=224", "data.preprocessing.crop_size"),
        ("optimizer={name: sgd}", "optim.name"),
        ("name=EfficientNetB1", "model"),  # of two sections: the nearest spelling here
    ],
)
def test_an_option_by_another_name_or_section(small, given, meant):
    with pytest.raises(ConfigError) as error:
        load_config(small, [given])
    name = given.split("=")[0]
    assert f"{name};" in str(error.value)
    if name != "name":
        assert str(error.value).endswith(f"did you mean {meant}?")


def test_synonyms_are_options_and_no_options_names():
    options = set(option_names(Config))
    words = [word for words in SYNONYMS.values() for word in words.split()]
    assert set(SYNONYMS) <= options and len(words) == len(set(words))
    assert not {option.rpartition(".")[2] for option in options} & set(words)


def test_options_of_the_other_family_are_refused(small):
    with pytest.raises(ConfigError, match="ResNeXt101_32x8d_wsl.*dropout"):
        load_config(small, ["model.name=ResNeXt101_32x8d_wsl", "model.dropout=0.1"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "wrong.yaml.*model:.*Received: None"),
        ("- a", r"wrong.yaml.*model:.*Received: \['a'\]"),
        ("model: [", "wrong.yaml.*YAML"),
        ("data: {batch_size: 3}", "^model .*missing"),
        ("model: {num_classes: 3}", r"model\.name.*missing"),
        ("model: {name: EfficientNetB0, name: EfficientNetB1}", "wrong.yaml.*name.*twice"),
    ],
)
def test_wrong_files_are_refused(tmp_path, text, words):
    (tmp_path / "wrong.yaml").write_text(text)
    with pytest.raises(ConfigError, match=re.compile(words, re.DOTALL)):
        load_config(tmp_path / "wrong.yaml")


def test_a_merge_key_takes_the_options_of_an_anchor(tmp_path):
    text = "model: &base {name: EfficientNetB0, dropout: 0.1}\n"
    (tmp_path / "merge.yaml").write_text(
        text + "data: {preprocessing: {mean: &m [0.1, 0.2, 0.3], std: *m}}\n"
    )
    assert load_config(tmp_path / "merge.yaml").data.preprocessing.std == (0.1, 0.2, 0.3)
    rates = "augment: &a {flip: 0.1, mixup: 0.2}\n"
    sections = "augment: {<<: {flip: 0.1, mixup: 0.2}, flip: 0.3}\n"
    (tmp_path / "merge.yaml").write_text(text + sections)
    assert load_config(tmp_path / "merge.yaml").augment.flip == 0.3
    assert load_config(tmp_path / "merge.yaml").augment.mixup == 0.2
    (tmp_path / "merge.yaml").write_text(text + rates + "train: {<<: *a}\n")
    with pytest.raises(ConfigError, match=r"train\.flip"):
        load_config(tmp_path / "merge.yaml")
    (tmp_path / "merge.yaml").write_text(text + "augment: {<<: {flip: 0.1}, mixup: 0.1, mixup: 0.2}\n")
    with pytest.raises(ConfigError, match=r"mixup.*twice"):
        load_config(tmp_path / "merge.yaml")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["train.images=900"], r"train\.epochs.*train\.images.*100 and 900.*train\.epochs=null"),
        (["train.epochs=null"], r"train\.epochs.*train\.images.*None and None"),
        (["train.epoch_images=9"], r"train\.epoch_images.*train\.images.*9"),
        (
            ["train.epochs=null", "train.images=9", "train.min_steps_per_epoch=2"],
            r"train\.min_steps_per_epoch.*train\.images.*train\.epoch_images.*2",
        ),
    ],
)
def test_a_run_has_one_length(small, options, words):
    with pytest.raises(ConfigError, match=re.compile(words, re.DOTALL)):
        load_config(small, options)
    config = load_config(small, ["train.epochs=null", "train.images=900", "train.epoch_images=90"])
    assert (config.train.images, config.train.epoch_images) == (900, 90)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="There is no .*none.yaml"):
        load_config(tmp_path / "none.yaml")


def test_preprocessing_takes_what_is_given_and_the_weights_own_for_the_rest(small):
    own = Preprocessing(256, 224, "bicubic", True, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    given = load_config(small, ["data.preprocessing.crop_size=192"]).data.preprocessing
    assert given.resolve(own) == Preprocessing(256, 192, "bicubic", True, (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(ConfigError, match=r"crop_size.*257.*resize_short.*256"):
        load_config(small, ["data.preprocessing.crop_size=257"]).data.preprocessing.resolve(own)
    with pytest.raises(
        ConfigError, match=r"data\.preprocessing\.resize_short, data\.preprocessing\.inter"
    ) as error:
        given.resolve(None)
    assert "crop_size" not in str(error.value)


ALL_NULL = (
    "{resize_short: null, crop_size: null, interpolation: null, antialias: null, mean: null, std: null}"
)


@pytest.mark.parametrize("value", ["null", "{}", ALL_NULL, ""])
def test_an_empty_preprocessing_is_that_of_the_weights(value):
    own = Preprocessing(30, 20, "area", True, (0.1, 0.2, 0.3), (0.5, 0.5, 0.5))
    config = load_config("EfficientNetB4", [f"data.preprocessing={value}"])
    assert config.data.preprocessing.resolve(own) == own
    with pytest.raises(ConfigError, match="data.preprocessing.resize_short.*data.preprocessing.std"):
        config.data.preprocessing.resolve(None)


def test_a_preprocessing_replaces_the_section_and_a_dotted_name_merges_into_it():
    own = Preprocessing(30, 20, "area", True, (0.1, 0.2, 0.3), (0.5, 0.5, 0.5))
    shown = load_config("EfficientNetB4").data.preprocessing.resolve(None)
    replaced = load_config("EfficientNetB4", ["data.preprocessing={resize_short: 40}"]).data.preprocessing
    assert replaced.resolve(own) == replace(own, resize_short=40)
    merged = load_config("EfficientNetB4", ["data.preprocessing.crop_size=288"]).data.preprocessing
    assert merged.resolve(own) == replace(shown, crop_size=288)
    overrides = [
        "data.preprocessing.mean=[0, 0, 0]",
        "data.preprocessing={}",
        "data.preprocessing.crop_size=8",
    ]
    both = load_config("EfficientNetB4", overrides).data.preprocessing
    assert both.resolve(own) == replace(own, crop_size=8)
    overrides = ["data.preprocessing=null", "data.preprocessing.crop_size=8"]
    assert load_config("EfficientNetB4", overrides).data.preprocessing == both


@pytest.mark.parametrize(
    ("option", "value", "present"),
    [
        *(
            (f"data.{name}", value, f"data.preprocessing.{name}")
            for name, value in {"resize_short": "256", "crop_size": "224", "mean": "[0, 0, 0]"}.items()
        ),
        ("data.std", "null", "data.preprocessing.std"),
        ("data.interpolation", "bicubic", "data.preprocessing.interpolation"),
        ("data.antialias", "true", "data.preprocessing.antialias"),
        ("model.reset_head", "true", "train.reset_head"),
    ],
)
def test_an_option_of_an_earlier_version_names_its_new_place(small, tmp_path, option, value, present):
    with pytest.raises(ConfigError, match=f"{re.escape(option)}.*{re.escape(present)}"):
        load_config(small, [f"{option}={value}"])
    section, name = option.split(".")
    sections = {"model": {"name": "EfficientNetB0"}}
    sections.setdefault(section, {})[name] = yaml.safe_load(value)
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(sections))
    with pytest.raises(ConfigError, match=f"{re.escape(option)}.*{re.escape(present)}"):
        load_config(tmp_path / "old.yaml")


def test_a_config_that_format_1_wrote_is_converted(tmp_path):
    text = (FORMAT1 / "run" / "train.yaml").read_text().replace("Tiny", "EfficientNetB0")
    other = text.replace("variant: null", "variant: timm/a.b").replace(
        "reset_head: false", "reset_head: true"
    )
    (tmp_path / "train.yaml").write_text(other)
    config = load_config(tmp_path / "train.yaml")
    assert (config.train.start_variant, config.train.reset_head) == ("timm/a.b", True)
    assert config.model.variant is None
    (tmp_path / "train.yaml").write_text(text)
    config = load_config(tmp_path / "train.yaml")  # of training, though it is not in a run's folder
    assert (config.train.start_from, config.train.reset_head) == ("weights.safetensors", False)
    assert config.model.weights is None and config.output_dir == "run"
    expected = Preprocessing(28, 24, "bilinear", False, (0.5,) * 3, (0.25,) * 3)
    assert config.data.preprocessing.resolve(None) == expected
    assert (config.model.dropout, config.optim.lr, config.train.epochs) == (0.1, 0.5, 3)
    (tmp_path / "eval.yaml").write_text(text)  # of an evaluation: its weights are those evaluated
    config = load_config(tmp_path / "eval.yaml", ["data.preprocessing.crop_size=20"])
    assert (config.model.weights, config.train.start_from) == ("weights.safetensors", None)
    assert config.data.preprocessing.resolve(None) == replace(expected, crop_size=20)


def test_a_config_of_format_1_that_was_written_by_hand_is_refused(tmp_path):
    text = (FORMAT1 / "config.yaml").read_text().replace("Tiny", "EfficientNetB0")
    (tmp_path / "train.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"data\.resize_short.*data\.preprocessing\.resize_short"):
        load_config(tmp_path / "train.yaml")


@pytest.fixture
def run(small, tmp_path):
    """The folder of a training run, as far as a config is concerned."""
    folder = tmp_path / "run"
    best_weights(folder).parent.mkdir(parents=True)
    overrides = ["model.variant=timm/tf_efficientnet_b0.aa_in1k", "output_dir=elsewhere", "train.epochs=3"]
    (folder / "train.yaml").write_text(load_config(small, overrides).to_yaml())
    return folder


def test_a_run_means_its_best_weights_wherever_it_is(run, tmp_path, monkeypatch):
    moved = tmp_path / "moved" / "another name"
    for folder in (run, moved):
        if folder == moved:
            moved.parent.mkdir()
            run.rename(moved)
        for given in (folder, str(folder), folder / "train.yaml"):
            config = load_config(given)
            assert find_run(given) == folder
            assert config.model.weights == str(folder / "checkpoints" / "best" / "model.safetensors")
            assert config.model.variant is None
            assert config.output_path == folder and config.train.epochs == 3
    monkeypatch.chdir(moved)
    assert load_config("train.yaml").model.weights == "checkpoints/best/model.safetensors"
    assert load_config(".").output_path == Path(".")


def test_an_override_wins_over_the_runs_own(run):
    config = load_config(run, ["model.weights=other.safetensors", "output_dir=other", "train.epochs=9"])
    assert (config.model.weights, config.output_dir) == ("other.safetensors", "other")
    assert config.train.epochs == 9
    assert load_config(run, ["model.weights=null"]).model.weights is None


def test_a_folder_that_is_not_a_runs(run, tmp_path, monkeypatch):
    (run / "checkpoints" / "best").rmdir()
    (run / "checkpoints").rmdir()
    assert find_run(run) is None and find_run(run / "train.yaml") is None
    assert load_config(run / "train.yaml").output_dir == "elsewhere"  # a config like any other
    (tmp_path / "empty").mkdir()
    assert find_run(tmp_path / "empty") is None
    monkeypatch.chdir(tmp_path)
    for given in (tmp_path / "empty", "empty"):  # its bare name too is that of a folder
        with pytest.raises(ConfigError, match="empty.*train.yaml.*inference.yml"):
            load_config(given)


def test_a_bare_name_is_the_config_that_comes_with_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config("EfficientNetB4").model.name == "EfficientNetB4"
    (tmp_path / "EfficientNetB4").write_text("model: {name: EfficientNetB1}")
    assert load_config("EfficientNetB4").model.name == "EfficientNetB1"
    with pytest.raises(ConfigError, match=r"EfficientNetB71.*EfficientNetB7\b"):
        load_config("EfficientNetB71")
