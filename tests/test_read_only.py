"""Homes and working folders that cannot be written: inference needs neither, and messages name the cure."""

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from helpers import ROOT, write_config

import ppcls
from ppcls.cli.eval import main as evaluate
from ppcls.cli.infer import main as infer
from ppcls.cli.main import COMMANDS
from ppcls.data.pack import index_shards
from ppcls.errors import ConfigError, ExportError, PpclsError
from ppcls.files import require_place


@pytest.fixture
def closed(tmp_path, monkeypatch) -> Path:
    """A config in a working folder with a home, in neither of which anything can be created, even by root."""
    config = write_config(tmp_path, 40, 72, 64)
    tree = yaml.safe_load(config.read_text())
    del tree["output_dir"]
    config.write_text(yaml.safe_dump(tree))
    (tmp_path / "output").write_text("a file in the place of the folder")
    (tmp_path / "home").write_text("a file in the place of the folder")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PPCLS_HOME", str(tmp_path / "home" / "ppcls"))
    return config


def test_inference_needs_nothing_writable(closed, exported, pictures, capsys):
    picture = str(pictures / "picture 00.png")
    for options in (
        ["-c", str(closed)],
        ["-c", str(closed), "--engine", "auto"],
        ["--exported", str(exported)],
    ):
        assert infer([*options, "-i", picture, "--topk", "1"]) == 0
        assert f"{picture}: " in capsys.readouterr().out
    assert sorted(path.name for path in Path().iterdir()) == [
        "config.yaml",
        "home",
        "output",
        "weights.safetensors",
    ]


def test_what_needs_a_cache_names_its_setting(closed, pictures):
    said = []
    predictor = ppcls.load(closed, log=said.append)
    assert predictor.engine.name == "eager" and [line for line in said if "PPCLS_HOME" in line]
    with pytest.raises(ExportError, match="PPCLS_HOME"):
        ppcls.load(closed, "paddle", log=said.append)


def test_without_any_home(closed, exported, monkeypatch):
    def nowhere():
        raise PpclsError("there is no home folder: PPCLS_HOME")

    monkeypatch.setattr("ppcls.inference.cache.cache_dir", nowhere)
    monkeypatch.setattr("ppcls.inference.fastest.cache_dir", nowhere)
    assert ppcls.load(closed, log=lambda line: None).engine.name == "eager"
    assert ppcls.load(exported, log=lambda line: None).num_classes == 40


def test_an_evaluation_names_the_option_of_its_folder(closed, pictures, tmp_path):
    (tmp_path / "list.txt").write_text("picture 00.png 0\n")
    data = ["-o", f"data.eval_root={pictures}", "-o", "data.eval_list=list.txt"]
    with pytest.raises(ConfigError, match="output_dir"):
        evaluate(["-c", str(closed), *data])
    assert evaluate(["-c", str(closed), *data, "-o", "output_dir=other"]) == 0
    assert json.loads((tmp_path / "other" / "metrics.json").read_text())["count"] == 1


@pytest.mark.parametrize(
    "command",
    [
        "eval NONE --report {}",
        "infer NONE -i pictures --output {}/x.csv",
        "infer NONE -i pictures --embeddings {}/x.npy",
        "infer NONE -i pictures --explain {}",
        "data clean NONE pictures --output {}",
        "data index NONE --output {}",
        "benchmark engines NONE --json {}/x.json",
        "convert NONE {}/x.safetensors -m EfficientNetB0",
    ],
)
def test_a_place_that_cannot_be_written_is_refused_before_the_work(command, tmp_path, monkeypatch):
    """NONE does not exist, which only the work would find."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("a file in the place of the folder")
    name, *arguments = command.format("file/folder").split()
    option = next((part for part in arguments if part.startswith("--")), "The output")
    with pytest.raises(ConfigError, match=f"^{option} .*file is not a folder"):
        import_module(COMMANDS[name][0]).main(arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_places_that_can_be_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("x", "new/x", str(tmp_path / "new" / "x"), "/dev/null"):
        require_place(Path(path), "--output")
    with pytest.raises(ConfigError, match="--output.*is a folder"):
        require_place(tmp_path, "--output")
    monkeypatch.setattr("os.access", lambda *_: False)  # this user may be root, who may write anywhere
    require_place(Path("/dev/null"), "--output")
    with pytest.raises(ConfigError, match=r"--output.*written in \."):
        require_place(Path("x"), "--output")
    assert not list(tmp_path.iterdir())


def test_an_index_beside_read_only_shards_is_refused_before_they_are_read(tmp_path, monkeypatch):
    (tmp_path / "x.tar").touch()
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(ConfigError, match="--output.*beside the shards.*nothing can be written"):
        index_shards([str(tmp_path / "x.tar")], None)


def test_an_open_file_is_written_into_by_its_name(tmp_path):
    """Not replaced, which would leave /dev/stdout a file of its own."""
    script = (
        "from pathlib import Path; from ppcls.files import require_place, write_text; "
        "path = Path('/proc/self/fd/1'); require_place(path, '--json'); write_text(path, 'text')"
    )
    with (tmp_path / "out").open("w") as file:
        subprocess.run([sys.executable, "-c", script], stdout=file, cwd=ROOT, check=True)
    assert (tmp_path / "out").read_text() == "text"
