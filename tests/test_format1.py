"""Files of format 1 are read, and their run ends with the same numbers; one of today needs no start file."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest
import yaml
from safetensors import safe_open
from safetensors.numpy import load_file

from ppcls import build_model, load_weights
from ppcls.architectures import MODELS
from ppcls.config_files import load_config, parse_config
from ppcls.inference.artifact import read_artifact
from ppcls.preprocessing import Preprocessing
from ppcls.processor import processor
from ppcls.training.checkpoint import read_state, states_in
from ppcls.weights import write_weights

HERE = Path(__file__).parent
FORMAT1 = HERE / "golden/format1"
ENVIRONMENT = json.loads((FORMAT1 / "environment.json").read_text())
SPEC = Preprocessing(28, 24, "bilinear", False, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
NAMES = (("a", "class a"), ("b", "class b"), ("c", "class c"))
KILLED_AT = 17  # updates; an epoch has 12, and there is a state after each 7
CLOCKS = ("images_per_second", "data_wait", "eval_images_per_second")


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.syspath_prepend(str(FORMAT1))
    had = dict(MODELS)
    import tiny

    if "Tiny" not in MODELS:
        MODELS["Tiny"] = tiny.TinyVariant(width=1.0, depth=1.0, image_size=24, dropout=0.2)
    yield
    for name in MODELS.keys() - had.keys():
        del MODELS[name]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A copy of the files, and the folder to be in."""
    shutil.copytree(FORMAT1, tmp_path / "format1")
    monkeypatch.chdir(tmp_path / "format1")
    return tmp_path / "format1"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of today that started from weights.safetensors, uninterrupted: its folder."""
    folder = tmp_path_factory.mktemp("whole") / "format1"
    shutil.copytree(FORMAT1, folder)
    write_config(folder)
    assert tiny_run(folder, "-c", "config.yaml", "-o", "output_dir=today").returncode == 0
    return folder / "today"


def write_config(folder):
    """Today's form of config.yaml."""
    tree = yaml.safe_load((FORMAT1 / "config.yaml").read_text())
    names = ("resize_short", "crop_size", "interpolation", "antialias", "mean", "std")
    tree["data"]["preprocessing"] = {name: tree["data"].pop(name) for name in names}
    tree["data"]["allow_overlap"] = True
    tree["train"]["start_from"] = tree["model"].pop("weights")
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))


def tiny_run(folder, *arguments, killed_at=0):
    """tools/train.py on the network Tiny, in a process of its own."""
    command = [sys.executable, str(HERE / "kill_tiny.py"), str(killed_at), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "2"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def start_and_kill(folder):
    """Begin a run of today in the folder `today`, and kill it within its second epoch."""
    write_config(folder)
    run = tiny_run(folder, "-c", "config.yaml", "-o", "output_dir=today", killed_at=KILLED_AT)
    assert run.returncode == 9, run.stderr
    (path,) = states_in(folder / "today/checkpoints")
    assert path.name == "state-000000014.safetensors"


def notes_of(run):
    """Those that a run prints, but for those on its data: few, and the same to train and to evaluate."""
    others = ("training images too", "images say little")
    lines = [line for line in run.stdout.splitlines() if line.startswith("note: ")]
    return [line for line in lines if not any(words in line for words in others)]


def test_a_run_that_begins_with_its_classifier_survives_a_kill(folder):
    """It ends as by SIGKILL once the frozen epoch is saved. test_resume.py has the other moments."""
    write_config(folder)
    options = ["train.freeze_epochs=1", "train.checkpoint_steps=1", "train.min_steps_per_epoch=14"]
    options = [text for option in options for text in ("-o", option)]
    for name, kills in (("whole", [0]), ("killed", [14, 0])):
        for killed_at in kills:
            arguments = ["-c", "config.yaml", *options, "-o", f"output_dir={name}", "--resume", "auto"]
            run = tiny_run(folder, *arguments, killed_at=killed_at)
            assert run.returncode == (9 if killed_at else 0), run.stderr
    assert "an epoch uses each image 1.2 times" in run.stdout and "train.freeze_epochs is 1" in run.stdout
    whole, killed = (arrays_of(folder / name) for name in ("whole", "killed"))
    assert are_equal(whole, killed) and "ema/fc.weight" in whole
    for kind in ("last", "best"):
        path = f"checkpoints/{kind}/model.safetensors"
        assert are_equal(*(load_file(folder / name / path) for name in ("whole", "killed")))
    assert lines_of(folder / "whole") == lines_of(folder / "killed")


def last_state(run):
    return read_state(states_in(run / "checkpoints")[-1])


def arrays_of(run):
    """All that is the same in two equal runs: "ranks" holds seconds."""
    return {key: array for key, array in last_state(run).arrays.items() if key != "ranks"}


def lines_of(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in CLOCKS} for line in lines]


def are_equal(first, second):
    return first.keys() == second.keys() and all(np.array_equal(first[key], second[key]) for key in first)


def metadata_of(path):
    with safe_open(path, "numpy") as file:
        return {key: json.loads(text) for key, text in file.metadata().items() if key not in ("format",)}


def test_a_run_of_format_1_ends_with_the_same_numbers(folder):
    """It mixes images; the loss of mixed labels was computed with other roundings then."""
    run = tiny_run(folder, "-c", "run/train.yaml", "--resume", "auto", "-o", "kernels=paddle")
    assert run.returncode == 0, run.stderr
    expected = dict(np.load(FORMAT1 / "expected.npz"))
    del expected["ranks"]
    found = arrays_of(folder / "run")
    assert found.keys() == expected.keys()
    here = {"processor": processor(), "paddle": paddle.__version__, "OMP_NUM_THREADS": "2"}
    is_near = all(ENVIRONMENT[name] == value for name, value in here.items())
    for key, array in expected.items():
        scale = np.abs(array).max() + 1e-3  # some statistics are zero in truth
        tolerance = (1e-5 if is_near else 1e-3) * scale
        np.testing.assert_allclose(found[key], array, rtol=0, atol=tolerance, err_msg=key)
    if is_near:
        lines = [{k: v for k, v in line.items() if k not in CLOCKS} for line in ENVIRONMENT["metrics"]]
        for new, old in zip(lines_of(folder / "run"), lines, strict=True):
            assert new["eval_skipped_files"] == old.pop("eval_skipped_files") == []
            assert {k: new[k] for k in old} == pytest.approx(old, rel=1e-6)
    # it is a run of today now, and keeps what its start file gave
    start = last_state(folder / "run").header["start"]
    assert (start["licence"], start["bn_epsilon"], start["padding"]) == ("CC-BY-NC-4.0", 1e-5, "symmetric")


def test_a_config_of_format_1_has_todays_options(folder):
    config = load_config("run/train.yaml")
    assert config.train.start_from == "weights.safetensors" and config.train.start_variant is None
    assert config.data.preprocessing.resolve(None) == SPEC
    assert Path(config.model.weights) == Path("run/checkpoints/best/model.safetensors")
    assert parse_config(yaml.safe_load(config.to_yaml())) == config


def test_a_state_of_version_1_is_converted(folder):
    header = last_state(folder / "run").header
    config = parse_config(yaml.safe_load(header["config"]))
    assert config.train.start_from == "weights.safetensors" and config.model.weights is None
    assert config.data.preprocessing.resolve(None) == SPEC
    assert "start" not in header  # version 1 kept no record


@pytest.mark.parametrize("name", ["weights.safetensors", "run/checkpoints/best/model.safetensors"])
def test_weights_of_format_1_load(folder, name):
    model = build_model("Tiny", num_classes=3)
    info = load_weights(model, name)
    assert (info.license, info.bn_epsilon, info.padding) == ("CC-BY-NC-4.0", 1e-5, "symmetric")
    assert (model.bn_epsilon, model.padding) == (1e-5, "symmetric")
    assert info.preprocessing == SPEC and info.class_names == NAMES


def test_an_export_of_format_1_is_read(folder):
    artifact = read_artifact(folder / "export")
    assert (artifact.model, artifact.num_classes, artifact.output) == ("Tiny", 3, "logits")
    assert artifact.preprocessing == SPEC and artifact.license == "CC-BY-NC-4.0"
    assert artifact.class_names.to_pairs() == list(NAMES) and set(artifact.files) == {"onnx"}


def test_a_resumed_run_needs_no_start_file(folder, whole):
    start_and_kill(folder)
    (folder / "weights.safetensors").unlink()
    # the folder has moved, and is the unit
    (folder / "today").rename(folder / "moved")
    run = tiny_run(folder, "-c", "moved", "--resume", "auto")
    assert run.returncode == 0, run.stderr
    assert "weights.safetensors" in run.stdout and not notes_of(run)
    moved = folder / "moved"
    assert are_equal(arrays_of(moved), arrays_of(whole)) and lines_of(moved) == lines_of(whole)
    assert not (folder / "today").exists()

    # what is saved says all that the start file said, and computes by its conventions
    best = moved / "checkpoints/best/model.safetensors"
    metadata = metadata_of(best)
    assert metadata["licence"] == "CC-BY-NC-4.0" and metadata["preprocessing"] == SPEC.to_dict()
    assert (metadata["bn_epsilon"], metadata["padding"]) == (1e-5, "symmetric")
    assert [tuple(pair) for pair in metadata["class_names"]] == list(NAMES)
    images = paddle.to_tensor(np.random.RandomState(0).normal(size=(4, 3, 24, 24)).astype(np.float32))
    logits = []
    for path in (best, whole / "checkpoints/best/model.safetensors"):
        model = build_model("Tiny", num_classes=3, bn_epsilon=1e-5, padding="symmetric")
        load_weights(model, str(path))
        model.eval()
        with paddle.no_grad():
            logits.append(model(images).numpy())
    assert np.array_equal(*logits)
    other = build_model("Tiny", num_classes=3)
    other.set_state_dict(model.state_dict())
    other.eval()
    with paddle.no_grad():
        assert np.abs(other(images).numpy() - logits[0]).max() > 1e-3  # so the conventions matter


def test_another_start_file_in_its_place_is_a_note(folder, whole):
    start_and_kill(folder)
    model = build_model("Tiny", num_classes=3)
    arrays = {key: parameter.numpy() for key, parameter in model.state_dict().items()}
    metadata = metadata_of(FORMAT1 / "weights.safetensors") | {"licence": "MIT", "bn_epsilon": 1e-3}
    write_weights(folder / "weights.safetensors", arrays, metadata)
    run = tiny_run(folder, "-c", "today", "--resume", "auto")
    assert run.returncode == 0, run.stderr
    (note,) = notes_of(run)
    assert "weights.safetensors" in note and last_state(whole).header["start"]["sha256"][:16] in note
    assert are_equal(arrays_of(folder / "today"), arrays_of(whole))
    assert metadata_of(folder / "today/checkpoints/best/model.safetensors")["licence"] == "CC-BY-NC-4.0"


def test_the_start_may_be_named_otherwise_but_the_head_not_be_reset(folder, whole):
    start_and_kill(folder)
    (folder / "weights.safetensors").rename(folder / "elsewhere.safetensors")
    run = tiny_run(folder, "-c", "today", "--resume", "auto", "-o", "train.reset_head=true")
    assert run.returncode == 2 and "train.reset_head was False, is True" in run.stderr
    run = tiny_run(folder, "-c", "today", "--resume", "auto", "-o", "train.start_from=elsewhere.safetensors")
    assert run.returncode == 0, run.stderr
    (note,) = notes_of(run)
    assert "train.start_from" in note and "elsewhere.safetensors" in note
    assert are_equal(arrays_of(folder / "today"), arrays_of(whole))
