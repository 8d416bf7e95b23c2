"""Accuracy and loss against scikit-learn and plain arithmetic, whatever the batches and the ranks."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from helpers import predictor_of
from sklearn.metrics import balanced_accuracy_score, f1_score, log_loss, recall_score, top_k_accuracy_score

from ppcls.data.dataset import Dataset
from ppcls.errors import DataError, PpclsError
from ppcls.evaluation.evaluate import describe_each, evaluate
from ppcls.evaluation.metrics import batch_sums, label_ranks, sample_losses
from ppcls.inference.predictions import softmax
from ppcls.preprocessing import Preprocessing

PREPROCESSING = Preprocessing(8, 8, "bilinear", False, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def test_metrics_equal_scikit_learns():
    random = np.random.RandomState(0)
    logits = random.normal(size=(500, 12)).astype(np.float32) * 3
    labels = random.randint(0, 12, 500)
    count, top1, top5, loss = batch_sums(logits, labels)
    assert count == 500
    for k, correct in ((1, top1), (5, top5)):
        assert correct / count == top_k_accuracy_score(labels, logits, k=k, labels=range(12))
    assert loss / count == pytest.approx(log_loss(labels, softmax(logits), labels=range(12)), rel=1e-12)


def test_ties_go_to_the_lower_class():
    logits = np.zeros((3, 4), np.float32)
    assert label_ranks(logits, np.array([0, 1, 3])).tolist() == [0, 1, 3]
    assert logits.argmax(1).tolist() == [0, 0, 0]


def test_losses_do_not_overflow():
    logits = np.array([[1e4, 0], [0, 1e4]], np.float32)
    assert sample_losses(logits, np.array([0, 0])).tolist() == [0, 1e4]


@pytest.fixture
def brightness(tmp_path):
    """23 pictures whose brightness is their label."""
    paths, labels = [], np.arange(23) % 7
    for index, label in enumerate(labels):
        paths.append(str(tmp_path / f"{index:02d}.png"))
        cv2.imwrite(paths[-1], np.full((8, 8, 3), label * 20, np.uint8))
    return Dataset.of_files(paths, labels.astype(np.int64))


def nearest_brightness(images):
    """Logits that are right but for brightness 60, which is taken for class 4."""
    value = images.mean(axis=(1, 2, 3)) * 255 / 20
    value = np.where(np.abs(value - 3) < 0.01, 4.0, value)
    return -np.abs(value[:, None] - np.arange(7)).astype(np.float32)


def run(dataset, num_classes=7, **options):
    """Evaluate. options: `run` and `streams` of the engine, `batch_size` of the predictor; all others are
    the evaluation's."""
    functions = [options.pop("run", nearest_brightness)] * options.pop("streams", 1)
    own = {"preprocessing": PREPROCESSING, "batch_size": options.pop("batch_size", 5)}
    predictor = predictor_of(*functions, num_classes=num_classes, **own)
    return evaluate(predictor, dataset, **options)


@pytest.mark.filterwarnings("ignore:y_pred contains classes")
@pytest.mark.parametrize("missing", [(), (2,), (2, 4)], ids=str)
def test_measures_of_classes_equal_scikit_learns(brightness, missing):
    """Class 3 is never predicted, class 4 in place of it, with or without images of its own."""
    kept = np.flatnonzero(~np.isin(brightness.labels, missing))
    dataset = brightness.select(kept.tolist())
    result = run(dataset, batch_size=4)
    predicted = np.where(dataset.labels == 3, 4, dataset.labels)
    values = result.to_dict()
    assert values["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(dataset.labels, predicted))
    assert values["macro_f1"] == pytest.approx(f1_score(dataset.labels, predicted, average="macro"))
    expected = recall_score(dataset.labels, predicted, labels=range(7), average=None, zero_division=np.nan)
    assert values["class_recall"] == [None if np.isnan(value) else value for value in expected]


def test_measures_of_classes_leave_out_what_cannot_be_predicted_or_read(brightness):
    dataset = brightness.select(np.flatnonzero(np.isin(brightness.labels, (1, 3))).tolist())
    open(dataset.name(0), "w").close()
    values = run(dataset, classes=np.array([1, 3, 5]), on_error="skip").to_dict()
    assert values["class_recall"] == [None, 1, None, 0 if dataset.labels[0] == 3 else 1, None, None, None]
    assert values["balanced_accuracy"] == 1


def test_the_recall_of_each_class_in_a_line():
    assert describe_each("recall", [0.5, None, 1.0], ["cat", "dog", "bird"]).endswith(
        ": cat 0.5000, bird 1.0000"
    )
    assert describe_each("recall", [0.5, None, 1.0], None).endswith(": 0 0.5000, 2 1.0000")


@pytest.mark.parametrize("streams", [1, 3])
@pytest.mark.parametrize("batch_size", [1, 5, 23, 100])
def test_counts_do_not_depend_on_the_batches(brightness, batch_size, streams):
    result = run(brightness, batch_size=batch_size, streams=streams)
    wrong = int((brightness.labels == 3).sum())
    assert (result.count, result.top1, result.top5) == (23, (23 - wrong) / 23, 1.0)
    assert result.loss == pytest.approx(run(brightness).loss, rel=1e-9)


def test_an_unreadable_image_stops_the_evaluation(brightness):
    open(brightness.name(3), "w").close()
    with pytest.raises(DataError, match=r"03\.png"):
        run(brightness)


def test_skipped_images_leave_the_denominator_openly(brightness):
    open(brightness.name(3), "w").close()  # the one of label 3 that would be wrong
    result = run(brightness, on_error="skip")
    assert result.count == 22
    assert result.top1 == 20 / 22
    values = result.to_dict()
    assert values["skipped"] == 1
    (skipped,) = values["skipped_files"]
    assert skipped["file"] == brightness.name(3) and skipped["reason"]


def test_nothing_readable_is_an_error(brightness):
    for index in range(len(brightness)):
        open(brightness.name(index), "w").close()
    with pytest.raises(DataError, match=r"23 .*00\.png"):
        run(brightness, on_error="skip")


def test_values_that_are_not_finite_are_an_error(brightness):
    with pytest.raises(PpclsError, match="finite"):
        run(brightness, run=lambda images: np.full((len(images), 7), np.nan, np.float32))


def test_top5_is_left_out_below_five_classes(brightness):
    for count in (4, 5):
        dataset = replace(brightness, labels=brightness.labels % count)
        result = run(dataset, count, run=lambda images, n=count: nearest_brightness(images)[:, :n])
        assert ("top5" in result.to_dict()) == (count == 5)
