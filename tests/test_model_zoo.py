"""The model pages: tables and plots follow from the figures, and results find their way in."""

import json
import math
import re
import shutil
import xml.etree.ElementTree as ElementTree
from decimal import ROUND_HALF_UP, Decimal
from html import unescape
from pathlib import Path

import numpy as np
import paddle
import pytest
from model_zoo import main
from paddle import nn
from zoo import plots
from zoo.complexity import complexity
from zoo.measured import merge, read_measured, to_json
from zoo.pages import (
    BEGIN,
    CHINESE,
    END,
    ENGLISH,
    accuracy_notes,
    accuracy_table,
    count_all,
    latency_notes,
    latency_table,
    mismatches,
    model_page,
    replace_block,
)
from zoo.published import ORDER, PADDLECLAS_PAGE
from zoo.write import MEASURED, PAGES, READMES, plot_paths, stale_files, texts, write_files

from ppcls import MODELS, build_model
from ppcls.errors import DataError
from ppcls.intervals import wilson
from ppcls.weights.published import PUBLISHED

ROOT = Path(__file__).parent.parent
NOTHING = {"accuracy": {}, "latency": {}}
# Top-1 and top-5 as PaddleClas's page of these models prints them, in three digits.
THREE_DIGITS = """
ResNeXt101_32x8d_wsl 0.826 0.967
ResNeXt101_32x16d_wsl 0.842 0.973
ResNeXt101_32x32d_wsl 0.850 0.976
ResNeXt101_32x48d_wsl 0.854 0.977
Fix_ResNeXt101_32x48d_wsl 0.863 0.980
EfficientNetB0 0.774 0.933
EfficientNetB1 0.792 0.944
EfficientNetB2 0.799 0.947
EfficientNetB3 0.812 0.954
EfficientNetB4 0.829 0.962
EfficientNetB5 0.836 0.967
EfficientNetB6 0.840 0.969
EfficientNetB7 0.843 0.969
EfficientNetB0_small 0.758 0.926
"""


@pytest.fixture(scope="module")
def counts():
    return count_all()


@pytest.fixture
def project(tmp_path):
    """A clone that holds only what the pages need."""
    for path in (*READMES, MEASURED):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)
    return tmp_path


def results_folder(folder, model="EfficientNetB0", classes=1000, **metrics):
    folder.mkdir()
    metrics = {"top1": 0.7738, "top5": 0.9331, "loss": 1.0, "count": 50_000} | metrics
    (folder / "metrics.json").write_text(json.dumps(metrics))
    options = {"name": model, "num_classes": classes, "weights": "/home/me/x.pdparams", "variant": None}
    (folder / "eval.yaml").write_text(json.dumps({"model": options}))
    return folder


def benchmark_file(path, **changes):
    row = {
        "milliseconds": {"median": 5.5, "min": 5.0, "max": 7.0},
        "share_of_ceiling": 0.4,
        "difference": None,
    }
    figures = {"model": "EfficientNetB0", "size": 224, "batch_size": 1, "threads": 2, "rounds": 7}
    figures |= {"ceiling_gflops": 315.4, "processor": "A CPU", "versions": {"ppcls": "0.1.0", "onnx": "1"}}
    figures["rows"] = {"openvino": row, "auto (openvino)": row, "paddle, /home/me/other": row}
    path.write_text(json.dumps(figures | changes))
    return path


def test_committed_pages_are_as_the_code_writes_them(counts):
    for path, text in texts(ROOT, counts, read_measured(ROOT / MEASURED)).items():
        message = f"{path} is old: run python tools/model_zoo.py"
        assert (ROOT / path).read_bytes() == text.encode("utf-8"), message


def test_committed_plots_show_the_figures(counts):
    for name, shown in plots.panels(counts, read_measured(ROOT / MEASURED)).items():
        png, svg = (ROOT / path for path in plot_paths(name))
        assert png.read_bytes().startswith(b"\x89PNG")
        assert plots.plot_data(shown) in unescape(svg.read_text(encoding="utf-8")), f"{svg} is old"


def test_committed_measurements_are_as_the_code_writes_them():
    assert (ROOT / MEASURED).read_text(encoding="utf-8") == to_json(read_measured(ROOT / MEASURED))


def test_pages_are_about_all_models_and_say_the_same_figures(counts):
    assert set(ORDER) == set(MODELS)
    for measured in (NOTHING, read_measured(ROOT / MEASURED)):
        english, chinese = (model_page(words, counts, measured) for words in (ENGLISH, CHINESE))
        for page in (english, chinese):
            assert "None" not in page and "nan" not in page and "$" not in page
            rows = [line for line in page.splitlines() if line.startswith("| ") and line[2] in "REF"]
            assert len(rows) == 3 * len(MODELS)
            tables = page.split("\n\n")
            for table in (t for t in tables if t.startswith("| ")):
                assert len({line.count("|") for line in table.splitlines()}) == 1
        figures = [re.findall(r"\d+\.\d+|\d{1,3}(?:,\d{3})+", page) for page in (english, chinese)]
        assert sorted(figures[0]) == sorted(figures[1])


def test_documented_accuracy_is_the_pages_in_more_digits():
    rows = [line.split() for line in THREE_DIGITS.split("\n") if line]
    assert [row[0] for row in rows] == list(PADDLECLAS_PAGE)
    for name, *printed in rows:
        published = PUBLISHED[name][0]
        for value, text in zip((published.top1, published.top5), printed, strict=True):
            assert Decimal(str(value)).quantize(Decimal("0.001"), ROUND_HALF_UP) == Decimal(text)


@pytest.mark.parametrize(
    "name", ["EfficientNetB0", "EfficientNetB0_small", "EfficientNetLite0", "ResNeXt101_32x8d_wsl"]
)
def test_paddle_flops_is_what_paddle_flops_says(name, capsys, monkeypatch):
    # Paddle 3.3's own cannot turn an array of one value into an int with numpy 2.4
    monkeypatch.setattr(paddle.Tensor, "__int__", lambda tensor: int(tensor.item()))
    model = build_model(name)
    counts = complexity(model, 65, 96)
    assert counts.paddle_flops == paddle.flops(model, [1, 3, 65, 96])
    total = re.search(r"Total Params: *(\d+)", capsys.readouterr().out)
    assert total is not None
    assert counts.paddle_params == int(total[1])
    norms = [layer for layer in model.sublayers() if isinstance(layer, nn.BatchNorm2D)]
    statistics = sum(2 * math.prod(layer.weight.shape) for layer in norms)
    assert counts.trainable == counts.paddle_params - statistics


def test_the_formula_gives_25_of_28_documented_figures(counts):
    matched, others = mismatches(counts)
    assert matched == 25
    assert [(model, what) for model, what, _, _ in others] == [
        ("EfficientNetB6", "flops"),
        ("EfficientNetB0_small", "flops"),
        ("EfficientNetB0_small", "params"),
    ]
    assert [round(computed, 4) for *_, computed in others] == [36.3656, 0.7135, 4.469]


def test_results_of_an_evaluation_are_taken(tmp_path):
    measured = read_measured(tmp_path / "none.json")
    merge(measured, results_folder(tmp_path / "whole"))
    sample = results_folder(tmp_path / "sample", "EfficientNetLite0", top1=0.9, top5=0.99, count=200)
    merge(measured, sample)
    table = accuracy_table(ENGLISH, measured)
    assert "| 0.773 | 0.935 | 0.7738 [0.7701, 0.7774] | 0.9331 [0.9309, 0.9353] | 50,000 |" in table
    assert "| 0.9000 [0.8506, 0.9343] | 0.9900 [0.9643, 0.9973] | 200 |" in table
    assert measured["accuracy"]["EfficientNetLite0"]["top1_interval"] == wilson(180, 200)
    notes = accuracy_notes(ENGLISH, measured).splitlines()
    assert "all 50,000 images" in notes[0] and "`x.pdparams`" in notes[0] and "/home" not in notes[0]
    assert "180 of 200 top-1, 198 top-5" in notes[1] and "sample" in notes[1]
    merge(measured, results_folder(tmp_path / "again", top1=0.29, count=100))  # 28.999...
    assert "29 of 100 top-1" in accuracy_notes(ENGLISH, measured)
    merge(measured, results_folder(tmp_path / "third", top1=0.7))
    assert measured["accuracy"]["EfficientNetB0"]["top1"] == 0.7


def test_results_of_a_benchmark_are_taken(tmp_path):
    measured = read_measured(tmp_path / "none.json")
    merge(measured, benchmark_file(tmp_path / "b0.json"), is_busy=True)
    assert list(measured["latency"]["EfficientNetB0"]["engines"]) == ["openvino"]
    assert "| EfficientNetB0 | 224 | 256 | 2.449 | 315 | 5.5 (0.40) |  |" in latency_table(ENGLISH, measured)
    assert "A CPU, 2 threads, onnx 1, ppcls 0.1.0. Other programs" in latency_notes(ENGLISH, measured)
    merge(measured, benchmark_file(tmp_path / "b0.json"))
    assert "Other programs" not in latency_notes(ENGLISH, measured)


def test_one_machine_is_named_once(tmp_path):
    measured = read_measured(tmp_path / "none.json")
    merge(measured, benchmark_file(tmp_path / "b0.json"))
    merge(measured, benchmark_file(tmp_path / "b0.json", model="EfficientNetLite0"))
    merge(measured, benchmark_file(tmp_path / "b0.json", model="EfficientNetB1", size=240, threads=4))
    lines = latency_notes(ENGLISH, measured).splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "- EfficientNetB0, EfficientNetLite0",
        "- EfficientNetB1",
    ]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: folder / "none.json", "none.json"),
        (lambda folder: folder, "metrics.json"),
        (lambda folder: results_folder(folder / "x", "EfficientNetB8"), r"EfficientNetB8.*EfficientNetB\d\b"),
        (lambda folder: results_folder(folder / "x", classes=10), "10 classes"),
        (lambda folder: results_folder(folder / "x", top5=None), "Received: .*top5"),
        (lambda folder: benchmark_file(folder / "x", size=64), "Received: 64 .* 1\\b"),
        (lambda folder: benchmark_file(folder / "x", batch_size=8), "Received: 224 .* 8\\b"),
        (lambda folder: benchmark_file(folder / "x", rows={"auto": {}}), "x.*rows"),
        (lambda folder: benchmark_file(folder / "x", rows={"eager": {}}), "x.*milliseconds"),
    ],
)
def test_other_files_are_refused(tmp_path, make, words):
    with pytest.raises(DataError, match=words):
        merge(read_measured(tmp_path / "measured.json"), make(tmp_path))


@pytest.mark.parametrize(("content", "words"), [("{", r"x\.json.*JSON"), ("[]", r"x\.json.*JSON")])
def test_broken_json_is_refused(tmp_path, content, words):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(DataError, match=words):
        merge(read_measured(tmp_path / "none.json"), tmp_path / "x.json")


def test_the_block_is_replaced_and_nothing_else(counts):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    changed = replace_block(text, "another", "README.md")
    assert replace_block(changed, text.split("-->\n", 1)[1].split("\n<!-- end")[0], "README.md") == text
    with pytest.raises(DataError, match="README.md.*model table"):
        replace_block(text.replace("<!-- end of", "<!--"), "another", "README.md")
    with pytest.raises(DataError, match="README.md.*model table"):
        replace_block(f"{END}\n{BEGIN}", "another", "README.md")


def test_the_tool_writes_what_check_accepts(project, counts, monkeypatch, capsys):
    monkeypatch.setattr("zoo.write.count_all", lambda: counts)
    assert main(["--root", str(project), "--check"]) == 1
    assert "docs/models/EfficientNet_and_ResNeXt101_wsl.md" in capsys.readouterr().out
    folder = results_folder(project / "results", top1=0.7654)
    assert main(["--root", str(project), "--measured", str(folder)]) == 0
    assert main(["--root", str(project), "--check"]) == 0
    assert all("0.7654" in (project / path).read_text(encoding="utf-8") for path in (*PAGES, *READMES))
    svg = project / plot_paths("params")[1]
    svg.write_text(svg.read_text(encoding="utf-8").replace("5.28855", "5.28856"), encoding="utf-8")
    assert stale_files(project) == [plot_paths("params")[1]]


def test_tool_options_that_exclude_each_other(tmp_path):
    with pytest.raises(DataError, match="README.md"):
        main(["--root", str(tmp_path)])
    with pytest.raises(DataError, match="--check"):
        main(["--check", "--measured", str(tmp_path)])


def test_labels_lie_apart_from_each_other_and_from_the_points(project, counts, monkeypatch):
    monkeypatch.setattr("zoo.write.count_all", lambda: counts)
    drawn = []

    def kept(axis, points):
        labels = place_labels(axis, points)
        renderer = axis.figure.canvas.get_renderer()
        boxes = [label.get_window_extent(renderer) for label in labels]
        positions = axis.transData.transform([(x, y) for _, x, y, _ in points])
        drawn.append((boxes, positions, axis.get_window_extent(renderer), axis.figure.dpi / 72))
        return labels

    place_labels = plots.place_labels
    monkeypatch.setattr(plots, "place_labels", kept)
    write_files(project)
    assert len(drawn) >= 3
    for boxes, positions, inside, pixels_a_point in drawn:
        for index, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[:index])
            assert not any(box.contains(x, y) for x, y in positions)
            centre = (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2
            for x, y in np.delete(positions, index, axis=0):  # nobody wonders whose label it is
                gap = max(abs(x - centre[0]) - box.width / 2, abs(y - centre[1]) - box.height / 2)
                assert gap > 10 * pixels_a_point
            assert inside.x0 <= box.x0 and box.x1 <= inside.x1 and box.y1 <= inside.y1
    texts_of_svg = ElementTree.parse(project / plot_paths("flops")[1])
    assert texts_of_svg.getroot().tag.endswith("svg")
