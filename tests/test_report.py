"""Where a network errs: scores against scikit-learn, ReaL labels and subsets against timm, files, options."""

import csv
import json
import tracemalloc
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
from golden.make_subsets import COUNT, SETS, draw_logits, draw_places
from helpers import ROOT, draw_labelled, on_two_ranks, predictor_of, run_tool, write_config
from sklearn.calibration import calibration_curve
from sklearn.metrics import (
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    log_loss,
    precision_recall_fscore_support,
    recall_score,
)

from ppcls.cli.eval import main
from ppcls.cli.export import main as export
from ppcls.config import DataConfig
from ppcls.data.class_names import ClassNames, read_class_names
from ppcls.data.class_subsets import read_classes
from ppcls.data.dataset import Dataset
from ppcls.data.files import Files
from ppcls.data.open import open_split
from ppcls.data.valid_labels import with_valid_labels
from ppcls.errors import ConfigError, DataError
from ppcls.evaluation import html
from ppcls.evaluation.evaluate import Evaluation, evaluate
from ppcls.evaluation.metrics import (
    calibration,
    class_scores,
    confusion,
    count_classes,
    fill_samples,
    main_confusions,
    sample_type,
    top_classes,
)
from ppcls.evaluation.plots import LONGEST_NAME, draw_confusion, short_names
from ppcls.evaluation.report import thumbnail, worst_mistakes, write_report
from ppcls.inference.predictions import softmax
from ppcls.preprocessing import Preprocessing, at_size

PREPROCESSING = Preprocessing(8, 8, "bilinear", False, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
IMAGENET = read_class_names("imagenet1k", 1000)
GOLDEN = json.loads((ROOT / "tests/golden/subsets.json").read_text())


@pytest.fixture(scope="module")
def drawn():
    """Logits and labels of 12 classes: the last has no image, the one before is never predicted."""
    random = np.random.RandomState(0)
    labels = random.randint(0, 11, 700)
    logits = random.normal(size=(700, 12)).astype(np.float32)
    logits[np.arange(700), labels] += 1.5
    logits[:, 10] -= 20
    samples = np.empty(700, sample_type(12))
    fill_samples(samples, logits, labels, np.arange(700))
    return logits, labels, samples


def as_evaluation(samples, num_classes):
    right = samples["best"] == samples["label"][:, None]
    top1, top5 = right[:, 0].mean(), right.any(axis=1).mean()
    counts = count_classes(np.eye(num_classes)[samples["best"][:, 0]], samples["label"])
    return Evaluation(top1, top5, samples["loss"].mean(), len(samples), [], 1.0, counts, samples)


def test_scores_equal_scikit_learns(drawn):
    logits, labels, samples = drawn
    predicted = logits.argmax(1)
    expected = precision_recall_fscore_support(labels, predicted, labels=range(12), zero_division=np.nan)
    scores = class_scores(count_classes(logits, labels))
    assert np.isnan(scores[10, 0]) and np.isnan(scores[11, 1])
    for own, theirs in zip(scores.T[:4], expected, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=1e-12)
    matrix = np.zeros((12, 12), int)
    true, wrongly, counts = confusion(samples).T
    matrix[true, wrongly] = counts
    np.testing.assert_array_equal(matrix, confusion_matrix(labels, predicted, labels=range(12)))


def test_calibration_equals_scikit_learns(drawn):
    logits, labels, samples = drawn
    confidence = samples["probability"][:, 0].astype(np.float64)
    np.testing.assert_allclose(confidence, softmax(logits).max(1), rtol=1e-6)
    correct = logits.argmax(1) == labels
    accuracy, mean = calibration_curve(correct, confidence, n_bins=15)
    table = calibration(samples)
    used = table[table[:, 0] > 0]
    assert 5 < len(used) < 15
    np.testing.assert_allclose(used[:, 1], mean)
    np.testing.assert_allclose(used[:, 2], accuracy)


def test_metrics_json_equals_scikit_learns(drawn, tmp_path):
    logits, labels, samples = drawn
    paths = [f"{index}.png" for index in range(700)]
    options = {"num_classes": 12, "classes": None, "title": "x", "about": {"model": "drawn"}}
    write_report(
        tmp_path, as_evaluation(samples, 12), Dataset.of_files(paths, labels), PREPROCESSING, **options
    )
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    predicted, probabilities = logits.argmax(1), softmax(logits)
    assert metrics["nll"] == pytest.approx(log_loss(labels, probabilities, labels=range(12)), rel=1e-9)
    assert metrics["macro_f1"] == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert metrics["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predicted))
    recall = recall_score(labels, predicted, labels=range(11), average=None)
    assert metrics["class_recall"] == [*recall, None]
    edges = np.linspace(0, 1, 16)
    confidence = probabilities.max(1)
    gaps = [
        abs((predicted == labels)[inside].mean() - confidence[inside].mean()) * inside.mean()
        for low, high in zip(edges, edges[1:], strict=False)
        if (inside := (confidence > low) & (confidence <= high)).any()
    ]
    assert metrics["ece"] == pytest.approx(sum(gaps), rel=1e-6)
    assert metrics["model"] == "drawn" and metrics["count"] == 700


def test_the_tables_hold_every_image_class_and_pair(drawn, tmp_path):
    logits, labels, samples = drawn
    paths = [f"a, {index}.png" for index in range(700)]
    names = [f'"{letter}",' for letter in "abcdefghijkl"]
    options = {"num_classes": 12, "classes": None, "title": "x", "about": {}}
    dataset = Dataset.of_files(paths, labels, ClassNames.of(names))
    write_report(tmp_path, as_evaluation(samples, 12), dataset, PREPROCESSING, **options)

    rows = read_csv(tmp_path / "predictions.csv")
    assert [row["file"] for row in rows] == paths
    assert [int(row["label"]) for row in rows] == labels.tolist()
    order = np.argsort(-logits, axis=1, kind="stable")
    for place in range(5):
        assert [int(row[f"class_{place + 1}"]) for row in rows] == order[:, place].tolist()
        own = [float(row[f"probability_{place + 1}"]) for row in rows]
        np.testing.assert_allclose(own, -np.sort(-softmax(logits), axis=1)[:, place], rtol=1e-5)
    np.testing.assert_allclose([float(row["loss"]) for row in rows], samples["loss"], rtol=1e-5)

    rows = read_csv(tmp_path / "per_class.csv")
    assert [row["name"] for row in rows] == names
    assert rows[10]["precision"] == "" and rows[11]["recall"] == rows[11]["recall_high"] == ""
    assert float(rows[4]["recall_low"]) < float(rows[4]["recall"]) < float(rows[4]["recall_high"])
    assert [int(row["support"]) for row in rows] == np.bincount(labels, minlength=12).tolist()
    assert float(rows[4]["recall"]) == pytest.approx((logits.argmax(1) == 4)[labels == 4].mean(), abs=5e-5)

    rows = read_csv(tmp_path / "confusion.csv")
    assert sum(int(row["count"]) for row in rows) == 700
    assert all(int(row["count"]) > 0 for row in rows)
    page = (tmp_path / "index.html").read_text()
    assert page.count("no picture") == 48  # these files don't exist


def read_csv(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_worst_errors_are_wrong_and_the_worst_first(drawn):
    _, _, samples = drawn
    worst = worst_mistakes(samples)
    wrong = samples[samples["best"][:, 0] != samples["label"]]
    assert len(worst) == 48
    assert worst["loss"].tolist() == sorted(wrong["loss"], reverse=True)[:48]


def test_the_likeliest_of_equals_are_the_lower_classes():
    logits = np.array([[1, 3, 3, 0, 3], [2, 2, 2, 2, 2], [-1e5, -1e4, -1e3, -1e6, -np.inf]], np.float32)
    assert top_classes(logits, 3).tolist() == [[1, 2, 4], [0, 1, 2], [2, 1, 0]]
    assert logits[0].tolist() == [1, 3, 3, 0, 3]


def test_the_most_frequent_confusion_comes_first():
    triples = np.array([[0, 0, 9], [0, 1, 2], [1, 0, 5], [2, 0, 2]])
    assert main_confusions(triples).tolist() == [[1, 0, 5], [0, 1, 2], [2, 0, 2]]


# What the evaluation sees: pictures that hold their own number, and an engine that looks up its logits.


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    """COUNT pictures under the names of ImageNet's validation images."""
    folder = tmp_path_factory.mktemp("numbered")
    paths = [str(folder / f"ILSVRC2012_val_{number:08d}.JPEG") for number in range(1, COUNT + 1)]
    for index, path in enumerate(paths):
        pixel = (0, index // 256, index % 256)  # blue, green, red
        Path(path).write_bytes(cv2.imencode(".png", np.full((8, 8, 3), pixel, np.uint8))[1].tobytes())
    return paths


def look_up(logits):
    def run(images):
        red, green = np.rint(255 * images[:, :2, 0, 0]).astype(int).T
        return logits[green * 256 + red]

    return run


def judge(logits, dataset, output="logits", num_workers=2, **options):
    own = {"num_classes": 1000, "preprocessing": PREPROCESSING, "batch_size": 7}
    predictor = predictor_of(look_up(logits), output=output, num_workers=num_workers, **own)
    return evaluate(predictor, dataset, **options)


def test_real_labels_give_timms_accuracy(numbered, tmp_path):
    golden = GOLDEN["real"]
    (tmp_path / "real.json").write_text(json.dumps(golden["labels"]))
    first = np.array([row[0] if row else 0 for row in golden["labels"]])
    dataset = with_valid_labels(Dataset.of_files(numbered, first), str(tmp_path / "real.json"), 1000)
    result = judge(draw_logits(first, seed=0), dataset, keep_samples=True)
    assert result.count == sum(map(bool, golden["labels"])) < COUNT
    assert 100 * result.top1 == pytest.approx(golden["top1"], abs=1e-9)
    assert 100 * result.top5 == pytest.approx(golden["top5"], abs=1e-9)
    valid = [row for row in golden["labels"] if row]
    assert all(label in row for label, row in zip(result.samples["label"], valid, strict=True))


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("name", SETS)
def test_subsets_give_timms_accuracy(numbered, name, inside):
    """inside: an engine with the softmax inside."""
    golden = GOLDEN[f"imagenet-{name}"]
    classes = read_classes(f"imagenet-{name}", 1000, None)
    assert [IMAGENET.folders[label] for label in classes] == golden["synsets"]
    labels = classes[draw_places(COUNT, SETS[name])]
    logits = draw_logits(labels, SETS[name])
    outputs = softmax(logits).astype(np.float32) if inside else logits
    output = "probabilities" if inside else "logits"
    dataset = Dataset.of_files(numbered, labels)
    result = judge(outputs, dataset, output, classes=classes, keep_samples=True)
    assert 100 * result.top1 == pytest.approx(golden["top1"], abs=1e-4)
    assert 100 * result.top5 == pytest.approx(golden["top5"], abs=1e-4)
    assert result.loss == pytest.approx(golden["loss"], rel=1e-5)
    assert np.isin(result.samples["best"], classes).all()
    assert judge(outputs, dataset, output).top1 < result.top1


def test_a_label_outside_the_classes_is_an_error(numbered):
    dataset = Dataset.of_files(numbered[:3], np.array([6, 7, 11]))
    with pytest.raises(DataError, match=r"1 of 3 .*00000002\.JPEG.*Received: 7"):
        judge(draw_logits(np.zeros(3, int), 0), dataset, classes=read_classes("imagenet-a", 1000, None))


def test_classes_from_a_file(tmp_path):
    file = tmp_path / "classes.txt"
    file.write_text("n01443537\n\n0\n999\n")
    assert read_classes(str(file), 1000, IMAGENET).tolist() == [0, 1, 999]
    names = ClassNames.of(["2", "1", "0"])  # a folder's name comes before a number
    file.write_text("0\n")
    assert read_classes(str(file), 3, names).tolist() == [2]
    for text, words in {
        "5\n": "classes.txt, line 1.*'5'",
        "1\n1\n": "classes.txt, line 2.*'1'",
        "\n": "classes.txt",
    }.items():
        file.write_text(text)
        with pytest.raises(DataError, match=words):
            read_classes(str(file), 3, None)
    with pytest.raises(DataError, match="imagenet-b.*imagenet-a.*imagenet-r"):
        read_classes("imagenet-b", 1000, None)
    with pytest.raises(ConfigError, match="imagenet-a.*model.num_classes 10"):
        read_classes("imagenet-a", 10, None)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ('{"b.png": [0]}', "a.png"),
        ('{"a.png": [3]}', r"a.png.* 2.*\[3\]"),
        ('{"a.png": 1}', "a.png.*Received: 1"),
        ('{"a.png": []}', "1 images"),
        ('"a.png"', "Received: 'a.png'"),
        ("[[", "JSON"),
    ],
)
def test_valid_labels_of_another_kind_are_an_error(tmp_path, values, words):
    (tmp_path / "labels.json").write_text(values)
    with pytest.raises(DataError, match=rf"labels\.json.*{words}|{words}.*labels\.json"):
        with_valid_labels(Dataset.of_files(["x/a.png"], np.array([0])), str(tmp_path / "labels.json"), 3)


def test_valid_labels_by_file_name(tmp_path):
    (tmp_path / "labels.json").write_text('{"a.png": [2, 0], "b.png": [], "c.png": [1]}')
    dataset = Dataset(Files(["x/a.png", "b.png", "c.png"], "list", np.array([1, 2, 4])), np.zeros(3, int))
    kept = with_valid_labels(dataset, str(tmp_path / "labels.json"), 3)
    assert [kept.name(index) for index in range(len(kept))] == ["x/a.png", "c.png"]
    assert kept.labels.tolist() == [[0, 2], [1, 1]]
    assert kept.where(1) == "c.png (list, line 4)"


def test_folders_with_numbers_are_classes_by_number(numbered, tmp_path):
    """ImageNet-V2's: sorted as text, 10 comes before 2."""
    for label in (0, 2, 10, 999):
        (tmp_path / str(label)).mkdir()
        (tmp_path / str(label) / "a.png").write_bytes(Path(numbered[0]).read_bytes())
    data = DataConfig(eval_root=str(tmp_path))
    dataset = open_split(data, "eval", num_classes=1000, class_names=IMAGENET)
    numbers = [int(Path(dataset.name(index)).parent.name) for index in range(len(dataset))]
    assert numbers == dataset.labels.tolist()
    assert sorted(dataset.labels.tolist()) == [0, 2, 10, 999]
    (tmp_path / "1000").mkdir()
    with pytest.raises(DataError, match=r"1000 classes.*n01440764"):
        open_split(data, "eval", num_classes=1000, class_names=IMAGENET)


def test_memory_grows_by_the_rows_alone(numbered):
    """Peak memory with the rows kept, less that without: a few times the rows, nothing else."""
    logits = draw_logits(np.zeros(COUNT, int), 0)

    def peak(count, keep):
        dataset = Dataset.of_files(numbered[:1] * count, np.zeros(count, np.int64))
        tracemalloc.start()
        judge(logits, dataset, keep_samples=keep, num_workers=1)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(100, True)  # what is loaded once
    extra = {count: peak(count, True) - peak(count, False) for count in (300, 1500)}
    assert sample_type(1000).itemsize == 60
    assert extra[1500] - extra[300] < 4 * 60 * 1200


def test_short_names_tell_classes_apart():
    names = short_names(["tench, Tinca tinca", "crane", "ox", "crane", "猫", "x" * 99, "$\\frac$"])
    assert names == [
        "tench",
        "crane (1)",
        "ox",
        "crane (3)",
        "class 4",
        "x" * (LONGEST_NAME - 1) + "…",
        "$\\frac$",
    ]
    draw_confusion(np.array([[0, 6, 3], [6, 6, 1]]), np.arange(7), names, dark=True)
    assert len(set(short_names(IMAGENET.names))) == 1000


def test_no_text_becomes_html():
    texts = [f"<i title='{number}'>\"&lt;" for number in range(18)]
    left = iter(texts)
    cells, shown = [next(left) for _ in range(4)], [html.Figure(b"", next(left), [], next(left))]
    parts = [
        html.paragraph(next(left)),
        html.lead(next(left)),
        html.figures([(html.picture(b"", b"", next(left)), next(left))]),
        html.plain_table(cells[:1], [cells[1:3]]),
        html.gallery(shown),
        html.table([html.Column(next(left), is_number=False)], [cells[3:]], next(left), 0),
    ]
    title, *others = left
    page = html.page(title, {others[0]: others[1]}, {others[2]: others[3]}, [(others[4], "".join(parts))])
    seen, tags = set(), set()

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs):
            tags.add(tag)
            seen.update(value for _, value in attrs)

        def handle_data(self, data):
            seen.update([data, *data.split(": ")])

    Reader().feed(page)
    assert "i" not in tags and set(texts) <= seen


@pytest.mark.parametrize("num_classes", [2, 31])
def test_a_network_without_errors_has_a_report_too(tmp_path, num_classes):
    logits = 9 * np.eye(num_classes, dtype=np.float32)
    samples = np.empty(num_classes, sample_type(num_classes))
    fill_samples(samples, logits, np.arange(num_classes), np.arange(num_classes))
    dataset = Dataset.of_files([f"{index}.png" for index in range(num_classes)], np.arange(num_classes))
    options = {"num_classes": num_classes, "classes": None, "title": "x", "about": {}}
    write_report(tmp_path, as_evaluation(samples, num_classes), dataset, PREPROCESSING, **options)
    assert "0 of 0 errors" in (tmp_path / "index.html").read_text()


def test_a_thumbnail_is_what_the_network_saw(tmp_path):
    image = np.full((40, 400, 3), 255, np.uint8)
    image[:, 180:220] = (0, 0, 200)
    cv2.imwrite(str(tmp_path / "a.png"), image)
    dataset = Dataset.of_files([str(tmp_path / "a.png")])
    jpeg = thumbnail(dataset, 0, Preprocessing(400, 400, "bilinear", False, (0,) * 3, (1,) * 3))
    pixels = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert pixels.shape == (160, 160, 3)
    np.testing.assert_allclose(pixels[80, 80], (0, 0, 200), atol=6)
    (tmp_path / "a.png").write_text("no image any more")
    assert thumbnail(dataset, 0, PREPROCESSING) is None


def test_another_size_keeps_the_ratio():
    preprocessing = Preprocessing(256, 224, "bilinear", False, (0,) * 3, (1,) * 3)
    assert [at_size(preprocessing, size).resize_short for size in (224, 256, 288, 320)] == [
        256,
        293,
        329,
        366,
    ]
    assert at_size(Preprocessing(320, 320, "bilinear", False, (0,) * 3, (1,) * 3), 225).resize_short == 225


# The tool, on a network with drawn weights.


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A config, 23 pictures of six classes, and an export."""
    folder = tmp_path_factory.mktemp("report")
    write_config(folder, num_classes=6, short=36, crop=32, gain=20, **draw_labelled(folder, ("png",)))
    return folder


def evaluate_here(folder, *options):
    return main(["-c", str(folder / "config.yaml"), "--engine", "eager", *map(str, options)])


@pytest.fixture(scope="module")
def own_report(folder):
    assert evaluate_here(folder, "--report", folder / "one") == 0
    return folder / "one"


def test_eval_writes_a_report(folder, own_report):
    names = {"index.html", "metrics.json", "per_class.csv", "confusion.csv", "predictions.csv"}
    assert {path.name for path in own_report.iterdir()} == names
    metrics = json.loads((own_report / "metrics.json").read_text())
    plain = json.loads((folder / "output" / "metrics.json").read_text())
    assert plain["top1"] == metrics["top1"] and plain["loss"] == metrics["nll"]
    rows = read_csv(own_report / "predictions.csv")
    assert np.mean([row["label"] == row["class_1"] for row in rows]) == metrics["top1"]
    page = (own_report / "index.html").read_text()
    assert "class a" in page and page.count("data:image/jpeg") == sum(
        r["label"] != r["class_1"] for r in rows
    )


def assert_same_reports(one, other):
    for name in ("per_class.csv", "confusion.csv"):
        assert (one / name).read_text() == (other / name).read_text()
    first, second = read_csv(one / "predictions.csv"), read_csv(other / "predictions.csv")
    assert len(first) == len(second) == 23
    for row, same in zip(first, second, strict=True):
        for key, value in row.items():
            if key == "loss" or key.startswith("probability"):
                assert float(same[key]) == pytest.approx(float(value), rel=1e-3, abs=1e-6)
            else:
                assert same[key] == value
    values = [json.loads((folder / "metrics.json").read_text()) for folder in (one, other)]
    for key in ("top1", "count", "nll", "ece", "macro_f1", "balanced_accuracy"):
        assert values[1][key] == pytest.approx(values[0][key], rel=1e-4)


def test_two_ranks_report_as_one(folder, own_report, tmp_path):
    options = ["-c", folder / "config.yaml", "--engine", "eager", "--report", tmp_path / "two"]
    run = run_tool("eval", *options, launch=on_two_ranks(tmp_path / "log"))
    assert run.returncode == 0, run.stdout + run.stderr
    assert_same_reports(own_report, tmp_path / "two")


def test_an_export_reports_as_its_checkpoint(folder, own_report, tmp_path):
    exported = ["--output", str(tmp_path / "exported"), "--formats", "paddle"]
    assert export(["-c", str(folder / "config.yaml"), *exported]) == 0
    data = [f"data.eval_root={folder}", f"data.eval_list={folder / 'val_list.txt'}", f"output_dir={tmp_path}"]
    options = [part for item in data for part in ("-o", item)]
    options += ["--exported", str(tmp_path / "exported"), "--engine", "paddle"]
    assert main([*options, "--report", str(tmp_path / "report")]) == 0
    assert_same_reports(own_report, tmp_path / "report")


def test_eval_with_valid_labels_and_with_classes(folder, own_report, tmp_path):
    """Where every prediction is valid, all are right; what is not among the classes is not predicted."""
    rows = read_csv(own_report / "predictions.csv")
    valid = {row["file"].rsplit("/", 1)[1]: [int(row["class_1"]), 0] for row in rows}
    valid["5.png"] = []
    (tmp_path / "labels.json").write_text(json.dumps(valid))
    options = ["-o", f"output_dir={tmp_path}", "--report", tmp_path / "report"]
    assert evaluate_here(folder, "--labels", tmp_path / "labels.json", *options) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert (metrics["top1"], metrics["count"]) == (1.0, 22)
    assert (metrics["labels"], metrics["without_valid_label"]) == (str(tmp_path / "labels.json"), 1)

    (tmp_path / "list.txt").write_text("0.png 0\n1.png 1\n2.png 2\n")
    (tmp_path / "classes.txt").write_text("0\nclass b\n2\n")
    options += ["-o", f"data.eval_list={tmp_path / 'list.txt'}", "--classes", tmp_path / "classes.txt"]
    assert evaluate_here(folder, *options) == 0
    rows = read_csv(tmp_path / "report" / "predictions.csv")
    assert all({row[f"class_{n}"] for n in (1, 2, 3)} == {"0", "1", "2"} for row in rows)
    assert [row["name"] for row in read_csv(tmp_path / "report" / "per_class.csv")] == [
        f"class {letter}" for letter in "abc"
    ]


def test_sizes_are_evaluations_of_each_size(folder, tmp_path):
    assert evaluate_here(folder, "--sizes", 40, 32, 40, "-o", f"output_dir={tmp_path}") == 0
    small, large = json.loads((tmp_path / "sizes.json").read_text())
    assert (small["crop_size"], small["resize_short"]) == (32, 36)
    assert (large["crop_size"], large["resize_short"]) == (40, 45)
    size = ["-o", "data.preprocessing.crop_size=40", "-o", "data.preprocessing.resize_short=45"]
    assert evaluate_here(folder, *size, "-o", f"output_dir={tmp_path}") == 0
    plain = json.loads((tmp_path / "metrics.json").read_text())
    assert (large["top1"], large["loss"]) == (plain["top1"], plain["loss"])
    assert large["loss"] != small["loss"]
    picture = cv2.imread(str(tmp_path / "sizes.png"))
    assert min(picture.shape[:2]) > 300


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--report", "x", "--sizes", "32"], "--report.*--sizes"),
        (["--labels", "x", "--classes", "imagenet-a"], "--labels.*--classes"),
        (["--sizes", "32", "0"], "--sizes.*Received: 0"),
        (["--classes", "imagenet-a"], "model.num_classes 6"),
    ],
)
def test_options_that_exclude_each_other(folder, options, words):
    with pytest.raises(ConfigError, match=words):
        evaluate_here(folder, *options)
