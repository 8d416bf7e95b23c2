"""eval.py gives one result, whatever runs the network and in how many processes."""

import json
import shutil

import pytest
import yaml
from helpers import ROOT, arrays_of, on_two_ranks, run_python, run_tool

from ppcls.cli import eval as cli
from ppcls.cli.common import read_model
from ppcls.data.folders import find_images
from ppcls.errors import ConfigError, DataError, ExportError
from ppcls.inference.artifact import read_artifact
from ppcls.inference.engines import installed_engines, open_engine
from ppcls.inference.engines.engine import LoadedEngine
from ppcls.inference.predictions import softmax
from ppcls.weights import metadata_of, write_weights


@pytest.fixture(scope="module")
def data(pictures, tmp_path_factory):
    """Options for 39 of the pictures, each of which has a label; the network is right about some."""
    folder = tmp_path_factory.mktemp("eval")
    files = find_images(str(pictures))[:39]
    (folder / "list.txt").write_text("\n".join(f"{file} {i * 7 % 40}" for i, file in enumerate(files)))
    return ["-o", f"data.eval_root={pictures}", "-o", f"data.eval_list={folder / 'list.txt'}"]


@pytest.fixture(scope="module")
def config(network, preprocessing, tmp_path_factory):
    """A config of the eager network, with the images prepared as in `exported`."""
    folder = tmp_path_factory.mktemp("config")
    write_weights(folder / "w.safetensors", arrays_of(network), metadata_of(network))
    model = {"name": "EfficientNetB0", "num_classes": 40, "weights": str(folder / "w.safetensors")}
    tree = {
        "device": "cpu",
        "model": model,
        "data": {"preprocessing": preprocessing.to_dict(), "batch_size": 8},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    return ["-c", str(folder / "config.yaml")]


@pytest.fixture
def evaluate(data, tmp_path, capsys):
    """A function that runs eval.py here, and returns its metrics and its output."""

    def run(*arguments):
        assert cli.main([*arguments, *data, "-o", f"output_dir={tmp_path / 'run'}"]) == 0
        return json.loads((tmp_path / "run" / "metrics.json").read_text()), capsys.readouterr().out

    return run


@pytest.fixture(scope="module")
def eager(config, data, tmp_path_factory):
    """Metrics of the eager network."""
    folder = tmp_path_factory.mktemp("eager")
    assert cli.main([*config, "--engine", "eager", *data, "-o", f"output_dir={folder}"]) == 0
    return json.loads((folder / "metrics.json").read_text())


def require_same(metrics, expected):
    for name in ("count", "top1", "top5", "skipped"):
        assert metrics[name] == expected[name]
    assert metrics["loss"] == pytest.approx(expected["loss"], rel=1e-5)  # see NEAR in test_engines


def test_all_engines_give_the_eager_networks_result(evaluate, eager, config, exported):
    assert eager["count"] == 39 and 0 < eager["top5"] < 1
    for name in installed_engines(read_artifact(exported)):
        metrics, said = evaluate("--exported", str(exported), "--engine", name)
        require_same(metrics, eager)
        assert f"engine: {name}" in said and "license: not stated" in said
    metrics, said = evaluate("--exported", str(exported))
    require_same(metrics, eager)
    assert "engine: " in said


def test_without_an_engine_the_network_is_exported_to_the_cache_once(
    evaluate, eager, config, monkeypatch, tmp_path
):
    monkeypatch.setenv("PPCLS_HOME", str(tmp_path / "home"))
    metrics, said = evaluate(*config)
    require_same(metrics, eager)
    assert "exporting" in said and " at 199x153" in said
    is_remembered = "the times vary" not in said  # on a busy machine they are measured again
    metrics, said = evaluate(*config)
    require_same(metrics, eager)
    assert "exporting" not in said and ("measuring" in said) != is_remembered
    assert str(tmp_path / "home" / "exported") in said and "license of the weights: not stated" in said


def test_a_network_that_cannot_be_exported_is_evaluated_as_it_is(
    evaluate, eager, config, monkeypatch, tmp_path
):
    def fail(*_, **__):
        raise ExportError("the converter broke.")

    monkeypatch.setattr("ppcls.inference.export.export_model", fail)
    monkeypatch.setenv("PPCLS_HOME", str(tmp_path / "home"))
    metrics, said = evaluate(*config)
    assert "note: the converter broke." in said and "engine: eager, kernels: " in said
    # engines run before in this process may have changed MKL's threads, and the last bits with them
    assert (metrics["top1"], metrics["loss"]) == (eager["top1"], pytest.approx(eager["loss"], rel=1e-6))
    with pytest.raises(ExportError, match="the converter broke"):
        evaluate(*config, "--engine", "paddle")


def test_with_softmax_inside_the_loss_is_the_same(evaluate, eager, exported, tmp_path, monkeypatch):
    shutil.copytree(exported, tmp_path / "soft")
    description = tmp_path / "soft" / "inference.yml"
    description.write_text(description.read_text().replace("output: logits", "output: probabilities"))
    (name, *_) = installed_engines(read_artifact(exported))

    def with_softmax(*arguments, **options):
        engine = open_engine(*arguments, **options)
        run = engine.run
        return LoadedEngine(name, [lambda images: softmax(run(images)).astype("float32")] * engine.streams)

    monkeypatch.setattr("ppcls.inference.load.open_engine", with_softmax)
    require_same(evaluate("--exported", str(tmp_path / "soft"), "--engine", name)[0], eager)


def test_two_processes_give_the_result_of_one(eager, exported, data, tmp_path):
    output = ["-o", f"output_dir={tmp_path / 'two'}"]
    run = run_tool("eval", "--exported", exported, *data, *output, launch=on_two_ranks(tmp_path / "log"))
    assert run.returncode == 0, run.stdout + run.stderr
    require_same(json.loads((tmp_path / "two" / "metrics.json").read_text()), eager)


def test_two_processes_export_once(eager, config, data, tmp_path):
    output = ["-o", f"output_dir={tmp_path / 'two'}"]
    script = [*on_two_ranks(tmp_path / "log"), ROOT / "tools" / "eval.py"]
    run = run_python(*script, *config, *data, *output, PPCLS_HOME=str(tmp_path / "home"))
    assert run.returncode == 0, run.stdout + run.stderr
    require_same(json.loads((tmp_path / "two" / "metrics.json").read_text()), eager)
    logs = "".join(path.read_text() for path in (tmp_path / "log").glob("workerlog.*"))
    assert logs.count("exporting") == 1
    assert len([path for path in (tmp_path / "home" / "exported").iterdir() if path.is_dir()]) == 1


def test_check_reads_one_batch(exported, data, tmp_path, capsys):
    engine = installed_engines(read_artifact(exported))[0]
    options = ["--exported", str(exported), "--engine", engine, "-o", f"output_dir={tmp_path / 'run'}"]
    assert cli.main([*options, *data, "--check"]) == 0
    said = capsys.readouterr().out
    assert "check passed" in said and "39" in said
    assert not (tmp_path / "run").exists()


def test_other_preprocessing_and_names_are_reported(evaluate, exported, pictures, tmp_path):
    (tmp_path / "names.txt").write_text("\n".join(f"other {number}" for number in range(40)))
    engine = installed_engines(read_artifact(exported))[0]
    options = ["-o", "data.preprocessing.resize_short=70", "-o", f"data.class_names={tmp_path / 'names.txt'}"]
    _, said = evaluate("--exported", str(exported), "--engine", engine, *options)
    (note,) = (line for line in said.splitlines() if "data.preprocessing." in line)
    assert note.startswith("note: data.preprocessing.resize_short is 70") and "72" in note
    assert "note: data.class_names" in said


def test_a_config_beside_an_export_gives_all_but_the_network(exported, config, tmp_path, capsys):
    given, export = read_model(cli.parse(["--exported", str(exported), *config]))
    assert export == exported
    assert given.data.batch_size == 8 and given.data.preprocessing.crop_size == 64
    assert "note: " not in capsys.readouterr().out
    alone, export = read_model(cli.parse([str(exported)]))
    assert alone.data.batch_size == 32 and alone.data.preprocessing.crop_size is None and export == exported
    assert read_model(cli.parse(["-c", str(exported)])) == (alone, export)
    other = ["-c", "EfficientNetB1", "-o", "model.num_classes=40", "-o", "data.class_names=null"]
    with pytest.raises(ConfigError, match=r"model\.name.*EfficientNetB1.*EfficientNetB0\b"):
        read_model(cli.parse(["--exported", str(exported), *other]))


@pytest.mark.parametrize(
    ("more", "error", "words"),
    [
        (["--engine", "eager"], ExportError, "engine eager .*exported"),
        (["-o", "model.num_classes=7"], ConfigError, r"model.num_classes is 7\b.* 40\b"),
        (["-o", "model.weights=other.pdparams"], ConfigError, r"model.weights is other\.pdparams"),
        (["-o", "model.dropout=0.4"], ConfigError, r"model.dropout is 0\.4\b"),
        (["-o", "data.eval_list=null", "-o", "data.eval_root=null"], DataError, "eval"),
        (["--exported", "none"], ExportError, "no folder none"),
    ],
)
def test_what_goes_wrong_with_an_exported_model(exported, data, more, error, words):
    with pytest.raises((error, ConfigError), match=words):
        cli.main(["--exported", str(exported), *data, *more])
