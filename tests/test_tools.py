"""The tools end to end, as processes on real files."""

import csv
import json
import shutil

import paddle
import pytest
import yaml
from helpers import draw_labelled, on_two_ranks, run_tool, write_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A config with weights drawn from a seed, and 23 labelled pictures in files of several kinds."""
    folder = tmp_path_factory.mktemp("tools")
    data = draw_labelled(folder, ("png", "jpg", "bmp"), prefix="picture ")
    write_config(folder, num_classes=6, short=36, crop=32, gain=20, **data)
    return folder


@pytest.fixture(scope="module")
def metrics(folder):
    """What one process says of the pictures."""
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
    assert (two["top1"], two["top5"]) == (one["top1"], one["top5"])
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
    assert run.returncode == 0 and "left out, unreadable: 1 of 24" in run.stdout
    result = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert (result["count"], result["skipped"]) == (23, 1)
    assert "line 4" in result["skipped_files"][0]["file"]
    (folder / "broken.png").unlink()


def test_two_ranks_train(folder, tmp_path):
    options = [
        *("-c", folder / "config.yaml", "-o", "model.weights=null", "-o", "train.epochs=1"),
        *("-o", f"data.train_root={folder}", "-o", f"data.train_list={folder / 'val_list.txt'}"),
        *("-o", f"output_dir={tmp_path / 'run'}"),
    ]
    run = run_tool("train", *options, launch=on_two_ranks(tmp_path / "log"))
    assert run.returncode == 0, run.stdout + run.stderr
    assert "global batch 8" in run.stdout
    (line,) = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    trained = json.loads(line)
    # one process sees the same weights, batch-norm statistics included
    best = tmp_path / "run" / "checkpoints" / "best" / "model.safetensors"
    run = run_tool("eval", "-c", tmp_path / "run" / "train.yaml", "-o", f"model.weights={best}")
    assert run.returncode == 0, run.stderr
    result = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert result["top1"] == trained["eval_top1"]
    assert result["loss"] == pytest.approx(trained["eval_loss"], rel=1e-6)


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
        assert "unreadable: " in run.stderr and "a.jpg" in run.stderr
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
        (["eval", "-o", "model.weights=null"], "model.weights is empty"),
        (["infer", "-i", "{}/picture 0.png", "-o", "model.weights=null"], "model.weights is empty"),
        (["eval", "-o", "data.eval_list=none.txt"], "There is no list file none.txt"),
        (["eval", "-o", "data.batchsize=3"], "did you mean data.batch_size"),
        (["eval", "-o", "device=gpu"], "device is gpu, but Paddle"),
        (["infer", "-i", "{}/none.jpg"], "There is no image, folder or match"),
        (["infer", "-i", "{}/picture 0.png", "--output", "x.xlsx"], "must end in .csv or .json"),
        (["infer", "-i", "{}/picture 0.png", "--topk", "0"], "--topk must be at least 1"),
        (["train"], "data.train_root and data.train_list are both empty"),
    ],
)
def test_wrong_input_ends_with_a_cure_and_no_traceback(folder, arguments, words):
    if "device=gpu" in arguments and paddle.is_compiled_with_cuda() and paddle.device.cuda.device_count():
        pytest.skip("there is a GPU here")
    name, *rest = arguments
    run = run_tool(name, "-c", folder / "config.yaml", *(part.format(folder) for part in rest))
    assert run.returncode == 2
    assert any(line.startswith("error: ") and words in line for line in run.stderr.splitlines())
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize("name", ["eval", "infer"])
def test_check_stops_after_one_batch(folder, name):
    more = ["-i", folder / "picture 0.png"] if name == "infer" else []
    output = folder / "checked"
    run = run_tool(name, "-c", folder / "config.yaml", "--check", "-o", f"output_dir={output}", *more)
    assert run.returncode == 0, run.stderr
    assert "check passed" in run.stdout and not output.exists()
