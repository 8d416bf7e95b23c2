"""tools/benchmark.py train: on drawn batches, on files, and on two processes."""

import json
import sys

import numpy as np
import pytest
import yaml
from helpers import HAS_ONEDNN, on_two_ranks, run_tool
from PIL import Image

from ppcls.cli import benchmark
from ppcls.errors import ConfigError


@pytest.fixture
def config(tmp_path):
    tree = {
        "model": {"name": "EfficientNetB0_small", "num_classes": 4},
        "data": {
            "batch_size": 2,
            "num_workers": 1,
            "preprocessing": {
                "resize_short": 36,
                "crop_size": 32,
                "interpolation": "bilinear",
                "antialias": False,
                "mean": [0.5] * 3,
                "std": [0.5] * 3,
            },
        },
        "train": {"ema_decay": 0.99, "accumulate": 2},
        "device": "cpu",
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    return tmp_path / "config.yaml"


def check(figures, ranks):
    assert len(figures["ranks"]) == ranks and figures["steps"] == 3
    for rank in figures["ranks"]:
        seconds = rank["seconds"]
        assert list(seconds) == ["data", "forward", "backward", "update"]
        assert all(value > 0 for value in seconds.values())
        images = 2 * 2  # a step has two batches of two
        assert rank["images_per_second"] == pytest.approx(images / sum(seconds.values()), rel=0.5)
        assert 50e6 < rank["peak_memory_bytes"] < 8e9
    total = sum(rank["images_per_second"] for rank in figures["ranks"])
    assert figures["images_per_second"] == pytest.approx(total)


def test_files_and_drawn_batches(config, tmp_path, capsys):
    for index in range(9):
        pixels = np.random.RandomState(index).randint(0, 256, (40, 40, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    (tmp_path / "list.txt").write_text("".join(f"{index}.png {index % 4}\n" for index in range(9)))
    data = ["-o", f"data.train_root={tmp_path}", "-o", f"data.train_list={tmp_path / 'list.txt'}"]
    for options in (data, ["--synthetic"]):
        out = tmp_path / "figures.json"
        assert benchmark.main(["train", "-c", str(config), "--steps", "3", "--json", str(out), *options]) == 0
        check(json.loads(out.read_text()), ranks=1)
    assert capsys.readouterr().out.count(" MiB\n") == 2


def test_two_processes_are_summed(config, tmp_path):
    out = tmp_path / "figures.json"
    options = ["train", "-c", config, "--synthetic", "--steps", "3", "--json", out]
    run = run_tool("benchmark", *options, launch=on_two_ranks(tmp_path / "log"))
    assert run.returncode == 0, run.stdout + run.stderr
    check(json.loads(out.read_text()), ranks=2)
    assert sum(line.startswith(("0  ", "1  ", "all ")) for line in run.stdout.splitlines()) == 3


def test_without_data_or_steps_it_says_what_is_missing(config):
    with pytest.raises(ConfigError, match="data.train_root .*data.train_list"):
        benchmark.main(["train", "-c", str(config)])
    with pytest.raises(ConfigError, match="--steps .*Received: 0"):
        benchmark.main(["train", "-c", str(config), "--steps", "0"])


@pytest.mark.skipif(not HAS_ONEDNN, reason="this Paddle comes without oneDNN's library")
def test_kernels_are_compared_in_turns(config, tmp_path, capsys):
    out = tmp_path / "figures.json"
    options = [
        "-o",
        "optim.name=rmsprop",
        "--kernels",
        "paddle",
        "onednn",
        "--steps",
        "1",
        "--rounds",
        "3",
        "--json",
        str(out),
    ]
    assert benchmark.main(["train", "-c", str(config), *options]) == 0
    rows = json.loads(out.read_text())["rows"]
    paddles, onednns = rows.values()
    assert [name.split(":")[0] for name in rows] == ["paddle", "onednn"]
    assert paddles["ratio"] == {"median": 1, "min": 1, "max": 1}
    for kind in ("images_per_second", "ratio"):
        assert 0 < onednns[kind]["min"] <= onednns[kind]["median"] <= onednns[kind]["max"]
    assert "onednn: oneDNN 3" in capsys.readouterr().out


def test_a_config_without_preprocessing_is_measured_with_the_published_one(config, capsys):
    """As that of a run, which has it from the weights that it started from."""
    size = ["-o", "data.preprocessing=null", "-o", "data.preprocessing.crop_size=32"]
    assert benchmark.main(["train", str(config), "--synthetic", "--steps", "1", *size]) == 0
    assert "at 32 pixels" in capsys.readouterr().out


def test_torch_that_is_missing_is_named(config):
    options = ["--steps", "1", "-o", "model.name=EfficientNetB0"]
    for python, what in ((sys.executable, "No module named"), ("no/python", "cannot be run")):
        with pytest.raises(ConfigError, match=f"--beside-torch.*{what}"):
            benchmark.main(["train", "-c", str(config), "--beside-torch", python, *options])
    with pytest.raises(ConfigError, match="timm has no EfficientNetB0_small"):
        benchmark.main(["train", "-c", str(config), "--beside-torch", sys.executable, "--steps", "1"])
