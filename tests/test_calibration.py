"""A calibration in an export's description, and the tools that find, write and use it."""

import csv
import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers import ARTIFACT, draw_labelled, on_two_ranks, predictor_of, run_tool, write_config
from sklearn.metrics import log_loss

from ppcls.cli.eval import main as evaluate
from ppcls.cli.export import main as export
from ppcls.cli.infer import main as infer
from ppcls.data.dataset import Dataset
from ppcls.errors import ConfigError, DataError
from ppcls.evaluation.calibrate import calibrate
from ppcls.evaluation.sureness import require_one_label
from ppcls.inference.artifact import read_artifact
from ppcls.inference.calibration import Calibration
from ppcls.inference.engines.engine import LoadedEngine
from ppcls.inference.load import open_export
from ppcls.inference.predictions import softmax

CALIBRATION = Calibration(1.5, 0.7, 0.6, 0.05, 200, {"0.01": 3.5, "0.05": 4.25, "0.5": 9.0})


@pytest.mark.parametrize("output", ["logits", "probabilities"])
def test_a_predictor_divides_by_the_temperature_and_keeps_the_order(output):
    logits = np.array([[1.0, 3.0, 2.5], [0.1, 0.0, 4.0]], np.float32)
    outputs = softmax(logits).astype(np.float32) if output == "probabilities" else logits
    own = {"num_classes": 3, "preprocessing": ARTIFACT.preprocessing, "output": output}
    plain = predictor_of(lambda images: outputs, **own)
    sure = predictor_of(lambda images: outputs, **own)
    sure._calibration = CALIBRATION
    expected = softmax(logits.astype(np.float64) / 1.5)
    np.testing.assert_allclose(sure.to_probabilities(outputs), expected, rtol=1e-6)
    assert (sure.to_probabilities(outputs).argsort() == plain.to_probabilities(outputs).argsort()).all()
    np.testing.assert_array_equal(sure.to_logits(outputs), plain.to_logits(outputs))
    marks = [sure.to_prediction(None, row).is_sure for row in sure.to_probabilities(outputs)]
    assert marks == [False, True]
    assert [plain.to_prediction(None, row).is_sure for row in expected] == [None, None]


def test_a_calibration_of_another_precision_is_not_used():
    own = {"num_classes": 3, "preprocessing": ARTIFACT.preprocessing}
    predictor = predictor_of(lambda images: images, **own)
    predictor._calibration = CALIBRATION
    assert (predictor.precision, predictor.calibration) == ("float32", CALIBRATION)
    predictor.engine = LoadedEngine("openvino-int8", [lambda images: images])
    assert (predictor.precision, predictor.calibration) == ("openvino-int8", None)
    assert predictor.temperature is None


def test_a_network_that_does_not_choose_one_class_is_refused():
    own = {"num_classes": 3, "preprocessing": ARTIFACT.preprocessing}
    predictor = predictor_of(lambda images: images, **own)
    dataset = Dataset.of_files(["a.png"] * 2, np.array([[0, 1], [1, 1]]))
    with pytest.raises(ConfigError, match="--calibrate.*several labels"):
        require_one_label(predictor, dataset)
    predictor.activation = "sigmoid"
    with pytest.raises(ConfigError, match="--calibrate.*train.loss=binary"):
        require_one_label(predictor, Dataset.of_files(["a.png"], np.array([0])))


def test_a_description_with_a_calibration_is_read_as_written(tmp_path):
    for calibration in (None, CALIBRATION, replace(CALIBRATION, threshold=None, energy={})):
        artifact = replace(ARTIFACT, calibration=calibration)
        artifact.write(tmp_path)
        for sizes in ARTIFACT.files.values():
            for name, size in sizes.items():
                (tmp_path / name).write_bytes(b"x" * size)
        assert read_artifact(tmp_path).calibration == calibration
        assert ("calibration" in (tmp_path / "inference.yml").read_text()) == (calibration is not None)


# The tools, on a network with drawn weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A config, 23 pictures of six classes, and what an evaluation with --calibrate wrote, to `output`."""
    folder = tmp_path_factory.mktemp("calibrate")
    write_config(folder, num_classes=6, short=36, crop=32, gain=20, **draw_labelled(folder, ("png",)))
    options = [
        "--calibrate",
        "--max-error",
        "0.45",
        "--ood",
        folder / "val_list.txt",
        "--report",
        folder / "report",
    ]
    assert evaluate_here(folder, *options) == 0
    return folder


def evaluate_here(folder, *options):
    return evaluate(["-c", str(folder / "config.yaml"), "--engine", "eager", *map(str, options)])


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def read_csv(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_all_figures_follow_from_the_saved_logits(folder):
    values = read_json(folder / "output" / "calibration.json")
    rows = read_csv(folder / "output" / "predictions.csv")
    labels = np.array([int(row["label"]) for row in rows])
    logits = np.load(folder / "output" / "logits.npy")
    assert logits.shape == (23, 6) and logits.dtype == np.float32
    assert logits.argmax(axis=1).tolist() == [int(row["class_1"]) for row in rows]
    found = calibrate(logits, labels, 0.45)
    assert values["calibration"] == json.loads(json.dumps(found.calibration.to_dict()))
    assert values["before"]["nll"] == pytest.approx(read_json(folder / "output" / "metrics.json")["loss"])
    assert values["out_of_distribution"]["energy"]["auroc"] == pytest.approx(0.5, abs=0.01)  # the same images
    page = (folder / "report" / "index.html").read_text()
    assert "How sure it is" in page and page.count("<picture>") == 4
    for name in ("reliability_before.png", "reliability_after.png", "risk_coverage.png"):
        assert (folder / "output" / name).stat().st_size > 5000


def test_results_are_kept_if_the_other_images_end_the_run(folder, tmp_path):
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "a.png").write_bytes(b"not an image")
    options = ["--calibrate", "--ood", tmp_path / "others", "-o", f"output_dir={tmp_path / 'output'}"]
    with pytest.raises(DataError, match=r"a\.png"):
        evaluate_here(folder, *options)
    assert read_json(tmp_path / "output" / "metrics.json")["count"] == 23
    assert len(read_csv(tmp_path / "output" / "predictions.csv")) == 23


def test_two_ranks_give_the_same_calibration(folder, tmp_path):
    options = ["--engine", "eager", "--calibrate", "--max-error", "0.45", "--ood", folder / "val_list.txt"]
    options += ["-o", f"output_dir={tmp_path / 'two'}"]
    ended = run_tool("eval", "-c", folder / "config.yaml", *options, launch=on_two_ranks(tmp_path / "log"))
    assert ended.returncode == 0, ended.stderr + ended.stdout
    one, two = (read_json(home / "calibration.json") for home in (folder / "output", tmp_path / "two"))
    assert two["calibration"]["temperature"] == pytest.approx(one["calibration"]["temperature"], rel=1e-4)
    assert two["before"]["nll"] == pytest.approx(one["before"]["nll"], rel=1e-4)
    assert two["out_of_distribution"]["images"] == one["out_of_distribution"]["images"] == 23
    logits = [np.load(home / "logits.npy") for home in (folder / "output", tmp_path / "two")]
    np.testing.assert_allclose(*logits, rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module")
def exports(folder):
    """The network exported without a calibration, and with one whose threshold half of the pictures reach."""
    values = read_json(folder / "output" / "calibration.json")
    logits = np.load(folder / "output" / "logits.npy").astype(np.float64)
    confidence = softmax(logits / values["calibration"]["temperature"]).max(axis=1)
    values["calibration"]["threshold"] = float(np.sort(confidence)[11:13].mean())
    (folder / "half.json").write_text(json.dumps(values))
    for name, options in (("plain", []), ("sure", ["--calibration", folder / "half.json"])):
        assert export_here(folder, *options, "--output", folder / name) == 0
    return folder / "plain", folder / "sure", confidence >= values["calibration"]["threshold"]


def export_here(folder, *options):
    return export(["-c", str(folder / "config.yaml"), "--formats", "paddle", *map(str, options)])


def test_infer_marks_what_is_unsure(exports, folder, tmp_path, capsys):
    plain, sure, expected = exports
    assert 0 < expected.sum() < 23
    files = [Path(row["file"]) for row in read_csv(folder / "output" / "predictions.csv")]
    (tmp_path / "in").mkdir()
    for number, file in enumerate(files):
        shutil.copy(file, tmp_path / "in" / f"{number:02d}.png")
    (tmp_path / "in" / "99.png").write_text("no image")
    options = ["-i", str(tmp_path / "in"), "-o", f"output_dir={tmp_path}"]
    for output in ("sure.csv", "sure.json", "plain.csv", "plain.json"):
        model = sure if output.startswith("sure") else plain
        assert infer([str(model), *options, "--output", str(tmp_path / output)]) == 1
    marks = ["yes" if is_sure else "no" for is_sure in expected]
    rows = read_csv(tmp_path / "sure.csv")
    assert [row["sure"] for row in rows if row["rank"] in ("1", "")] == [*marks, ""]
    assert "sure" not in read_csv(tmp_path / "plain.csv")[0]
    records = read_json(tmp_path / "sure.json")
    assert [record.get("sure") for record in records] == [*expected.tolist(), None]
    others = read_json(tmp_path / "plain.json")
    assert all("sure" not in record for record in others)
    for record, other in zip(records[:-1], others[:-1], strict=True):
        ids = [[c["class_id"] for c in r["predictions"]] for r in (record, other)]
        assert ids[0] == ids[1]
        assert record["predictions"][0]["probability"] != other["predictions"][0]["probability"]
    capsys.readouterr()
    assert infer([str(sure), *options]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [": unsure; " not in line for line in lines if "class " in line] == expected.tolist()


def test_an_export_without_a_calibration_is_what_it_was(exports):
    plain, sure, _ = exports
    values = yaml.safe_load((plain / "inference.yml").read_text())
    assert "calibration" not in values
    others = yaml.safe_load((sure / "inference.yml").read_text())
    found = others.pop("calibration")
    assert found["threshold"] and found["temperature"] and others["format_version"] == 1
    same = {"parity": None, "files": None}  # Paddle numbers the tensors of each export anew
    assert values | same == others | same
    images = np.random.RandomState(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
    own, other = (open_export(export, "paddle", log=lambda line: None) for export in (plain, sure))
    logits = own.logits(images)
    assert (other.logits(images) == logits).all() and (own.probabilities(images) == softmax(logits)).all()
    assert (other.probabilities(images) != own.probabilities(images)).any()


def test_an_evaluation_of_the_export_uses_its_temperature(exports, folder, tmp_path, capsys):
    data = [f"data.eval_root={folder}", f"data.eval_list={folder / 'val_list.txt'}", "data.batch_size=4"]
    data += [f"output_dir={tmp_path}", "data.preprocessing.resize_short=36"]
    options = [part for option in data for part in ("-o", option)]
    assert evaluate([str(exports[1]), "--calibrate", "--max-error", "0.45", *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines.count(f"written: {tmp_path / 'metrics.json'}") == 1
    (line,) = [line for line in lines if line.startswith("next: ")]
    path = shlex.quote(str(tmp_path / "calibration.json"))  # of the export's source, prepared as here
    assert line.endswith(f" export MODEL -o data.preprocessing.resize_short=36 --calibration {path}")
    own, first = read_json(tmp_path / "calibration.json"), read_json(folder / "output" / "calibration.json")
    assert own["calibration"]["temperature"] == pytest.approx(first["calibration"]["temperature"], rel=1e-4)
    logits = np.load(tmp_path / "logits.npy").astype(np.float64) / first["calibration"]["temperature"]
    labels = [int(row["label"]) for row in read_csv(tmp_path / "predictions.csv")]
    expected = log_loss(labels, softmax(logits), labels=range(6))
    assert read_json(tmp_path / "metrics.json")["loss"] == pytest.approx(expected, rel=1e-4)


def test_images_that_are_prepared_otherwise_are_not_judged(exports, tmp_path):
    said = []
    predictor = open_export(exports[1], "paddle", log=said.append)
    assert predictor.calibration is not None and not any("not calibrated" in line for line in said)
    other = predictor.with_preprocessing(replace(predictor.preprocessing, mean=(0.0, 0.0, 0.0)))
    assert other.calibration is None and predictor.calibration is not None
    from ppcls.inference.resolve import resolve_model

    config = resolve_model(exports[1], ["data.preprocessing.mean=[0,0,0]"]).config
    assert open_export(exports[1], "paddle", config=config, log=said.append).calibration is None
    assert any("not calibrated" in line for line in said)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"parameters_sha256": 5}, "other weights"),
        ({"parameters_sha256": "cd" * 32}, "other weights: cdcdcd.*eval.*--calibrate"),
        ({"calibration": {"precision": "openvino-int8"}}, "openvino-int8.*float32.*--calibrate"),
        ({"preprocessing": None}, "prepared otherwise.*data.preprocessing"),
        ({"format_version": 2}, "newer"),
        ({"calibration": {"temperature": 0}}, "not a calibration"),
        (None, "not a calibration"),
    ],
)
def test_the_calibration_of_another_network_is_refused(folder, tmp_path, change, words):
    values = read_json(folder / "output" / "calibration.json")
    for key, value in (change or {}).items():
        place = values["subject"] if key in values["subject"] else values
        place[key] = place[key] | value if isinstance(value, dict) else value
    (tmp_path / "x.json").write_text("{" if change is None else json.dumps(values))
    with pytest.raises(ConfigError, match=rf"x\.json.*{words}"):
        export_here(folder, "--calibration", tmp_path / "x.json", "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_runs_own_calibration_goes_into_its_export(folder, tmp_path, capsys):
    run = tmp_path / "run"
    best = run / "checkpoints" / "best"
    best.mkdir(parents=True)
    shutil.copy(folder / "weights.safetensors", best / "model.safetensors")
    shutil.copy(folder / "config.yaml", run / "train.yaml")

    def said_of(*options):
        assert export([str(run), "--formats", "paddle", *options]) == 0
        lines = capsys.readouterr().out.splitlines()
        return [line for line in lines if line.startswith(("calibration: ", "note: without a calibration"))]

    assert not said_of("--check")
    shutil.copy(folder / "output" / "calibration.json", run)
    (line,) = said_of()
    assert line.startswith(f"calibration: {run / 'calibration.json'}; temperature")
    assert read_artifact(run / "exported").calibration is not None
    others = ["--check", "--overwrite"]
    assert not said_of(*others, "--calibration", "none")
    (line,) = said_of(*others, "-o", "data.preprocessing.mean=[0,0,0]")
    assert "without a calibration" in line


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--max-error", "0.1"], "--max-error.*--calibrate"),
        (["--ood", "x"], "--ood.*--calibrate"),
        (["--calibrate", "--max-error", "0"], "--max-error.*Received: 0"),
        (["--calibrate", "--max-error", "0.5"], "--max-error.*Received: 0.5"),
        (["--calibrate", "--sizes", "32"], "--sizes"),
        (["--calibrate", "--classes", "x"], "--classes"),
    ],
)
def test_options_that_exclude_each_other(folder, options, words):
    with pytest.raises(ConfigError, match=words):
        evaluate_here(folder, *options)
