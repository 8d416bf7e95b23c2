"""Evaluation on a labelled dataset, shared among the processes of a run."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ppcls import distributed
from ppcls.data.dataset import Dataset
from ppcls.data.loader import Batch, Unreadable, eval_batch_indices
from ppcls.errors import DataError, PpclsError, Stopped
from ppcls.evaluation.metrics import (
    MIN_CLASSES_FOR_TOP5,
    batch_sums,
    class_scores,
    count_classes,
    fill_samples,
    likeliest_valid,
    sample_type,
)
from ppcls.inference.predictor import Predictor
from ppcls.progress import progress_bar

FEW_CLASSES = 20  # of which the recalls are printed


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    top1, top5: fractions of `count`; top5 is None below five classes. loss: mean cross-entropy.
    class_counts: int64 [3, C], as metrics.count_classes. samples: metrics.sample_type [count] in the
    dataset's order, if they were requested; not in to_dict.
    """

    top1: float
    top5: float | None
    loss: float
    count: int
    unreadable: list[Unreadable]
    images_per_second: float
    class_counts: np.ndarray
    samples: np.ndarray | None = None

    @cached_property
    def scores(self) -> np.ndarray:
        """The scores of each class, float64 [C, 5]: see metrics.class_scores."""
        return class_scores(self.class_counts)

    def to_dict(self) -> dict[str, Any]:
        """Return the metrics, as JSON has them. balanced_accuracy is the mean recall of the classes that have
        images, macro_f1 the mean F1 of those that have images or predictions. class_recall: in the order of
        the labels, None for a class without an image."""
        values = {"top1": self.top1, "top5": self.top5, "loss": self.loss, "count": self.count}
        recall, f1 = self.scores[:, 1], self.scores[:, 2]
        return {name: value for name, value in values.items() if value is not None} | {
            "balanced_accuracy": float(np.nanmean(recall)),
            "macro_f1": float(np.nanmean(f1)),
            "class_recall": [None if np.isnan(value) else value for value in recall.tolist()],
            "skipped": len(self.unreadable),
            "skipped_files": [{"file": item.where, "reason": item.reason} for item in self.unreadable],
            "images_per_second": round(self.images_per_second, 2),
        }


def evaluate(
    predictor: Predictor,
    dataset: Dataset,
    *,
    on_error: str = "fail",
    classes: np.ndarray | None = None,
    keep_samples: bool = False,
    signal: Callable[[], int] = lambda: 0,
) -> Evaluation:
    """Evaluate a network on labelled images. Each image counts once, whatever the number of processes; all of
    them return the same result.

    on_error: "skip" leaves unreadable images out and counts them. classes: int64, sorted; no other class can
    be predicted, as if the network had only these. keep_samples: save a row for each image, 60 bytes. signal:
    returns the number of the signal that stops this process, or 0; then all processes raise Stopped. For an
    image with several valid labels the likeliest one counts, see metrics.likeliest_valid.
    Raises DataError for an unreadable image (unless on_error is "skip"), for a label that is not among
    `classes`, and if no image is left; PpclsError for logits that are not finite.
    """
    labels = dataset.labels
    if labels is None:
        raise DataError(
            "These images have no labels. An evaluation needs a list with labels or class folders."
        )
    if classes is not None:
        _require_labels_in(classes, dataset, labels)
    rank, world_size = distributed.rank(), distributed.world_size()
    batch_indices = eval_batch_indices(len(dataset), predictor.batch_size, rank, world_size)
    scorer = _Scorer(labels, predictor, classes, sum(map(len, batch_indices)) if keep_samples else 0)
    # As many steps on each process, so that none waits long: gloo gives up after 30 s.
    steps = len(eval_batch_indices(len(dataset), predictor.batch_size, 0, world_size))
    batches = predictor.run(dataset, batch_indices, on_error=on_error)
    totals = np.zeros(4)
    start = time.perf_counter()
    with progress_bar(len(dataset), "evaluate") as bar:
        for _ in range(steps):
            batch, outputs = next(batches, (None, None))
            sums = np.zeros(4) if batch is None or outputs is None else scorer.add(batch, outputs[0])
            sums = distributed.sum_over_ranks(np.array([*sums, signal() > 0], np.float64))
            if sums[-1]:
                raise Stopped(max(distributed.gather(signal())))
            totals += sums[:-1]
            bar.update(int(totals[0]) - bar.n)
            bar.set_postfix_str(f"top-1 {totals[1] / max(totals[0], 1):.4f}", refresh=False)
    seconds = time.perf_counter() - start
    unreadable = sorted(item for share in distributed.gather(scorer.unreadable) for item in share)
    count = int(totals[0])
    if count == 0:
        raise DataError(f"None of the {len(dataset)} images can be read; the first: {unreadable[0].where}.")
    return Evaluation(
        top1=totals[1] / count,
        top5=totals[2] / count if scorer.num_classes >= MIN_CLASSES_FOR_TOP5 else None,
        loss=totals[3] / count,
        count=count,
        unreadable=unreadable,
        images_per_second=len(dataset) / seconds,
        class_counts=sum(distributed.gather(scorer.class_counts)),
        samples=_in_dataset_order(distributed.gather(scorer.samples)) if keep_samples else None,
    )


def describe_recall(recall: Sequence[float | None], names: Sequence[str] | None) -> str:
    """Return a line with the recall of each class that has images. names: None shows the labels."""
    shown = [
        f"{names[label] if names else label} {value:.4f}"
        for label, value in enumerate(recall)
        if value is not None
    ]
    return f"recall of each class: {', '.join(shown)}"


class _Scorer:
    """Compares the logits of batches with the labels, and collects this process's counts of classes,
    unreadable images and samples.

    capacity: the number of samples to save. num_classes: the number of classes that can be predicted.
    """

    def __init__(
        self, labels: np.ndarray, predictor: Predictor, classes: np.ndarray | None, capacity: int
    ) -> None:
        num_classes = predictor.num_classes
        self.labels, self.to_logits = labels, predictor.to_logits
        self.excluded = None if classes is None else np.setdiff1d(np.arange(num_classes), classes)
        self.num_classes = num_classes if classes is None else len(classes)
        self.class_counts = np.zeros((3, num_classes), np.int64)
        self.unreadable: list[Unreadable] = []
        self._samples = np.empty(capacity, sample_type(self.num_classes))
        self._filled = 0

    @property
    def samples(self) -> np.ndarray:
        """The samples so far."""
        return self._samples[: self._filled]

    def add(self, batch: Batch, outputs: np.ndarray) -> np.ndarray:
        """Return metrics.batch_sums of a batch. Raises PpclsError for logits that are not finite."""
        self.unreadable += batch.unreadable
        if not len(batch.indices):
            return np.zeros(4)
        logits = self.to_logits(outputs)
        if not np.isfinite(logits).all():
            raise PpclsError(
                "The network returned values that are not finite: its weights are damaged or diverged."
            )
        if self.excluded is not None:
            logits = logits.copy()
            logits[:, self.excluded] = -np.inf
        truth = self.labels[batch.indices]
        truth = likeliest_valid(logits, truth) if truth.ndim == 2 else truth
        rows = self._samples[self._filled : self._filled + len(batch.indices)]
        if len(rows):
            fill_samples(rows, logits, truth, batch.indices)
            self._filled += len(rows)
        self.class_counts += count_classes(logits, truth)
        return batch_sums(logits, truth)


def _require_labels_in(classes: np.ndarray, dataset: Dataset, labels: np.ndarray) -> None:
    outside = np.flatnonzero(~np.isin(labels, classes).reshape(len(labels), -1).all(axis=1))
    if len(outside):
        first = int(outside[0])
        raise DataError(
            f"{len(outside)} of {len(labels)} images have a label outside the {len(classes)} classes that "
            f"are evaluated; the first: {dataset.where(first)}. Received: {labels[first]}. Leave them out of "
            "the data, or give --classes a file with their classes too."
        )


def _in_dataset_order(shares: list[np.ndarray]) -> np.ndarray:
    """Return the rows of all processes in the dataset's order."""
    rows = np.concatenate(shares)
    return rows[np.argsort(rows["index"], kind="stable")]
