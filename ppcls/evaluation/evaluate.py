"""Evaluation on a labelled dataset, shared among the processes of a run."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from tqdm import tqdm

from ppcls import distributed
from ppcls.data.dataset import Dataset
from ppcls.data.loader import Batch, Unreadable, eval_batch_indices, require_within
from ppcls.errors import ConfigError, DataError, Stopped
from ppcls.evaluation.calibrate import Sureness
from ppcls.evaluation.metrics import (
    MIN_CLASSES_FOR_TOP5,
    class_scores,
)
from ppcls.evaluation.scorer import Scorer
from ppcls.inference.predictor import Predictor
from ppcls.intervals import interval_of, wilson, with_interval
from ppcls.progress import progress_bar

GATHERED_BYTES = 32 << 20  # of logits, from each process at a time
FEW_CLASSES = 20  # of which the recalls are printed


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    top1, top5: fractions of `count`; top5 is None below five classes. loss: mean cross-entropy.
    class_counts: int64 [3, C], as metrics.count_classes. samples: metrics.sample_type [count] in the
    dataset's order, if they were requested; logits: float32 [count, C] in this order, likewise; sureness: if
    the logits were calibrated. These three are not in to_dict. has_sets: images have several labels; top1 and
    top5 say how often one of them is the first or among the first five. average_precision: float64 [C], of a
    network with a sigmoid for each class; NaN for a class without an image.
    """

    top1: float
    top5: float | None
    loss: float
    count: int
    unreadable: list[Unreadable]
    images_per_second: float
    class_counts: np.ndarray
    samples: np.ndarray | None = None
    logits: np.ndarray | None = None
    sureness: Sureness | None = None
    has_sets: bool = False
    average_precision: np.ndarray | None = None

    @property
    def top1_name(self) -> str:
        """The words for top1."""
        return "top-1 (one of its labels)" if self.has_sets else "top-1"

    @cached_property
    def scores(self) -> np.ndarray:
        """The scores of each class, float64 [C, 5]: see metrics.class_scores."""
        return class_scores(self.class_counts)

    def to_dict(self) -> dict[str, Any]:
        """Return the metrics, as JSON has them. top1_interval, top5_interval: see intervals.wilson.
        balanced_accuracy is the mean recall of the classes that have images, macro_f1 the mean F1 of those
        that have images or predictions. class_recall and class_recall_interval: in the order of the labels,
        None for a class without an image. map: the mean of average_precision over the classes that have
        images."""
        shares = {"top1": self.top1} | ({} if self.top5 is None else {"top5": self.top5})
        intervals = {f"{name}_interval": list(interval_of(x, self.count)) for name, x in shares.items()}
        recall, f1 = self.scores[:, 1], self.scores[:, 2]
        return {**shares, "loss": self.loss, "count": self.count, **intervals} | {
            "balanced_accuracy": float(np.nanmean(recall)),
            "macro_f1": float(np.nanmean(f1)),
            "class_recall": _without_nan(recall),
            "class_recall_interval": self._recall_intervals(),
            **({"correct": "one of its labels"} if self.has_sets else {}),
            **self._average_precision(),
            "skipped": len(self.unreadable),
            "skipped_files": [{"file": item.where, "reason": item.reason} for item in self.unreadable],
            "images_per_second": round(self.images_per_second, 2),
        }

    def _recall_intervals(self) -> list[list[float] | None]:
        images, _, right = self.class_counts
        pairs = zip(right.tolist(), images.tolist(), strict=True)
        return [list(wilson(found, count)) if count else None for found, count in pairs]

    def _average_precision(self) -> dict[str, Any]:
        values = self.average_precision
        if values is None:
            return {}
        return {"map": float(np.nanmean(values)), "average_precision": _without_nan(values)}


def _without_nan(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else value for value in values.tolist()]


def evaluate(
    predictor: Predictor,
    dataset: Dataset,
    *,
    on_error: str = "fail",
    classes: np.ndarray | None = None,
    keep_samples: bool = False,
    keep_logits: bool = False,
    max_unreadable: int | None = None,
    signal: Callable[[], int] = lambda: 0,
) -> Evaluation:
    """Evaluate a network on labelled images. Each image counts once, whatever the number of processes; all of
    them return the same result.

    on_error: "skip" leaves unreadable images out and counts them. classes: int64, sorted; no other class can
    be predicted, as if the network had only these. keep_samples: save a row for each image, 60 bytes.
    keep_logits: save the samples and the logits, before any temperature. max_unreadable: how many images
    on_error "skip" may leave out; None for any number. signal: returns the number of the signal that stops
    this process, or 0; then all processes raise Stopped. For an image with several valid labels the likeliest
    one counts, see metrics.likeliest_valid. If all of them are right, or each class has a sigmoid: see
    label_metrics.
    Raises DataError for an unreadable image (unless on_error is "skip"), for more than max_unreadable of
    them, for a label that is not among `classes`, and if no image is left; PpclsError for logits that are not
    finite; ConfigError for what does not apply to a network with a sigmoid for each class.
    """
    _require_measurable(predictor, dataset, classes)
    rank, world_size = distributed.rank(), distributed.world_size()
    batch_indices = eval_batch_indices(len(dataset), predictor.batch_size, rank, world_size)
    keep_samples |= keep_logits
    own = sum(map(len, batch_indices))
    scorer = Scorer(dataset, predictor, classes, own, keep_samples=keep_samples, keep_logits=keep_logits)
    # As many steps on each process, so that none waits long: gloo gives up after 30 s.
    steps = len(eval_batch_indices(len(dataset), predictor.batch_size, 0, world_size))
    batches = predictor.run(dataset, batch_indices, on_error=on_error)
    start = time.perf_counter()
    with progress_bar(len(dataset), "evaluate") as bar:
        totals = _score_all(batches, scorer, steps, max_unreadable, signal, bar)
    seconds = time.perf_counter() - start
    unreadable = sorted(item for share in distributed.gather(scorer.unreadable) for item in share)
    count = int(totals[0])
    if count == 0:
        raise DataError(f"None of the {len(dataset)} images can be read; the first: {unreadable[0].where}.")
    samples = np.concatenate(distributed.gather(scorer.samples)) if keep_samples else None
    order = None if samples is None else np.argsort(samples["index"], kind="stable")
    return Evaluation(
        top1=totals[1] / count,
        top5=totals[2] / count if scorer.num_classes >= MIN_CLASSES_FOR_TOP5 else None,
        loss=totals[3] / count,
        count=count,
        unreadable=unreadable,
        images_per_second=len(dataset) / seconds,
        class_counts=sum(distributed.gather(scorer.class_counts)),
        samples=None if samples is None else samples[order],
        logits=gather_rows(scorer.logits)[order] if keep_logits else None,
        has_sets=dataset.label_sets is not None,
        average_precision=scorer.average_precision(),
    )


def _score_all(
    batches: Iterator[tuple[Batch, tuple[np.ndarray, ...]]],
    scorer: Scorer,
    steps: int,
    max_unreadable: int | None,
    signal: Callable[[], int],
    bar: tqdm,
) -> np.ndarray:
    """Score this process's batches. Return the sums of `Scorer.add` over all processes, float64 [5]. steps:
    the number of batches of the process that has most. Raises Stopped and DataError, as `evaluate` does."""
    totals = np.zeros(5)
    for _ in range(steps):
        batch, outputs = next(batches, (None, None))
        sums = np.zeros(5) if batch is None or outputs is None else scorer.add(batch, outputs[0])
        sums = distributed.sum_over_ranks(np.array([*sums, signal() > 0], np.float64))
        if sums[-1]:
            raise Stopped(max(distributed.gather(signal())))
        totals += sums[:-1]
        if max_unreadable is not None and totals[4] > max_unreadable:
            require_within(max_unreadable, sum(distributed.gather(scorer.unreadable), []))
        bar.update(int(totals[0]) - bar.n)
        if totals[0]:
            top1 = with_interval(totals[1] / totals[0], int(totals[0]))
            bar.set_postfix_str(f"top-1 {top1}", refresh=False)
    return totals


def describe_each(
    measure: str,
    values: Sequence[float | None],
    names: Sequence[str] | None,
    intervals: Sequence[Sequence[float] | None] | None = None,
) -> str:
    """Return a line with the value of each class that has images, and its interval. names: None shows the
    labels. intervals: None for a measure without."""
    shown = []
    for label, value in enumerate(values):
        if value is not None:
            text = f"{names[label] if names else label} {value:.4f}"
            if intervals is not None:
                text += " ({:.2f} to {:.2f})".format(*intervals[label] or (0, 1))
            shown.append(text)
    return f"{measure} of each class: {', '.join(shown)}"


def _require_measurable(predictor: Predictor, dataset: Dataset, classes: np.ndarray | None) -> None:
    """Raise an error for images without labels, and for labels or classes that this network cannot be
    measured with."""
    labels = dataset.all_labels
    if labels is None:
        raise DataError(
            "These images have no labels. An evaluation needs a list with labels or class folders."
        )
    is_any = dataset.labels is not None and dataset.labels.ndim == 2
    if predictor.activation == "sigmoid" and (classes is not None or is_any):
        option = "--labels" if is_any else "--classes"
        raise ConfigError(
            f"{option} is for networks that choose one class. This one, trained with train.loss=binary, says "
            f"yes or no to each class, and average_precision has each of them. Leave {option} out."
        )
    if classes is None:
        return
    is_outside = np.logical_or.reduceat(~np.isin(labels.values, classes), labels.starts[:-1])
    outside = np.flatnonzero(is_outside)
    if len(outside):
        first = int(outside[0])
        received = ",".join(map(str, labels[first]))
        raise DataError(
            f"{len(outside)} of {len(labels)} images have a label outside the {len(classes)} classes that "
            f"are evaluated; the first: {dataset.where(first)}. Received: {received}. Leave them out of the "
            "data, or give --classes a file with their classes too."
        )


def gather_rows(rows: np.ndarray) -> np.ndarray:
    """Return the rows of all processes, in the order of the ranks. They travel in parts, because gloo ends an
    exchange that takes long."""
    if distributed.world_size() == 1:
        return rows
    longest = max(distributed.gather(len(rows)))
    step = max(1, GATHERED_BYTES // (rows.itemsize * rows.shape[1]))
    parts = [distributed.gather(rows[start : start + step]) for start in range(0, longest, step)]
    return np.concatenate([part[rank] for rank in range(distributed.world_size()) for part in parts])
