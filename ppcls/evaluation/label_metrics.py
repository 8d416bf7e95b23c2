"""Metrics for images of several labels, and for networks that decide on each class by itself (sigmoid)."""

from typing import NamedTuple

import numpy as np

from ppcls import distributed
from ppcls.data.label_sets import LabelSets
from ppcls.evaluation.metrics import likeliest_valid, log_probabilities, top_classes

_BLOCK = 1 << 22  # scores of all processes that are sorted together, in some 60 bytes for each


class Judged(NamedTuple):
    """Comparison of N images with their labels. truth: int64 [N], the likeliest of each image's labels.
    losses: float64 [N]. counts: int64 [3, C], as metrics.count_classes."""

    truth: np.ndarray
    losses: np.ndarray
    counts: np.ndarray


def judge(logits: np.ndarray, labels: np.ndarray, shares: np.ndarray, *, is_binary: bool) -> Judged:
    """Compare logits [N, C] with labels int64 [N, M] and shares [N, M], as LabelSets.targets returns them.

    Of a softmax an image of k labels is said to be in its k likeliest classes, and its loss is the
    cross-entropy with targets of 1/k. is_binary: an image is said to be in each class with a sigmoid of at
    least 1/2, and its loss is the mean cross-entropy of the classes.
    """
    is_label, size = shares > 0, logits.shape[1]
    own = np.take_along_axis(logits, labels, axis=1)
    if is_binary:
        losses = np.logaddexp(0, logits.astype(np.float64)).mean(axis=1)
        losses -= np.where(is_label, own, 0).sum(axis=1, dtype=np.float64) / size
        chosen, hits = (logits >= 0).sum(axis=0), labels[is_label & (own >= 0)]
    else:
        log_p = np.take_along_axis(log_probabilities(logits), labels, axis=1)
        losses = -np.where(is_label, log_p / is_label.sum(axis=1, keepdims=True), 0).sum(axis=1)
        best = top_classes(logits, labels.shape[1])
        best = np.where(is_label, best, -1)  # as many as there are labels: these come first in their row
        is_hit = (best[:, :, None] == labels[:, None, :]).any(axis=2)
        chosen, hits = np.bincount(best[is_label], minlength=size), best[is_hit]
    counts = [np.bincount(labels[is_label], minlength=size), chosen, np.bincount(hits, minlength=size)]
    return Judged(likeliest_valid(logits, labels), losses, np.stack(counts))


def average_precision(scores: np.ndarray, is_positive: np.ndarray) -> np.ndarray:
    """Return the average precision of each class, float64 [C], for scores [N, C] and bool [N, C]; NaN for a
    class without a positive.

    It is the sum over the thresholds of the precision times what the recall grows by, without interpolation,
    as scikit-learn's average_precision_score. Equal scores are one threshold.
    """
    count = len(scores)
    order = np.argsort(-scores, axis=0, kind="stable")
    ranked, hits = np.take_along_axis(scores, order, axis=0), np.take_along_axis(is_positive, order, axis=0)
    precision = hits.cumsum(axis=0) / np.arange(1, count + 1)[:, None]
    is_last = np.concatenate([ranked[1:] != ranked[:-1], np.ones((1, scores.shape[1]), bool)])
    ends = np.where(is_last, np.arange(count)[:, None], count)
    ends = np.minimum.accumulate(ends[::-1], axis=0)[::-1]  # of the equal scores that each one is among
    sums = (hits * np.take_along_axis(precision, ends, axis=0)).sum(axis=0)
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN, as said above
        return sums / is_positive.sum(axis=0)


def average_precision_of_ranks(scores: np.ndarray, indices: np.ndarray, sets: LabelSets) -> np.ndarray:
    """Return the average precision of each class over the images of all processes, float64 [C].

    scores: float32 [n, C] of this process's images, whose places in the dataset are `indices`. The processes
    exchange a block of classes at a time.
    """
    own = sets.select(np.concatenate(distributed.gather(indices)))
    images, count, size = own.images, len(own), scores.shape[1]
    found = np.empty(size)
    step = max(1, _BLOCK // max(count, 1))
    for start in range(0, size, step):
        end = min(start + step, size)
        block = np.concatenate(distributed.gather(np.ascontiguousarray(scores[:, start:end])))
        is_positive = np.zeros(block.shape, bool)
        is_inside = (own.values >= start) & (own.values < end)
        is_positive[images[is_inside], own.values[is_inside] - start] = True
        found[start:end] = average_precision(block, is_positive)
    return found
