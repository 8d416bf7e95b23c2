"""Weights of the classes in the loss, against scikit-learn and the definition."""

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from sklearn.metrics import log_loss
from sklearn.utils.class_weight import compute_class_weight

from ppcls.data.class_weights import read_class_weights, resolve_class_weights
from ppcls.data.sampling import repeat_factors
from ppcls.errors import DataError
from ppcls.training.step import cross_entropy

LABELS = np.repeat(np.arange(4), [60, 25, 10, 5])


def log_p_of(logits):
    return F.log_softmax(paddle.to_tensor(logits)).numpy().astype(np.float64)


@pytest.fixture
def logits():
    return np.random.RandomState(0).normal(size=(100, 4)).astype(np.float32) * 2


def test_balanced_weights_are_scikit_learns():
    expected = compute_class_weight("balanced", classes=np.arange(4), y=LABELS)
    np.testing.assert_allclose(resolve_class_weights("balanced", LABELS, 4, None), expected, rtol=1e-12)


def test_a_class_without_an_image_changes_nothing_for_the_others():
    labels = np.where(LABELS >= 2, LABELS + 1, LABELS)
    found = resolve_class_weights("balanced", labels, 6, None)
    expected = compute_class_weight("balanced", classes=np.unique(labels), y=labels)
    np.testing.assert_allclose(found, [*expected[:2], 0, *expected[2:], 0], rtol=1e-12)


def test_sampling_and_weights_do_not_count_twice():
    """Together they give each class the same part of the loss, whichever share of it sampling has."""
    for sampling in ("sqrt", "balanced"):
        factors = repeat_factors(LABELS, sampling)
        weights = resolve_class_weights("balanced", LABELS, 4, factors)
        parts = np.bincount(LABELS, factors) * weights
        np.testing.assert_allclose(parts, 25, rtol=1e-12)


def test_weights_of_a_file_keep_the_scale_of_the_loss(tmp_path, logits):
    (tmp_path / "weights.txt").write_text("1\n2\n4\n8\n")
    weights = resolve_class_weights(str(tmp_path / "weights.txt"), LABELS, 4, None)
    np.testing.assert_allclose(weights / weights[0], [1, 2, 4, 8])
    assert weights[LABELS].mean() == pytest.approx(1, rel=1e-12)
    # Over all images, this is the mean that scikit-learn, Paddle and torch divide by the sum of the weights
    found = loss_of(logits, LABELS, weights)
    probabilities = np.exp(log_p_of(logits))
    expected = log_loss(
        LABELS, probabilities / probabilities.sum(1, keepdims=True), sample_weight=weights[LABELS]
    )
    assert found == pytest.approx(expected, rel=1e-5)
    own = F.cross_entropy(
        paddle.to_tensor(logits), paddle.to_tensor(LABELS), weight=paddle.to_tensor([1.0, 2, 4, 8])
    )
    assert found == pytest.approx(own.item(), rel=1e-5)


def loss_of(logits, labels, weights, smoothing=0.0, shares=None):
    labels, weights = paddle.to_tensor(labels), paddle.to_tensor(weights.astype(np.float32))
    shares = None if shares is None else paddle.to_tensor(shares)
    return cross_entropy(paddle.to_tensor(logits), labels, smoothing, weights, shares).item()


def test_the_loss_of_a_batch_is_the_mean_of_its_weighted_losses(logits):
    """Not divided by the batch's own weights: the loss of two halves is the mean of theirs."""
    weights = np.array([0.5, 1, 2, 4])
    picked = np.arange(90, 100)
    expected = -(weights[LABELS] * log_p_of(logits)[np.arange(100), LABELS])[picked].mean()
    assert loss_of(logits[picked], LABELS[picked], weights) == pytest.approx(expected, rel=1e-5)


def test_smoothing_leaves_an_images_weight(logits):
    weights = np.array([0.5, 1, 2, 4])
    log_p = log_p_of(logits)
    smoothed = 0.9 * log_p[np.arange(100), LABELS] + 0.1 * log_p.mean(1)
    expected = -(weights[LABELS] * smoothed).mean()
    assert loss_of(logits, LABELS, weights, 0.1) == pytest.approx(expected, rel=1e-5)


def test_a_mixed_image_has_the_weighted_losses_of_its_classes(logits):
    weights, other = np.array([0.5, 1, 2, 4]), LABELS[::-1].copy()
    labels, shares = np.stack([LABELS, other], axis=1), np.float32([[0.3, 0.7]] * len(LABELS))
    for smoothing in (0.0, 0.1):
        parts = [loss_of(logits, labels, weights, smoothing) for labels in (LABELS, other)]
        found = loss_of(logits, labels, weights, smoothing, shares)
        assert found == pytest.approx(0.3 * parts[0] + 0.7 * parts[1], rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_gradient_is_the_weighted_one(logits, smoothing):
    """Of an image: weight * (softmax - target) / N."""
    weights = np.array([0.5, 1, 2, 4])
    tensor = paddle.to_tensor(logits, stop_gradient=False)
    labels = paddle.to_tensor(LABELS)
    cross_entropy(tensor, labels, smoothing, paddle.to_tensor(weights.astype(np.float32))).backward()
    target = (1 - smoothing) * np.eye(4)[LABELS] + smoothing / 4
    expected = weights[LABELS][:, None] * (np.exp(log_p_of(logits)) - target) / 100
    np.testing.assert_allclose(tensor.grad.numpy(), expected, atol=1e-7)


@pytest.mark.parametrize(
    "content",
    [
        "1\n0.5\n\n2\n3e0\n",
        "\ufeff1\r\n 0.5\r\n2 \r\n3",
    ],
)
def test_files_of_weights_as_people_write_them(tmp_path, content):
    path = tmp_path / "weights.txt"
    path.write_bytes(content.encode())
    assert read_class_weights(path, 4).tolist() == [1, 0.5, 2, 3]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("1\n2\n3\n", "3 weights.*num_classes is 4"),
        ("1\n2\nx\n3\n", "line 3.*'x'"),
        ("1\n2\n0\n3\n", "line 3.*above 0.*'0'"),
        ("1\n2\n-1\n3\n", "line 3.*'-1'"),
        ("1\n2\nnan\n3\n", "line 3.*'nan'"),
        ("1\n2\ninf\n3\n", "line 3.*'inf'"),
        ("1\n\ndog 2\n", "line 3.*'dog 2'"),
        ("", "0 weights.*num_classes is 4"),
    ],
)
def test_a_wrong_file_of_weights_is_named_with_its_line(tmp_path, content, words):
    (tmp_path / "weights.txt").write_text(content)
    with pytest.raises(DataError, match=r"train\.class_weights.*weights\.txt.*" + words):
        read_class_weights(tmp_path / "weights.txt", 4)


def test_a_missing_file_of_weights(tmp_path):
    with pytest.raises(DataError, match=r"train\.class_weights.*balancd.*balanced"):
        resolve_class_weights(str(tmp_path / "balancd"), LABELS, 4, None)
