"""Measure how sure a network is and how sure it may be, on its logits, so for every engine.

Temperature, ECE: Guo et al. 2017, https://arxiv.org/abs/1706.04599. Risk and coverage: Geifman and El-Yaniv
2017, https://arxiv.org/abs/1705.08500. Scores of strange images: Hendrycks and Gimpel 2017,
https://arxiv.org/abs/1610.02136, and Liu et al. 2020, https://arxiv.org/abs/2010.03759.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ppcls.errors import DataError
from ppcls.evaluation.metrics import calibration_table, expected_calibration_error, log_probabilities
from ppcls.inference.calibration import Calibration
from ppcls.intervals import LEVEL, at_most, interval_of, upper_bound

COLDEST, HOTTEST = 0.05, 20.0  # temperatures; a network without an error would ask for 0
ENERGY_SHARES = (0.01, 0.05, 0.5)
FEWEST = 10  # images, below which nothing is fitted
FEWEST_ERRORS = 2  # one in each half: without an error the lowest temperature would be the best
RECALL = 0.95  # of the images of known classes, at which the strange ones that pass are counted
SCORES = ("maximum softmax", "maximum logit", "energy")
CURVE_POINTS = 200
_BLOCK = 4096  # images at a time
_STEP = 1.01  # between two numbers of answered images that are tested


class Scores(NamedTuple):
    """Quality of probabilities. nll: mean cross-entropy. brier: mean squared distance to the true class, from
    0 to 2. table: see metrics.calibration_table."""

    nll: float
    ece: float
    brier: float
    table: np.ndarray


class Answers(NamedTuple):
    """The predictions that are sure. threshold: of the probability; None: no threshold keeps max_error,
    and then `answered` is 0. wrong: errors among the answered. bound: what their rate exceeds with a
    probability of at most 5%, by this one test alone."""

    threshold: float | None
    answered: int
    wrong: int
    bound: float


class Strange(NamedTuple):
    """Power of a score to tell images of known classes from others. auroc: the probability that one of the
    former scores higher. passed: share of the others above the threshold that RECALL of the former pass."""

    auroc: float
    passed: float


@dataclass(frozen=True)
class Sureness:
    """Result of a calibration. With fewer than FEWEST_ERRORS errors all temperatures are 1.

    halves: temperatures fitted on either half of the images; `after` judges each image at that of the half it
    is not in, as those that a temperature was fitted on would flatter it. coverage, risk: float64 [K], the
    share of images that are answered, the surest first, and the share of errors among them. least: the
    fewest images, all right, that could show the requested error rate. possible: an error rate that these
    images can show, None if none below 0.5. strange: by SCORES, where other images were given; others: how
    many.
    """

    calibration: Calibration
    halves: tuple[float, float]
    before: Scores
    after: Scores
    answers: Answers
    coverage: np.ndarray
    risk: np.ndarray
    aurc: float
    least: int
    possible: float | None
    strange: dict[str, Strange] = field(default_factory=dict)
    others: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return all but the calibration, as JSON has it."""
        places = np.unique(np.linspace(0, len(self.risk) - 1, CURVE_POINTS).round().astype(int))
        values: dict[str, Any] = {
            "halves": self.halves,
            "before": _plain(self.before),
            "after": _plain(self.after),
            "aurc": self.aurc,
            "answers": self.answers._asdict(),
            "least_images": self.least,
            "possible_max_error": self.possible,
            "risk_coverage": np.column_stack([self.coverage, self.risk])[places].tolist(),
        }
        if self.strange:
            found = {name: score._asdict() for name, score in self.strange.items()}
            for score in found.values():
                score["passed_interval"] = interval_of(score["passed"], self.others)
            values["out_of_distribution"] = {"images": self.others, **found}
        return values


def calibrate(
    logits: np.ndarray, labels: np.ndarray, max_error: float, *, has_energy: bool = True
) -> Sureness:
    """Fit a temperature and a threshold to logits float32 [N, C] and labels int64 [N].

    max_error: allowed rate of errors among sure predictions. has_energy: False for log-probabilities, whose
    energy is 0. Raises DataError for fewer than FEWEST images.
    """
    count = len(labels)
    if count < FEWEST:
        raise DataError(
            f"A calibration needs at least {FEWEST} labelled images, and hundreds to say much. Received: "
            f"{count}."
        )
    right = logits.argmax(axis=1) == labels
    is_first = deal_halves(right)
    can_fit = count - right.sum() >= FEWEST_ERRORS
    temperature, *halves = (
        fit_temperature(logits[part], labels[part]) if can_fit else 1.0
        for part in (np.ones(count, bool), is_first, ~is_first)
    )
    before = _judge(logits, labels, right, np.ones(count))
    after = _judge(logits, labels, right, np.where(is_first, halves[1], halves[0]))
    confidence = image_scores(logits, labels, np.full(count, temperature))[:, 2]
    answers = find_threshold(confidence, right, max_error)
    coverage, risk = risk_coverage(confidence, right)
    rates = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4)
    possible = (rate for rate in rates if find_threshold(confidence, right, rate).threshold is not None)
    energies = np.quantile(strange_scores(logits)[:, 2], ENERGY_SHARES).tolist() if has_energy else []
    found = Calibration(
        temperature=temperature,
        threshold=answers.threshold,
        answered=answers.answered / count,
        max_error=max_error,
        images=count,
        energy=dict(zip(map(str, ENERGY_SHARES), energies, strict=False)),
    )
    return Sureness(
        calibration=found,
        halves=(halves[0], halves[1]),
        before=before,
        after=after,
        answers=answers,
        coverage=coverage,
        risk=risk,
        aurc=area(coverage, risk),
        least=least_images(max_error),
        possible=next(possible, None),
    )


def deal_halves(right: np.ndarray) -> np.ndarray:
    """Return which images are in the first half, bool [N]: of the right and of the wrong ones every other,
    in a drawn order."""
    order = np.random.RandomState(0).permutation(len(right))
    order = order[np.argsort(right[order], kind="stable")]
    is_first = np.zeros(len(right), bool)
    is_first[order[::2]] = True
    return is_first


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature of the lowest mean cross-entropy, between COLDEST and HOTTEST.

    The cross-entropy is convex in 1 / temperature; Newton's method finds where its derivative is 0, inside a
    bracket that is halved where a step would leave it.
    """
    low, high, inverse = 1 / HOTTEST, 1 / COLDEST, 1.0
    for _ in range(100):
        slope = curvature = 0.0
        for block, own in _blocks(logits, labels):
            shifted = block - block.max(axis=1, keepdims=True)
            p = np.exp(inverse * shifted)
            p /= p.sum(axis=1, keepdims=True)
            mean = (p * shifted).sum(axis=1)
            slope += float((mean - shifted[np.arange(len(own)), own]).sum())
            curvature += float(((p * shifted**2).sum(axis=1) - mean**2).sum())
        if slope == 0:
            break
        low, high = (inverse, high) if slope < 0 else (low, inverse)
        step = inverse - slope / curvature if curvature > 0 else math.inf
        following = step if low < step < high else (low + high) / 2
        if abs(following - inverse) < 1e-10 * inverse:
            break
        inverse = following
    return 1 / inverse


def image_scores(logits: np.ndarray, labels: np.ndarray, temperatures: np.ndarray) -> np.ndarray:
    """Return float64 [N, 3]: cross-entropy, Brier score and probability of the likeliest class of each image,
    at a temperature of its own, float64 [N]."""
    rows, start = np.empty((len(labels), 3)), 0
    for block, own in _blocks(logits, labels):
        span = slice(start, start + len(own))
        log_p = log_probabilities(block / temperatures[span, None])
        p, true = np.exp(log_p), np.arange(len(own))
        rows[span, 0] = -log_p[true, own]
        rows[span, 1] = (p**2).sum(axis=1) - 2 * p[true, own] + 1
        rows[span, 2] = p.max(axis=1)
        start += len(own)
    return rows


def risk_coverage(confidence: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the shares of answered images, 1 / N to 1, and the share of errors among each, float64 [N]."""
    counts = np.arange(1, len(right) + 1)
    wrong = ~right[np.argsort(-confidence, kind="stable")]
    return counts / len(right), wrong.cumsum() / counts


def area(coverage: np.ndarray, risk: np.ndarray) -> float:
    """Return the area under the risk-coverage curve, AURC, divided by its width."""
    widths = np.diff(coverage)
    return float((widths * (risk[1:] + risk[:-1]) / 2).sum() / widths.sum())


def least_images(max_error: float, risk: float = 1 - LEVEL) -> int:
    """Return how many images without an error show that the error rate is at most max_error."""
    return math.ceil(math.log(risk) / math.log1p(-max_error))


def find_threshold(confidence: np.ndarray, right: np.ndarray, max_error: float) -> Answers:
    """Return the lowest threshold that is known to keep the error rate of what is above it, with LEVEL
    confidence.

    Thresholds are tested from the surest images on, each by the exact binomial test, until one fails: so the
    number of tests does not matter (fixed sequences: Angelopoulos et al. 2021,
    https://arxiv.org/abs/2110.01052). One error early on would end all, so several sequences start, at
    doubled numbers of images, and share the risk.
    """
    order = np.argsort(-confidence, kind="stable")
    ranked, wrong = confidence[order], (~right[order]).cumsum()
    count, first = len(right), least_images(max_error)
    sequences = max(1, int(math.log2(max(count / first, 1))) + 1)
    risk = (1 - LEVEL) / sequences
    best = 0
    for sequence in range(sequences):
        answered = _with_ties(ranked, least_images(max_error, risk) << sequence)
        while answered <= count and at_most(int(wrong[answered - 1]), answered, max_error) <= risk:
            best = max(best, answered)
            if answered == count:
                break
            answered = _with_ties(ranked, min(count, max(answered + 1, int(answered * _STEP))))
    if not best:
        return Answers(None, 0, 0, 1.0)
    errors = int(wrong[best - 1])
    return Answers(float(ranked[best - 1]), best, errors, upper_bound(errors, best, 1 - LEVEL))


def _with_ties(ranked: np.ndarray, answered: int) -> int:
    """Return how many images a threshold answers that answers at least these."""
    if answered > len(ranked):
        return answered
    return int(np.searchsorted(-ranked, -ranked[answered - 1], side="right"))


def strange_scores(logits: np.ndarray) -> np.ndarray:
    """Return float64 [N, 3], SCORES of each image; low ones are of images unlike those of the classes."""
    rows = np.empty((len(logits), 3))
    for start in range(0, len(logits), _BLOCK):
        block = logits[start : start + _BLOCK].astype(np.float64)
        largest = block.max(axis=1)
        log_sum = np.log(np.exp(block - largest[:, None]).sum(axis=1))
        rows[start : start + _BLOCK] = np.column_stack([np.exp(-log_sum), largest, largest + log_sum])
    return rows


def tell_apart(known: np.ndarray, others: np.ndarray) -> Strange:
    """Return how well a score, float64 [N] of images of known classes and [M] of others, tells them apart."""
    ranked = np.sort(others)
    below = np.searchsorted(ranked, known, "left") + np.searchsorted(ranked, known, "right")
    threshold = np.sort(known)[::-1][math.ceil(RECALL * len(known)) - 1]
    return Strange(float(below.mean() / 2 / len(others)), float((others >= threshold).mean()))


def _judge(logits: np.ndarray, labels: np.ndarray, right: np.ndarray, temperatures: np.ndarray) -> Scores:
    nll, brier, confidence = image_scores(logits, labels, temperatures).T
    table = calibration_table(confidence, right)
    return Scores(float(nll.mean()), expected_calibration_error(table), float(brier.mean()), table)


def _blocks(logits: np.ndarray, labels: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for start in range(0, len(labels), _BLOCK):
        yield logits[start : start + _BLOCK].astype(np.float64), labels[start : start + _BLOCK]


def _plain(scores: Scores) -> dict[str, Any]:
    rows = [[None if np.isnan(value) else value for value in row] for row in scores.table.tolist()]
    return {"nll": scores.nll, "ece": scores.ece, "brier": scores.brier, "bins": rows}
