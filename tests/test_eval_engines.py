"""eval.py gives one result, whatever runs the network and in how many processes."""

import json
import shutil

import pytest
import yaml
from helpers import arrays_of, on_two_ranks, run_tool

from ppcls.cli import eval as cli
from ppcls.errors import ConfigError, DataError, ExportError
from ppcls.inference.artifact import read_artifact
from ppcls.inference.classify import find_images, softmax
from ppcls.inference.engines import LoadedEngine, candidates, open_engine
from ppcls.weights import facts_about, write_weights


@pytest.fixture(scope="module")
def data(pictures, tmp_path_factory):
    """Options for 39 of the pictures, each of which has a label; the network is right about some."""
    folder = tmp_path_factory.mktemp("eval")
    files = find_images(str(pictures))[:39]
    (folder / "list.txt").write_text("\n".join(f"{file} {i * 7 % 40}" for i, file in enumerate(files)))
    return ["-o", f"data.eval_root={pictures}", "-o", f"data.eval_list={folder / 'list.txt'}"]


@pytest.fixture(scope="module")
def config(network, spec, tmp_path_factory):
    """A config of the plain network, with the images prepared as in `exported`."""
    folder = tmp_path_factory.mktemp("config")
    write_weights(folder / "w.safetensors", arrays_of(network), facts_about(network))
    model = {"name": "EfficientNetB0", "num_classes": 40, "weights": str(folder / "w.safetensors")}
    tree = {"model": model, "data": spec.to_dict() | {"batch_size": 8}, "device": "cpu"}
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    return ["-c", str(folder / "config.yaml")]


@pytest.fixture
def evaluate(data, tmp_path, capsys):
    """Runs eval.py here: what it measured, and what it said."""

    def run(*arguments):
        assert cli.main([*arguments, *data, "-o", f"output_dir={tmp_path / 'run'}"]) == 0
        return json.loads((tmp_path / "run" / "metrics.json").read_text()), capsys.readouterr().out

    return run


@pytest.fixture(scope="module")
def eager(config, data, tmp_path_factory):
    """What the plain network gives."""
    folder = tmp_path_factory.mktemp("eager")
    assert cli.main([*config, "--engine", "eager", *data, "-o", f"output_dir={folder}"]) == 0
    return json.loads((folder / "metrics.json").read_text())


def require_same(metrics, expected):
    for name in ("count", "top1", "top5", "skipped"):
        assert metrics[name] == expected[name]
    assert metrics["loss"] == pytest.approx(expected["loss"], rel=1e-5)  # see NEAR in test_engines


def test_all_engines_give_the_plain_networks_result(evaluate, eager, config, exported):
    assert eager["count"] == 39 and 0 < eager["top5"] < 1
    for name in candidates(read_artifact(exported)):
        metrics, said = evaluate("--exported", str(exported), "--engine", name)
        require_same(metrics, eager)
        assert f"engine: {name}, as asked for" in said and "licence: not stated" in said
    metrics, said = evaluate("--exported", str(exported))
    require_same(metrics, eager)
    assert "engine: " in said


def test_without_an_engine_the_network_is_exported_to_the_cache_once(
    evaluate, eager, config, monkeypatch, tmp_path
):
    monkeypatch.setenv("PPCLS_HOME", str(tmp_path / "home"))
    metrics, said = evaluate(*config)
    require_same(metrics, eager)
    assert "engine: exporting the network to the cache, once" in said and "difference to the network" in said
    metrics, said = evaluate(*config)
    require_same(metrics, eager)
    assert "exporting" not in said and "measuring" not in said


def test_a_network_that_cannot_be_exported_is_evaluated_as_it_is(
    evaluate, eager, config, monkeypatch, tmp_path
):
    def fail(*_, **__):
        raise ExportError("the converter broke.")

    monkeypatch.setattr("ppcls.inference.export.export_model", fail)
    monkeypatch.setenv("PPCLS_HOME", str(tmp_path / "home"))
    metrics, said = evaluate(*config)
    assert "note: the converter broke." in said and "engine: eager" in said
    # engines run before in this process may have changed MKL's threads, and the last bits with them
    assert (metrics["top1"], metrics["loss"]) == (eager["top1"], pytest.approx(eager["loss"], rel=1e-6))
    with pytest.raises(ExportError, match="the converter broke"):
        evaluate(*config, "--engine", "paddle")


def test_with_softmax_inside_the_loss_is_the_same(evaluate, eager, exported, tmp_path, monkeypatch):
    shutil.copytree(exported, tmp_path / "soft")
    spec = tmp_path / "soft" / "inference.yml"
    spec.write_text(spec.read_text().replace("output: logits", "output: probabilities"))
    (name, *_) = candidates(read_artifact(exported))

    def with_softmax(*arguments, **options):
        engine = open_engine(*arguments, **options)
        run = engine.run
        return LoadedEngine(name, [lambda images: softmax(run(images)).astype("float32")] * engine.streams)

    monkeypatch.setattr("ppcls.inference.engines.open_engine", with_softmax)
    require_same(evaluate("--exported", str(tmp_path / "soft"), "--engine", name)[0], eager)


def test_two_processes_give_the_result_of_one(eager, exported, data, tmp_path):
    output = ["-o", f"output_dir={tmp_path / 'two'}"]
    run = run_tool("eval", "--exported", exported, *data, *output, launch=on_two_ranks(tmp_path / "log"))
    assert run.returncode == 0, run.stdout + run.stderr
    require_same(json.loads((tmp_path / "two" / "metrics.json").read_text()), eager)


def test_check_reads_one_batch(exported, data, tmp_path, capsys):
    engine = candidates(read_artifact(exported))[0]
    options = ["--exported", str(exported), "--engine", engine, "-o", f"output_dir={tmp_path / 'run'}"]
    assert cli.main([*options, *data, "--check"]) == 0
    assert "check passed: of 39 images a batch of" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_other_preprocessing_and_names_are_told(evaluate, exported, pictures, tmp_path):
    (tmp_path / "names.txt").write_text("\n".join(f"other {number}" for number in range(40)))
    engine = candidates(read_artifact(exported))[0]
    options = ["-o", "data.resize_short=70", "-o", f"data.class_names={tmp_path / 'names.txt'}"]
    _, said = evaluate("--exported", str(exported), "--engine", engine, *options)
    assert "note: data.resize_short is 70; the weights were made for 72" in said
    assert "note: data.class_names differ from the names that the weights carry, and are used" in said


@pytest.mark.parametrize(
    ("more", "error", "words"),
    [
        (
            ["--engine", "eager"],
            ConfigError,
            "--engine eager runs the plain network",
        ),
        (["-o", "model.num_classes=7"], ConfigError, "model.num_classes is 7, but .* holds 40"),
        (["-o", "data.eval_list=null", "-o", "data.eval_root=null"], DataError, "eval"),
        (["--exported", "none"], ExportError, "There is no folder none"),
    ],
)
def test_what_goes_wrong_with_an_exported_model(exported, data, more, error, words):
    with pytest.raises((error, ConfigError), match=words):
        cli.main(["--exported", str(exported), *data, *more])
