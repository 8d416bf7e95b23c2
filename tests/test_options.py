"""ppcls options: each option of config.py with its type, default and meaning; docs/options.md is its page."""

from pathlib import Path

import pytest
import yaml
from helpers import run_python

from ppcls.config import Config
from ppcls.config_files import parse_config
from ppcls.errors import ConfigError
from ppcls.option_names import SYNONYMS
from ppcls.options import find_options, list_options
from ppcls.typed import option_names

ROOT = Path(__file__).parent.parent
OPTIONS = {option.name: option for option in list_options()}
SECTIONS = {"model", "data", "data.preprocessing", "augment", "train", "optim"}


def names(*words):
    return [option.name for option in find_options(words)]


def test_each_option_is_listed_with_its_meaning():
    assert list(OPTIONS) == [name for name in option_names(Config) if name not in SECTIONS]
    assert [name for name, option in OPTIONS.items() if len(option.meaning) < 5] == []


def test_the_defaults_are_those_of_a_config():
    config = yaml.safe_load(parse_config({"model": {"name": "EfficientNetB0"}}).to_yaml())
    for name, option in OPTIONS.items():
        value = config
        for part in name.split("."):
            value = value[part]
        assert yaml.safe_load(option.default or "EfficientNetB0") == value, name


@pytest.mark.parametrize(
    ("name", "values", "default", "word"),
    [
        ("model.name", "text", "", "network"),
        ("model.num_classes", "a whole number, at least 2", "1000", "classifier"),
        ("data.class_names", "text, or null", "null", "imagenet1k"),  # its comment is on a line of its own
        ("data.preprocessing.interpolation", "bilinear, bicubic, area, lanczos, or null", "null", "resizing"),
        ("data.preprocessing.mean", "a list of 3: a number, or null", "null", "red"),
        ("augment.crop_area", "two shares, 0 < smallest <= largest <= 1", "[0.08, 1.0]", "share"),
        ("train.freeze", "a list: text", "[]", "patterns"),
        ("train.recompute", "true, false", "false", "memory"),
        ("train.amp", "bf16, fp16, or null", "null", "GPU"),
        ("optim.lr_factors", "pairs {name: value}, a value: a number, more than 0", "{}", "fc.*"),
        ("optim.betas", "a list of 2: a number, at least 0 and less than 1", "[0.9, 0.999]", "adamw"),
        ("device", "auto, cpu, gpu", "auto", "GPU"),
    ],
)
def test_an_option(name, values, default, word):
    option = OPTIONS[name]
    assert (option.values, option.default) == (values, default)
    assert word in option.meaning and "#" not in option.meaning


def test_options_are_found_by_section_part_synonym_and_meaning():
    assert names() == list(OPTIONS)
    assert set(names("optim.")) == {name for name in OPTIONS if name.startswith("optim.")}
    assert names("warmup") == ["optim.warmup_epochs", "optim.warmup_lr"]
    assert names("WARMUP_epochs") == ["optim.warmup_epochs"]
    assert names("optim.decay_", "seed") == ["optim.decay_epochs", "optim.decay_factor", "seed"]
    for option, words in SYNONYMS.items():
        assert all(option in names(word) for word in words.split())
    assert names("noise") == ["augment.random_erasing_mode"]  # in no name
    with pytest.raises(ConfigError, match="Received: flops"):
        names("flops")


def test_the_page_is_up_to_date():
    page = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
    run = run_python(ROOT / "tools" / "options_page.py")
    assert page == run.stdout, "write it again: python tools/options_page.py > docs/options.md"
