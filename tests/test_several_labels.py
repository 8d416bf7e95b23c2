"""Training and evaluation with several labels of an image: losses and metrics against plain formulas,
Paddle's own losses of dense targets, and scikit-learn."""

import json

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from helpers import predictor_of, write_config
from sklearn.metrics import average_precision_score, f1_score, log_loss, recall_score

from ppcls.cli import eval as evaluate_cli
from ppcls.cli import export, infer, train
from ppcls.config_files import load_config
from ppcls.data.dataset import Dataset
from ppcls.data.label_sets import LabelSets
from ppcls.data.open import open_path, open_split
from ppcls.data.valid_labels import with_valid_labels
from ppcls.errors import ConfigError, DataError
from ppcls.evaluation.evaluate import evaluate
from ppcls.evaluation.label_metrics import average_precision, judge
from ppcls.evaluation.report import write_report
from ppcls.inference.load import load
from ppcls.inference.predictions import logits_of, probabilities_of, sigmoid
from ppcls.preprocessing import Preprocessing
from ppcls.training.batches import train_batches
from ppcls.training.checkpoint import find_state, read_state
from ppcls.training.same_run import _fields
from ppcls.training.step import binary_cross_entropy, cross_entropy

PREPROCESSING = Preprocessing(8, 8, "bilinear", False, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
CLASSES = 6
ROWS = [[0, 2], [1], [0, 1, 5], [4], [2, 4], [5]]
SETS = LabelSets.of_sizes(sum(ROWS, []), [len(row) for row in ROWS])
LABELS, SHARES = SETS.targets(np.arange(len(ROWS)))
DENSE = np.zeros((len(ROWS), CLASSES), np.float32)  # 1 for each label
for number, row in enumerate(ROWS):
    DENSE[number, row] = 1
TARGETS = DENSE / DENSE.sum(1, keepdims=True)
LOGITS = (np.random.RandomState(0).normal(size=DENSE.shape) * 2).astype(np.float32)
SMOOTHINGS = [0.0, 0.1]


def value_and_gradient(loss, *arguments):
    logits = paddle.to_tensor(LOGITS, stop_gradient=False)
    value = loss(logits, *arguments)
    value.backward()
    return value.item(), logits.grad.numpy()


def softmax_of(logits):
    exponentials = np.exp(logits.astype(np.float64))
    return exponentials / exponentials.sum(1, keepdims=True)


# Losses


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_softmax_with_parts_of_1_is_the_loss_of_dense_targets(smoothing):
    labels, shares = paddle.to_tensor(LABELS), paddle.to_tensor(SHARES)
    value, gradient = value_and_gradient(cross_entropy, labels, smoothing, None, shares)
    targets = (1 - smoothing) * TARGETS + smoothing / CLASSES
    dense = F.cross_entropy(paddle.to_tensor(LOGITS), paddle.to_tensor(targets), soft_label=True)
    assert value == pytest.approx(dense.item(), rel=1e-6)
    np.testing.assert_allclose(gradient, (softmax_of(LOGITS) - targets) / len(ROWS), atol=1e-7)


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_weights_of_classes_weigh_each_label(smoothing):
    weights = np.array([1, 2, 0.5, 1, 4, 1], np.float32)
    arguments = (smoothing, paddle.to_tensor(weights), paddle.to_tensor(SHARES))
    value, gradient = value_and_gradient(cross_entropy, paddle.to_tensor(LABELS), *arguments)
    own = (TARGETS * weights).sum(1, keepdims=True)
    targets = (1 - smoothing) * TARGETS * weights + smoothing * own / CLASSES
    log_p = np.log(softmax_of(LOGITS))
    assert value == pytest.approx(-(targets * log_p).sum() / len(ROWS), rel=1e-6)
    np.testing.assert_allclose(gradient, (own * softmax_of(LOGITS) - targets) / len(ROWS), atol=1e-7)


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_the_binary_loss_is_paddles_of_dense_targets(smoothing):
    """Smoothing is that of timm's BinaryCrossEntropy for one label: 1 - s + s / C, s / C for the others."""
    arguments = paddle.to_tensor(LABELS), smoothing, paddle.to_tensor((SHARES > 0).astype(np.float32))
    value, gradient = value_and_gradient(binary_cross_entropy, *arguments)
    targets = (1 - smoothing) * DENSE + smoothing * DENSE.sum(1, keepdims=True) / CLASSES
    dense = F.binary_cross_entropy_with_logits(paddle.to_tensor(LOGITS), paddle.to_tensor(targets))
    assert value == pytest.approx(dense.item(), rel=1e-6)
    np.testing.assert_allclose(gradient, (sigmoid(LOGITS) - targets) / DENSE.size, atol=1e-7)


def test_the_binary_loss_of_single_labels_and_of_large_logits():
    labels, logits = np.array([0, 3, 5]), np.array([[300, -300, 0, 5, -5, 40]] * 3, np.float32)
    targets = np.where(np.eye(CLASSES)[labels], 0.9 + 0.1 / CLASSES, 0.1 / CLASSES).astype(np.float32)
    own = binary_cross_entropy(paddle.to_tensor(logits), paddle.to_tensor(labels), 0.1)
    dense = F.binary_cross_entropy_with_logits(paddle.to_tensor(logits), paddle.to_tensor(targets))
    assert own.item() == pytest.approx(dense.item(), rel=1e-6)


def test_a_label_that_is_there_twice_counts_twice():
    """As in mixed images that share a label."""
    twice = cross_entropy(
        paddle.to_tensor(LOGITS[:1]), paddle.to_tensor([[2, 2]]), 0.0, None, paddle.to_tensor([[0.25, 0.75]])
    )
    assert twice.item() == pytest.approx(-np.log(softmax_of(LOGITS[:1])[0, 2]), rel=1e-6)


# Metrics


@pytest.mark.parametrize("ties", [False, True])
def test_average_precision_is_scikit_learns(ties):
    """Also of equal scores, and of a class with no positive, with one or with positives alone."""
    random = np.random.RandomState(1)
    scores = random.normal(size=(200, 8)).astype(np.float32)
    scores = np.round(scores * 2) / 2 if ties else scores
    is_positive = random.uniform(size=scores.shape) < np.linspace(0.05, 0.9, 8)
    is_positive[:, 0], is_positive[:, 1] = False, True
    is_positive[:, 2] = np.arange(200) == 7
    found = average_precision(scores, is_positive)
    assert np.isnan(found[0])
    for label in range(1, 8):
        expected = average_precision_score(is_positive[:, label], scores[:, label])
        assert found[label] == pytest.approx(expected, rel=1e-12)


def test_a_softmax_says_as_many_classes_as_an_image_has_labels():
    logits = np.array([[3, 4, 5, 0, 0, 0], [0, 0, 1, 0, 2, 3]], np.float32)
    sets = LabelSets.of_sizes([0, 2, 4], [2, 1])
    result = judge(logits, *sets.targets(np.arange(2)), is_binary=False)
    assert result.truth.tolist() == [2, 4]
    support, chosen, hits = result.counts
    assert support.tolist() == [1, 0, 1, 0, 1, 0] and hits.tolist() == [0, 0, 1, 0, 0, 0]
    assert chosen.tolist() == [0, 1, 1, 0, 0, 1]
    log_p = np.log(softmax_of(logits))
    np.testing.assert_allclose(result.losses, [-(log_p[0, 0] + log_p[0, 2]) / 2, -log_p[1, 4]])


def predictor(activation="softmax", output="logits"):
    """A predictor whose outputs are the images' own numbers, as `pictures` has them."""

    def run(images):
        numbers = np.rint(images[:, 0, 0, 0] * 255).astype(int)
        logits = LOGITS[numbers % len(ROWS)] + np.float32(numbers[:, None] // len(ROWS)) / 4
        if output == "logits":
            return logits
        return probabilities_of(logits, activation).astype(np.float32)

    own = {"preprocessing": PREPROCESSING, "num_classes": CLASSES, "batch_size": 4}
    return predictor_of(run, **own, output=output, activation=activation)


@pytest.fixture
def pictures(tmp_path):
    """22 pictures of one colour each, with the labels of ROWS in turn, in a list."""
    import cv2

    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(22):
        cv2.imwrite(str(folder / f"{number:02}.png"), np.full((8, 8, 3), number, np.uint8))
    lines = [f"{number:02}.png {','.join(map(str, ROWS[number % 6]))}\n" for number in range(22)]
    (folder / "list.txt").write_text("".join(lines))
    (folder / "names.txt").write_text("".join(f"class {letter}\n" for letter in "abcdef"))
    return folder


def outputs_of(count=22):
    numbers = np.arange(count)
    return LOGITS[numbers % 6] + np.float32(numbers[:, None] // 6) / 4, DENSE[numbers % 6].astype(int)


def test_an_evaluation_of_a_softmax_counts_one_of_the_labels(pictures):
    dataset, (logits, dense) = open_path(pictures / "list.txt"), outputs_of()
    result = evaluate(predictor(), dataset, keep_samples=True)
    values = result.to_dict()
    best = np.argsort(-logits, axis=1, kind="stable")
    assert values["correct"] == "one of its labels" and "one of its labels" in result.top1_name
    assert values["top1"] == dense[np.arange(22), best[:, 0]].mean()
    assert values["top5"] == dense[np.arange(22)[:, None], best[:, :5]].any(1).mean()
    targets = dense / dense.sum(1, keepdims=True)
    assert values["loss"] == pytest.approx(-(targets * np.log(softmax_of(logits))).sum() / 22)
    said = np.zeros((22, CLASSES), int)
    for row, order in enumerate(best):
        said[row, order[: int(dense[row].sum())]] = 1
    expected = recall_score(dense, said, average=None, zero_division=np.nan)
    np.testing.assert_allclose(np.array(values["class_recall"], float), expected)
    assert values["macro_f1"] == pytest.approx(f1_score(dense, said, average="macro", zero_division=np.nan))
    assert "map" not in values
    np.testing.assert_allclose(result.samples["loss"].mean(), values["loss"])


def test_labels_of_a_file_take_the_place_of_several_in_a_list(pictures, tmp_path):
    dataset, least = open_path(pictures / "list.txt"), outputs_of()[0].argmin(axis=1).tolist()
    file = tmp_path / "valid.json"
    file.write_text(json.dumps({f"{number:02}.png": [label] for number, label in enumerate(least)}))
    values = evaluate(predictor(), with_valid_labels(dataset, str(file), CLASSES)).to_dict()
    assert values["top1"] == 0 and "correct" not in values


@pytest.mark.parametrize("output", ["logits", "probabilities"])
def test_an_evaluation_of_a_sigmoid_has_scikit_learns_mean_average_precision(pictures, output):
    dataset, (logits, dense) = open_path(pictures / "list.txt"), outputs_of()
    values = evaluate(predictor("sigmoid", output), dataset, keep_samples=True).to_dict()
    used = dense.any(0)
    expected = average_precision_score(dense[:, used], logits[:, used], average="macro")
    assert values["map"] == pytest.approx(expected, rel=1e-12)
    assert [value is None for value in values["average_precision"]] == (~used).tolist()
    said = logits >= 0
    expected = recall_score(dense, said, average=None, zero_division=np.nan)
    np.testing.assert_allclose(np.array(values["class_recall"], float), expected)
    parts = [log_loss(dense[:, c], sigmoid(logits)[:, c], labels=[0, 1]) for c in range(CLASSES)]
    assert values["loss"] == pytest.approx(np.mean(parts), rel=1e-5)


def test_an_evaluation_of_a_sigmoid_takes_single_labels_and_leaves_out_unreadable_images(pictures):
    labels = np.arange(22) % 6
    paths = [str(pictures / f"{number:02}.png") for number in range(22)]
    (pictures / "03.png").write_bytes(b"no image")
    result = evaluate(predictor("sigmoid"), Dataset.of_files(paths, labels), on_error="skip")
    kept = np.arange(22) != 3
    expected = average_precision_score(np.eye(6)[labels][kept], outputs_of()[0][kept], average="macro")
    assert result.to_dict()["map"] == pytest.approx(expected, rel=1e-12) and result.count == 21


def test_what_a_sigmoid_cannot_be_measured_with_is_refused(pictures):
    paths = [str(pictures / f"{number:02}.png") for number in range(2)]
    any_right = Dataset.of_files(paths, np.array([[0, 1], [2, 2]]))
    with pytest.raises(ConfigError, match="--labels.*train.loss=binary"):
        evaluate(predictor("sigmoid"), any_right)
    with pytest.raises(ConfigError, match="--classes.*train.loss=binary"):
        evaluate(predictor("sigmoid"), open_path(pictures / "list.txt"), classes=np.arange(3))
    with pytest.raises(DataError, match="11 of 22 .*list.txt, line 2.*Received: 1"):
        evaluate(predictor(), open_path(pictures / "list.txt"), classes=np.array([0, 2, 3, 4]))


def test_more_unreadable_images_than_allowed_end_an_evaluation(pictures):
    for number in range(12):
        (pictures / f"{number:02}.png").write_bytes(b"no image")
    dataset = open_path(pictures / "list.txt")
    assert len(evaluate(predictor(), dataset, on_error="skip", max_unreadable=12).unreadable) == 12
    with pytest.raises(DataError, match=r"12 images .*data.max_unreadable=11: .*00.png.*09.png") as error:
        evaluate(predictor(), dataset, on_error="skip", max_unreadable=11)
    assert "10.png" not in str(error.value)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_the_report_knows_several_labels(pictures, tmp_path, activation):
    dataset = open_path(pictures / "list.txt")
    result = evaluate(predictor(activation), dataset, keep_samples=True)
    metrics = write_report(
        tmp_path / "report", result, dataset, PREPROCESSING, title="t", num_classes=6, classes=None, about={}
    )
    page = (tmp_path / "report/index.html").read_text()
    table = (tmp_path / "report/per_class.csv").read_text().splitlines()
    assert "the likeliest of them" in page and len(table) == 7
    assert ("average precision" in page) == ("map" in metrics) == (activation == "sigmoid")
    if activation == "sigmoid":
        assert table[0].endswith(",support,recall_low,recall_high,average_precision")
        assert table[1].endswith(f",{metrics['average_precision'][0]:.4f}") and table[4].endswith(",0,,,")


# Predictions


def test_a_sigmoid_returns_every_class_above_the_threshold(pictures):
    file, logits = str(pictures / "02.png"), outputs_of()[0][2]
    for output in ("logits", "probabilities"):
        model = predictor("sigmoid", output)
        for threshold in (0.5, 0.05, 0.999):
            model.threshold = threshold
            found = model(file)
            expected = [c for c in np.argsort(-logits) if sigmoid(logits)[c] >= threshold]
            assert list(found.class_ids) == expected
            np.testing.assert_allclose(found.probabilities, sigmoid(logits)[expected], rtol=1e-6)
    assert predictor("softmax").topk == 5 and len(predictor("softmax")(file).class_ids) == 5


def test_logits_come_back_from_probabilities():
    for activation in ("softmax", "sigmoid"):
        again = logits_of(probabilities_of(LOGITS, activation), activation)
        np.testing.assert_allclose(
            probabilities_of(again, activation), probabilities_of(LOGITS, activation), rtol=1e-9
        )
    ends = logits_of(np.array([[0, 1]], np.float32), "sigmoid")
    assert np.isfinite(ends).all() and ends[0, 0] < -80 and ends[0, 1] > 15


# Options


def config_of(folder, *overrides):
    return load_config(
        write_config(folder, 6, 8, 8), [f"data.class_names={folder / 'pictures/names.txt'}", *overrides]
    )


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["train.loss=binary", "train.class_weights=balanced"], "train.class_weights.*data.sampling"),
        (["train.best_by=map"], "train.best_by=map.*train.loss=binary"),
        (["data.max_unreadable=3"], "data.max_unreadable.*data.on_error=skip"),
        (["data.max_unreadable=-1", "data.on_error=skip"], "data.max_unreadable must be 0 or more"),
    ],
)
def test_options_that_do_not_go_together(pictures, tmp_path, overrides, words):
    with pytest.raises(ConfigError, match=words):
        config_of(tmp_path, *overrides)


def test_the_measure_of_a_binary_run_is_mean_average_precision(pictures, tmp_path):
    assert config_of(tmp_path).train.measure == "top1"
    assert config_of(tmp_path, "train.loss=binary").train.measure == "map"
    assert config_of(tmp_path, "train.loss=binary", "train.best_by=top1").train.measure == "top1"
    fields = [
        _fields(config_of(tmp_path, *options), {"preprocessing": {}})
        for options in ([], ["train.best_by=top1"])
    ]
    assert fields[0] == fields[1]  # a state of a version with the default top1 is resumed


def test_training_batches_have_targets_of_the_loss(pictures, tmp_path):
    options = [f"data.train_root={pictures}", f"data.train_list={pictures / 'list.txt'}"]
    for loss, mixup in (("softmax", 0), ("binary", 0), ("softmax", 1), ("binary", 1)):
        config = config_of(
            tmp_path, *options, f"train.loss={loss}", f"augment.mixup={mixup}", "data.batch_size=8"
        )
        dataset = open_split(config.data, "train", num_classes=6, class_names=None)
        for batch in train_batches(config, PREPROCESSING, dataset, epoch=0, num_workers=1):
            sums = batch.shares.sum(1)
            if loss == "softmax":
                np.testing.assert_allclose(sums, 1, rtol=1e-6)
            elif not mixup:
                assert sums.tolist() == [len(ROWS[index % 6]) for index in batch.indices]
            else:
                assert (sums >= 1 - 1e-6).all() and sums.max() > 1
            assert batch.labels.shape == batch.shares.shape == (8, 6 if mixup else 3)


# The whole way


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A binary run of two epochs on pictures with a red, a green or a blue half, or two of them."""
    import cv2

    folder = tmp_path_factory.mktemp("run")
    random, lines = np.random.RandomState(0), []
    for number in range(48):
        labels = sorted({number % 3, random.randint(3)})
        picture = random.randint(0, 80, (24, 24, 3))
        for label in labels:
            picture[8 * label : 8 * label + 8, :, label] += 170
        cv2.imwrite(str(folder / f"{number}.png"), picture.astype(np.uint8))
        lines.append(f"{number}.png {','.join(map(str, labels))}\n")
    (folder / "train.txt").write_text("".join(lines[:32]))
    (folder / "val.txt").write_text("".join(lines[32:]))
    (folder / "names.txt").write_text("top\nmiddle\nbottom\n")
    config = write_config(folder, 3, 24, 24)
    options = [f"data.{split}_root={folder}" for split in ("train", "eval")]
    options += [f"data.train_list={folder / 'train.txt'}", f"data.eval_list={folder / 'val.txt'}"]
    options += [f"data.class_names={folder / 'names.txt'}", "data.batch_size=8", "train.loss=binary"]
    options += ["train.epochs=2", "data.sampling=sqrt", "augment.cutmix=1", "train.label_smoothing=0.1"]
    options += ["train.ema_decay=0.5", "optim.name=adamw", "optim.lr=0.03", f"output_dir={folder / 'run'}"]
    assert train.main(["-c", str(config), *[word for option in options for word in ("-o", option)]]) == 0
    return folder


def test_a_binary_run_is_judged_and_described_by_mean_average_precision(run_folder, capsys):
    lines = [json.loads(line) for line in (run_folder / "run/metrics.jsonl").read_text().splitlines()]
    assert evaluate_cli.main([str(run_folder / "run"), "-o", f"output_dir={run_folder / 'eval'}"]) == 0
    metrics, said = json.loads((run_folder / "eval/metrics.json").read_text()), capsys.readouterr().out
    assert metrics["map"] == pytest.approx(max(line["eval_map"] for line in lines), abs=1e-6)
    assert f"mean average precision {metrics['map']:.4f}, top-1 (one of its labels)" in said
    assert "average precision of each class: top " in said and "eval_raw_map" in lines[0]
    assert np.mean(metrics["average_precision"]) == pytest.approx(metrics["map"])


def test_a_binary_network_is_exported_with_its_sigmoid(run_folder, capsys, tmp_path):
    """Its probabilities are the sigmoids of the network itself, with the sigmoid inside or outside."""
    pictures, run = [str(run_folder / f"{n}.png") for n in range(3)], str(run_folder / "run")
    assert infer.main([run, "-i", pictures[0], "--threshold", "0", "-o", f"output_dir={tmp_path}"]) == 0
    own = capsys.readouterr().out.splitlines()[-1]
    assert own.count(";") == 2
    for option in ([], ["--softmax"]):
        folder = str(tmp_path / f"export{len(option)}")
        assert export.main([run, "--output", folder, "--formats", "paddle", *option]) == 0
        description = (tmp_path / f"export{len(option)}/inference.yml").read_text()
        assert "activation: sigmoid" in description and "format_version: 2" in description
        capsys.readouterr()
        assert infer.main([folder, "-i", pictures[0], "--threshold", "0"]) == 0
        assert sorted(_numbers(capsys.readouterr().out)) == pytest.approx(sorted(_numbers(own)), abs=2e-4)
    found = load(tmp_path / "export1", "paddle", log=lambda line: None)
    found.threshold = 1.0
    assert found(pictures[0]).class_ids == () and found.activation == "sigmoid"


def _numbers(text):
    return [float(word.strip(";")) for word in text.splitlines()[-1].split() if word[0] in "01"]


def test_predictions_without_a_class_are_saved(run_folder, tmp_path, capsys):
    run, output = str(run_folder / "run"), tmp_path / "found.csv"
    command = [run, "-i", str(run_folder / "*.png"), "--output", str(output), "-o", f"output_dir={tmp_path}"]
    assert infer.main([*command, "--threshold", "1"]) == 0
    assert output.read_text().splitlines()[1] == f"{run_folder / '0.png'},,,,,"
    assert infer.main([*command[:2], str(run_folder / "0.png"), *command[5:], "--threshold", "1"]) == 0
    assert "no class above the threshold" in capsys.readouterr().out


def test_options_of_other_networks_are_refused(run_folder, tmp_path):
    output = ["-o", f"output_dir={tmp_path}"]
    picture = ["-i", str(run_folder / "0.png")]
    with pytest.raises(ConfigError, match="--topk 3.*--threshold"):
        infer.main([str(run_folder / "run"), *picture, "--topk", "3", *output])
    with pytest.raises(ConfigError, match="--threshold must be from 0 to 1. Received: 2"):
        infer.main([str(run_folder / "run"), *picture, "--threshold", "2", *output])
    with pytest.raises(ConfigError, match="--threshold is for .*train.loss=binary.*--topk"):
        infer.main([str(run_folder / "config.yaml"), *picture, "--threshold", "0.5", *output])


def test_unreadable_training_images_are_counted_through_a_resume(run_folder, tmp_path):
    for number in range(32):
        (tmp_path / f"{number}.png").write_bytes((run_folder / f"{number}.png").read_bytes())
    for number in (3, 11, 19):
        (tmp_path / f"{number}.png").write_bytes(b"no image")
    options = [str(run_folder / "run/train.yaml"), "-o", f"data.train_root={tmp_path}"]
    for option in (
        f"output_dir={tmp_path / 'run'}",
        "data.on_error=skip",
        "data.max_unreadable=3",
        "data.sampling=natural",
    ):
        options += ["-o", option]
    assert train.main([*options, "-o", "train.epochs=1", "-o", "optim.schedule=step"]) == 0
    more = [*options, "-o", "train.epochs=2", "-o", "optim.schedule=step", "--resume", "auto"]
    with pytest.raises(DataError, match="3 images .*data.max_unreadable=2: .*3.png.*11.png.*19.png"):
        train.main([*more, "-o", "data.max_unreadable=2"])
    (tmp_path / "3.png").write_bytes((run_folder / "3.png").read_bytes())  # its first failure counts
    (tmp_path / "4.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="4 images .*data.max_unreadable=3: .*3.png.*4.png.*11.png"):
        train.main(more)
    assert train.main([*more, "-o", "data.max_unreadable=4"]) == 0
    state = read_state(find_state("auto", tmp_path / "run", print))
    known = [item["index"] for item in state.header["progress"]["unreadable"]]
    assert sorted(known) == [3, 4, 11, 19]  # each once
