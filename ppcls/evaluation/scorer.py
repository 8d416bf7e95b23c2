"""The scorer: compares the logits of batches with the labels."""

import numpy as np

from ppcls.data.dataset import Dataset
from ppcls.data.loader import Batch, Unreadable
from ppcls.evaluation.label_metrics import average_precision_of_ranks, judge
from ppcls.evaluation.metrics import (
    batch_sums,
    count_classes,
    fill_samples,
    likeliest_valid,
    sample_type,
)
from ppcls.inference.predictions import require_finite, sigmoid
from ppcls.inference.predictor import Predictor


class Scorer:
    """Compares the logits of batches with the labels, and collects this process's counts of classes,
    unreadable images and samples.

    images: the number of this process's. num_classes: the number of classes that can be predicted. A network
    with a sigmoid for each class needs the logits of all images too, 4 bytes for each class of an image.
    """

    def __init__(
        self,
        dataset: Dataset,
        predictor: Predictor,
        classes: np.ndarray | None,
        images: int,
        *,
        keep_samples: bool,
        keep_logits: bool,
    ) -> None:
        num_classes = predictor.num_classes
        self.labels, self.temperature = dataset.labels, predictor.temperature
        self.to_logits = predictor.to_logits
        self.is_binary = predictor.activation == "sigmoid"
        self.sets = dataset.all_labels if self.is_binary else dataset.label_sets
        self.excluded = None if classes is None else np.setdiff1d(np.arange(num_classes), classes)
        self.num_classes = num_classes if classes is None else len(classes)
        self.class_counts = np.zeros((3, num_classes), np.int64)
        self.unreadable: list[Unreadable] = []
        self._samples = np.empty(images if keep_samples else 0, sample_type(self.num_classes))
        rows = images if keep_logits or self.is_binary else 0
        self._indices, self._logits = np.empty(rows, np.int64), np.empty((rows, num_classes), np.float32)
        self._filled = 0

    @property
    def samples(self) -> np.ndarray:
        """The samples so far."""
        return self._samples[: self._filled]

    @property
    def logits(self) -> np.ndarray:
        """The logits so far, before any temperature, float32 [n, C]."""
        return self._logits[: self._filled]

    def add(self, batch: Batch, outputs: np.ndarray) -> np.ndarray:
        """Return metrics.batch_sums of a batch, and the number of its unreadable images, float64 [5]. Raises
        PpclsError for logits that are not finite."""
        self.unreadable += batch.unreadable
        if not len(batch.indices):
            return np.array([0, 0, 0, 0, len(batch.unreadable)], np.float64)
        logits = self.to_logits(outputs)
        require_finite(logits)
        span = slice(self._filled, self._filled + len(batch.indices))
        if len(self._logits):
            self._logits[span], self._indices[span] = logits, batch.indices
        if self.temperature is not None:
            logits = logits / np.float32(self.temperature)
        if self.excluded is not None:
            logits = logits.copy()
            logits[:, self.excluded] = -np.inf
        truth, losses, counts = self._judge(logits, batch.indices)
        rows = self._samples[span]
        if len(rows):
            fill_samples(rows, logits, truth, batch.indices)
            if losses is not None:
                rows["loss"] = losses
            if self.is_binary:
                rows["probability"] = sigmoid(np.take_along_axis(logits, rows["best"].astype(np.int64), 1))
        self._filled = span.stop
        self.class_counts += counts
        return np.array([*batch_sums(logits, truth, losses), len(batch.unreadable)])

    def _judge(
        self, logits: np.ndarray, indices: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
        """Return the true class of each image, its loss, None for the cross-entropy with this class, and the
        counts of classes."""
        if self.sets is not None:
            return judge(logits, *self.sets.targets(indices), is_binary=self.is_binary)
        if self.labels is None:
            raise ValueError("images without labels cannot be evaluated")
        truth = self.labels[indices]
        truth = likeliest_valid(logits, truth) if truth.ndim == 2 else truth
        return truth, None, count_classes(logits, truth)

    def average_precision(self) -> np.ndarray | None:
        """Return the average precision of each class over all processes; None with a softmax."""
        if not self.is_binary or self.sets is None:
            return None
        return average_precision_of_ranks(self.logits, self._indices[: self._filled], self.sets)
