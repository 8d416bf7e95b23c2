"""Intervals and tests against scipy; two evaluations on the same images, from the files that they write."""

import csv
import json
import shutil

import numpy as np
import pytest
from helpers import draw_labelled, write_config
from scipy.stats import beta, binom, binomtest

from ppcls.cli.compare import main as compare_tool
from ppcls.cli.eval import main as evaluate
from ppcls.errors import DataError
from ppcls.evaluation.compare import compare, describe, read_judged
from ppcls.intervals import at_most, interval_of, mcnemar, upper_bound, wilson


@pytest.mark.parametrize("total", [1, 2, 7, 200, 50_000])
def test_wilsons_interval_equals_scipys(total):
    for right in sorted({0, 1, total // 3, total - 1, total}):
        theirs = binomtest(right, total).proportion_ci(method="wilson")
        assert wilson(right, total) == pytest.approx((theirs.low, theirs.high), rel=1e-9, abs=1e-12)
        low, high = wilson(right, total)
        assert 0 <= low <= right / total <= high <= 1
    assert wilson(0, 0) == (0, 1)
    assert interval_of(0.29, 100) == wilson(29, 100)  # 0.29 * 100 is a little less than 29


@pytest.mark.parametrize("risk", [0.05, 0.003])
@pytest.mark.parametrize(("wrong", "total"), [(0, 1), (0, 299), (3, 200), (499, 500), (7, 7), (900, 50_000)])
def test_the_bound_of_an_error_rate_equals_scipys(wrong, total, risk):
    expected = 1.0 if wrong == total else beta.ppf(1 - risk, wrong + 1, total - wrong)
    assert upper_bound(wrong, total, risk) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("rate", [0.001, 0.2, 0.45])
@pytest.mark.parametrize("wrong", [0, 40, 9_500, 10_500, 22_000, 40_000, 50_000])
def test_the_risk_of_a_claim_about_many_images_equals_scipys(wrong, rate):
    assert at_most(wrong, 50_000, rate) == pytest.approx(binom.cdf(wrong, 50_000, rate), rel=1e-7)


@pytest.mark.parametrize("pair", [(0, 0), (0, 1), (5, 0), (8, 10), (10, 8), (3, 40), (700, 600), (0, 5000)])
def test_mcnemars_test_equals_scipys(pair):
    expected = binomtest(pair[0], sum(pair)).pvalue if sum(pair) else 1.0
    assert mcnemar(*pair) == pytest.approx(expected, rel=1e-9)


def write(folder, right, labels=None, names=None, **about):
    """Write an evaluation of images that are right or not, as eval.py does."""
    folder.mkdir()
    labels = [number % 7 for number in range(len(right))] if labels is None else labels
    names = [f"{folder.parent}/images/{n:03d}.png" for n in range(len(right))] if names is None else names
    with (folder / "predictions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label", "loss", "class_1", "probability_1"])
        for name, label, is_right in zip(names, labels, right, strict=True):
            writer.writerow([name, label, 0.5, label if is_right else label + 1, 0.9])
    metrics = {"top1": float(np.mean(right)), "count": len(right)} | about
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return read_judged(folder)


def of_counts(both, first_only, second_only, neither):
    first = [True] * (both + first_only) + [False] * (second_only + neither)
    second = [True] * both + [False] * first_only + [True] * second_only + [False] * neither
    return first, second


def test_a_table_of_the_images_and_its_probability(tmp_path):
    first, second = of_counts(170, 10, 8, 12)
    a, b = write(tmp_path / "a", first), write(tmp_path / "b", second)
    found = compare(a, b)
    assert found[:4] == (170, 10, 8, 12) and found.p == pytest.approx(binomtest(8, 18).pvalue)
    said = describe(a, b)
    assert "0.9000 (95%: 0.8506 to 0.9343)" in said and "0.8900 (95%: 0.8391 to 0.9262)" in said
    assert "do not show" in said and "81 of 100" in said
    assert compare(b, a)[:4] == (170, 8, 10, 12)


def test_a_difference_is_said(tmp_path):
    first, second = of_counts(150, 3, 30, 17)
    a, b = write(tmp_path / "a", first), write(tmp_path / "b", second)
    assert "B is better" in describe(a, b) and "A is better" in describe(b, a)
    assert "no difference" in describe(a, a)


def test_images_are_matched_by_name_wherever_they_lie(tmp_path):
    right = [True, False, True, True]
    a = write(tmp_path / "a", right)
    names = [f"/elsewhere/{number:03d}.png" for number in (3, 2, 1, 0)]
    b = write(tmp_path / "b", right[::-1], labels=[3, 2, 1, 0], names=names)
    assert compare(a, b)[:4] == (3, 0, 0, 1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"right": [True] * 3}, "different images: 4 .* 3 .*003.png"),
        ({"labels": [0, 1, 2, 5]}, r"different labels for 1 of 4.*003\.png"),
        ({"labels": [0, 1, 2, 3], "classes": "imagenet-a"}, "--classes.*imagenet-a"),
        ({"names": ["x.png", "y.png", "z.png", "x.png"]}, "different images"),
        ({"right": [True] * 5, "names": [f"{n % 4:03d}.png" for n in range(5)]}, "different images.*twice"),
    ],
)
def test_evaluations_of_other_images_labels_or_classes_are_refused(tmp_path, change, words):
    a = write(tmp_path / "a", [True] * 4)
    b = write(tmp_path / "b", **({"right": [True] * 4} | change))
    with pytest.raises(DataError, match=words):
        compare(a, b)


@pytest.mark.parametrize("damage", ["predictions.csv", "metrics.json", "short", "long", "empty", "nowhere"])
def test_what_is_not_an_evaluation_is_refused(tmp_path, damage):
    write(tmp_path / "a", [True] * 4)
    if damage == "short":
        text = (tmp_path / "a" / "predictions.csv").read_text()
        (tmp_path / "a" / "predictions.csv").write_text("\n".join(text.splitlines()[:-1]))
    elif damage == "long":  # Python's reader takes 131072 characters
        (tmp_path / "a" / "predictions.csv").write_text(f"file,label,class_1\n{'x' * 200_000},1,1\n")
    elif damage == "empty":
        (tmp_path / "a" / "predictions.csv").write_text("file,label,class_1\n")
        (tmp_path / "a" / "metrics.json").write_text('{"count": 0}')
    elif damage != "nowhere":
        (tmp_path / "a" / damage).write_text("file,label\nx,0\n" if damage.endswith("csv") else "[]")
    path = tmp_path / ("b" if damage == "nowhere" else "a") / "metrics.json"
    reason = "b/metrics.json: No such file" if damage == "nowhere" else ""
    with pytest.raises(DataError, match=f"{reason}.*metrics.json.*eval"):
        read_judged(path)


def test_another_file_beside_an_evaluation_is_not_taken_for_it(tmp_path):
    """Two evaluations under names of their own would be compared with neither of them."""
    write(tmp_path / "a", [True] * 4)
    shutil.copy(tmp_path / "a" / "metrics.json", tmp_path / "a" / "b0.json")
    for name in ("b0.json", "no such folder"):
        with pytest.raises(DataError, match=f"{name}.*metrics.json"):
            read_judged(tmp_path / "a" / name)


def test_the_tools_from_images_to_a_comparison(tmp_path, capsys):
    config = write_config(
        tmp_path, num_classes=6, short=36, crop=32, gain=20, **draw_labelled(tmp_path, ("png",))
    )
    run = ["-c", str(config), "--engine", "eager", "-o"]
    assert evaluate([*run, f"output_dir={tmp_path / 'a'}"]) == 0
    said = capsys.readouterr().out
    metrics = json.loads((tmp_path / "a" / "metrics.json").read_text())
    theirs = binomtest(round(23 * metrics["top1"]), 23).proportion_ci(method="wilson")
    assert metrics["top1_interval"] == pytest.approx([theirs.low, theirs.high])
    assert f"top-1 {metrics['top1']:.4f} (95%: {theirs.low:.4f} to {theirs.high:.4f})" in said
    recall = metrics["class_recall"][0]
    theirs = binomtest(round(4 * recall), 4).proportion_ci(method="wilson")
    assert f"class a {recall:.4f} ({theirs.low:.2f} to {theirs.high:.2f})" in said
    assert evaluate([*run, f"output_dir={tmp_path / 'b'}", "-o", "data.preprocessing.mean=[0,0,0]"]) == 0
    shutil.copytree(tmp_path / "b", tmp_path / "moved")
    capsys.readouterr()
    assert compare_tool([str(tmp_path / "a"), str(tmp_path / "moved" / "metrics.json")]) == 0
    said = capsys.readouterr().out
    assert f"top-1 {metrics['top1']:.4f}" in said and "McNemar" in said
