"""One pass over a labelled dataset, shared among the processes of a run."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ppcls import distributed
from ppcls.data.dataset import Dataset
from ppcls.data.loader import Unreadable, eval_batch_indices
from ppcls.errors import DataError, PpclsError, Stopped
from ppcls.evaluation.metrics import (
    MIN_CLASSES_FOR_TOP5,
    batch_sums,
    fill_samples,
    likeliest_valid,
    sample_type,
)
from ppcls.inference.classify import run_batches
from ppcls.inference.engines import Engine
from ppcls.preprocessing import Preprocessing
from ppcls.progress import progress_bar


@dataclass(frozen=True)
class Evaluation:
    """top1, top5: fractions of `count`; top5 is None below five classes. loss: mean cross-entropy.

    samples: of metrics.sample_type [count], in the dataset's order, if they were to be kept; not in to_dict.
    """

    top1: float
    top5: float | None
    loss: float
    count: int
    unreadable: list[Unreadable]
    images_per_second: float
    samples: np.ndarray | None = None

    def to_dict(self) -> dict[str, Any]:
        values = {"top1": self.top1, "top5": self.top5, "loss": self.loss, "count": self.count}
        return {name: value for name, value in values.items() if value is not None} | {
            "skipped": len(self.unreadable),
            "skipped_files": [{"file": item.where, "reason": item.reason} for item in self.unreadable],
            "images_per_second": round(self.images_per_second, 2),
        }


def evaluate(
    engine: Engine,
    dataset: Dataset,
    spec: Preprocessing,
    *,
    num_classes: int,
    batch_size: int,
    num_workers: int,
    on_error: str,
    is_softmax_inside: bool = False,
    classes: np.ndarray | None = None,
    keep_samples: bool = False,
    signal: Callable[[], int] = lambda: 0,
) -> Evaluation:
    """Each image counts once, whatever the number of processes; all of them return the same result.

    is_softmax_inside: the engine returns probabilities, not logits. classes: int64, sorted; the others can't
    be predicted, as if the network had none but these. keep_samples: a row an image, 60 bytes.
    The processes add up their sums after each batch, so that none waits long for another: gloo gives up
    after 30 seconds.
    signal: the number of one that asked this process to stop, or 0; then all of them raise Stopped.
    Of an image with several valid labels the likeliest counts: see metrics.likeliest_valid.
    Raises DataError for an unreadable image (unless on_error is "skip"), for a label that is not among
    `classes`, and where nothing is left to evaluate, PpclsError for logits that are not finite.
    """
    labels = dataset.labels
    if labels is None:
        raise DataError("These images have no labels to compare with.")
    excluded = None
    if classes is not None:
        _require_labels_in(classes, dataset, labels)
        excluded = np.setdiff1d(np.arange(num_classes), classes)
        num_classes = len(classes)
    rank, world_size = distributed.rank(), distributed.world_size()
    order = eval_batch_indices(len(dataset), batch_size, rank, world_size)
    steps = len(eval_batch_indices(len(dataset), batch_size, 0, world_size))
    batches = run_batches(engine, dataset, order, spec, num_workers=num_workers, on_error=on_error)
    samples = np.empty(sum(map(len, order)) if keep_samples else 0, sample_type(num_classes))
    filled = 0
    totals = np.zeros(4)
    unreadable: list[Unreadable] = []
    start = time.perf_counter()
    with progress_bar(len(dataset), "evaluate") as bar:
        for _ in range(steps):
            sums = np.zeros(4)
            batch, outputs = next(batches, (None, None))
            if batch is not None and outputs is not None:
                unreadable += batch.unreadable
                if len(batch.indices):
                    logits = _finite(_logits(outputs) if is_softmax_inside else outputs)
                    if excluded is not None:
                        logits = logits.copy()
                        logits[:, excluded] = -np.inf
                    truth = labels[batch.indices]
                    truth = likeliest_valid(logits, truth) if truth.ndim == 2 else truth
                    sums = batch_sums(logits, truth)
                    if keep_samples:
                        rows = samples[filled : filled + len(truth)]
                        fill_samples(rows, logits, truth, batch.indices)
                        filled += len(truth)
            sums = distributed.sum_over_ranks(np.array([*sums, signal() > 0], np.float64))
            if sums[-1]:
                raise Stopped(max(distributed.gather(signal())))
            totals += sums[:-1]
            bar.update(int(totals[0]) - bar.n)
            bar.set_postfix_str(f"top-1 {totals[1] / max(totals[0], 1):.4f}", refresh=False)
    seconds = time.perf_counter() - start
    unreadable = sorted(item for share in distributed.gather(unreadable) for item in share)
    count = int(totals[0])
    if count == 0:
        raise DataError(f"None of the {len(dataset)} images can be read; the first: {unreadable[0].where}.")
    return Evaluation(
        top1=totals[1] / count,
        top5=totals[2] / count if num_classes >= MIN_CLASSES_FOR_TOP5 else None,
        loss=totals[3] / count,
        count=count,
        unreadable=unreadable,
        images_per_second=len(dataset) / seconds,
        samples=_in_order(distributed.gather(samples[:filled])) if keep_samples else None,
    )


def _require_labels_in(classes: np.ndarray, dataset: Dataset, labels: np.ndarray) -> None:
    outside = np.flatnonzero(~np.isin(labels, classes).reshape(len(labels), -1).all(axis=1))
    if len(outside):
        first = int(outside[0])
        raise DataError(
            f"{len(outside)} of {len(labels)} images have a label outside the {len(classes)} classes that "
            f"are evaluated; the first: {dataset.where(first)}. Received: {labels[first]}. Leave them out of "
            "the data, or give --classes a file with their classes too."
        )


def _in_order(shares: list[np.ndarray]) -> np.ndarray:
    """The rows of all processes, in the dataset's order."""
    rows = np.concatenate(shares)
    return rows[np.argsort(rows["index"], kind="stable")]


def _logits(probabilities: np.ndarray) -> np.ndarray:
    """Their softmax gives the probabilities again. Those below float32's smallest become it."""
    return np.log(np.maximum(probabilities, np.finfo(np.float32).tiny))


def _finite(logits: np.ndarray) -> np.ndarray:
    if not np.isfinite(logits).all():
        raise PpclsError(
            "The network returned values that are not finite: its weights are damaged or diverged."
        )
    return logits
