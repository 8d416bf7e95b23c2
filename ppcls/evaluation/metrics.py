"""Metrics of an evaluation: sums over batches of logits, and tables from one row for each image."""

import numpy as np

MEASURES = {
    "top1": "top-1",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "map": "mean average precision",
}
MIN_CLASSES_FOR_TOP5 = 5
BINS = 15  # of confidence, as in Guo et al., https://arxiv.org/abs/1706.04599


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """Return the log-softmax of logits [N, C], float64 [N, C]."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def sample_losses(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the cross-entropy of each sample, float64 [N], for logits [N, C] and labels int64 [N]."""
    return -log_probabilities(logits)[np.arange(len(labels)), labels]


def label_ranks(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the number of classes before the true one, int64 [N]; of equal logits the lower class comes
    first."""
    own = logits[np.arange(len(labels)), labels][:, None]
    is_lower_class = np.arange(logits.shape[1]) < labels[:, None]
    return ((logits > own) | ((logits == own) & is_lower_class)).sum(axis=1)


def batch_sums(logits: np.ndarray, labels: np.ndarray, losses: np.ndarray | None = None) -> np.ndarray:
    """Return float64 [4]: samples, correct at top-1, correct within top-5, summed loss. losses: float64 [N];
    None: the cross-entropy."""
    ranks = label_ranks(logits, labels)
    losses = sample_losses(logits, labels) if losses is None else losses
    return np.array([len(labels), (ranks < 1).sum(), (ranks < 5).sum(), losses.sum()], np.float64)


def count_classes(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return int64 [3, C]: for each class its images, the images predicted as it, and those of both."""
    predicted, size = logits.argmax(axis=1), logits.shape[1]
    return np.stack(
        [np.bincount(x, minlength=size) for x in (labels, predicted, labels[labels == predicted])]
    )


def likeliest_valid(logits: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return the likeliest of several valid labels int64 [N, M] according to the network, int64 [N].

    It ranks first among them, so it is within the top k exactly if any of them is.
    """
    best = np.take_along_axis(logits, valid, axis=1).argmax(axis=1)
    return valid[np.arange(len(valid)), best]


def top_classes(logits: np.ndarray, k: int) -> np.ndarray:
    """Return the k likeliest classes, int64 [N, k]; of equal logits the lower class comes first."""
    left, rows = logits.copy(), np.arange(len(logits))
    best = np.empty((len(logits), k), np.int64)
    for place in range(k):
        best[:, place] = left.argmax(axis=1)
        left[rows, best[:, place]] = -np.inf
    return best


def sample_type(num_classes: int) -> np.dtype:
    """Return the type of an image's row. index: its place in the dataset; best, probability: the likeliest
    classes, up to five."""
    k = min(5, num_classes)
    return np.dtype(
        [("index", "i8"), ("label", "i4"), ("loss", "f8"), ("best", "i4", (k,)), ("probability", "f4", (k,))]
    )


def fill_samples(rows: np.ndarray, logits: np.ndarray, labels: np.ndarray, indices: np.ndarray) -> None:
    """Write one batch into `rows`, sample_type [N]."""
    log_p = log_probabilities(logits)
    best = top_classes(logits, rows.dtype["best"].shape[0])
    rows["index"], rows["label"], rows["best"] = indices, labels, best
    rows["loss"] = -log_p[np.arange(len(labels)), labels]
    rows["probability"] = np.exp(np.take_along_axis(log_p, best, axis=1))


def confusion(samples: np.ndarray) -> np.ndarray:
    """Return int64 [K, 3]: true class, predicted class and images for each pair that occurs, sorted by
    classes."""
    pairs = np.stack([samples["label"], samples["best"][:, 0]], axis=1)
    found, counts = np.unique(pairs, axis=0, return_counts=True)
    return np.column_stack([found, counts]).astype(np.int64)


def class_scores(counts: np.ndarray) -> np.ndarray:
    """Return float64 [C, 5]: precision, recall, F1, images of the class, images predicted as the class.
    counts: from `count_classes`.

    Precision is NaN if no image was predicted as the class, recall if the class has no image, F1 if both.
    """
    support, chosen, hits = counts
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN, as said above
        return np.column_stack(
            [hits / chosen, hits / support, 2 * hits / (support + chosen), support, chosen]
        ).astype(np.float64)


def main_confusions(triples: np.ndarray) -> np.ndarray:
    """Return the errors in `confusion`, the most frequent pair first; of equal ones that of the lower
    classes."""
    wrong = triples[triples[:, 0] != triples[:, 1]]
    return wrong[np.argsort(-wrong[:, 2], kind="stable")]


def calibration(samples: np.ndarray) -> np.ndarray:
    """Return the `calibration_table` of the likeliest classes."""
    confidence = samples["probability"][:, 0].astype(np.float64)
    return calibration_table(confidence, samples["best"][:, 0] == samples["label"])


def calibration_table(confidence: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """Return float64 [BINS, 3]: the number of images, their mean confidence and their accuracy in equal bins
    of the top-1 confidence. Each bin includes its upper edge; an empty one has NaN."""
    bins = np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], confidence)
    counts = np.bincount(bins, minlength=BINS)
    with np.errstate(invalid="ignore"):
        means = np.bincount(bins, confidence, BINS) / counts
        return np.column_stack([counts, means, np.bincount(bins, correct, BINS) / counts])


def expected_calibration_error(table: np.ndarray) -> float:
    """Return the mean gap between confidence and accuracy, weighted by the images of each bin. table: from
    `calibration_table`."""
    counts, confidence, accuracy = table[table[:, 0] > 0].T
    return float((counts * np.abs(confidence - accuracy)).sum() / counts.sum())
