"""Plots of an evaluation as PNG, with a transparent background, for a light or a dark page."""

import io
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ticker import MaxNLocator

from ppcls.evaluation.metrics import BINS, main_confusions

MATRIX_CLASSES = 30  # up to this number the matrix is drawn, above it the most confused pairs
MOST_PAIRS = 30
LONGEST_NAME = 26  # letters
RIGHT, WRONG, MODEST = "#2f7fc1", "#e0701a", "#8fc1e8"
DPI = 120


def draw_confusion(triples: np.ndarray, classes: np.ndarray, names: Sequence[str], *, dark: bool) -> bytes:
    """Draw the confusion matrix of few classes, or the most confused pairs of many.

    triples: from metrics.confusion. classes: int64 [C]. names: of all the network's classes.
    """
    if len(classes) <= MATRIX_CLASSES:
        return _draw_matrix(triples, classes, short_names(names), dark)
    return _draw_pairs(main_confusions(triples)[:MOST_PAIRS], short_names(names), dark)


def _draw_matrix(triples: np.ndarray, classes: np.ndarray, names: Sequence[str], dark: bool) -> bytes:
    """Draw a row for each true class. A cell's colour is the share of the row's images, for errors relative
    to the largest error: otherwise those of a good network would be too pale to see."""
    count = len(classes)
    cells = np.zeros((count, count))
    place = {int(label): position for position, label in enumerate(classes)}
    for true, predicted, images in triples.tolist():
        cells[place[true], place[predicted]] = images
    shares = cells / np.maximum(cells.sum(axis=1, keepdims=True), 1)
    is_right = np.eye(count, dtype=bool)
    largest = shares[~is_right].max(initial=0)
    pixels = np.empty((count, count, 4))
    pixels[..., :3] = np.where(is_right[..., None], to_rgb(RIGHT), to_rgb(WRONG))
    pixels[..., 3] = np.where(is_right, 0.8 * shares, 0.9 * shares / (largest or 1))

    side = max(3.2, 0.36 * count)
    figure, ink = _figure(side + 2.2, side + 1.6, dark)
    axes = figure.subplots()
    axes.imshow(pixels, interpolation="nearest")
    shown = [names[label] for label in classes]
    axes.set_xticks(range(count), shown, rotation=90 if max(map(len, shown)) > 2 else 0, parse_math=False)
    axes.set_yticks(range(count), shown, parse_math=False)
    axes.set(xlabel="predicted", ylabel="true")
    axes.tick_params(length=0)
    between = np.arange(1, count) - 0.5
    axes.vlines(between, -0.5, count - 0.5, color=ink, alpha=0.15, linewidth=0.5)
    axes.hlines(between, -0.5, count - 0.5, color=ink, alpha=0.15, linewidth=0.5)
    digits = len(str(int(cells.max(initial=0))))
    for row, column in np.argwhere(cells):
        axes.text(
            column,
            row,
            f"{int(cells[row, column])}",
            ha="center",
            va="center",
            fontsize=min(9, 20 / max(digits, 2)),
            color=ink,
        ).set_in_layout(False)
    _style(axes, ink, is_open=False)
    return _png(figure)


def _draw_pairs(pairs: np.ndarray, names: Sequence[str], dark: bool) -> bytes:
    """Draw a bar for each pair of a true and a predicted class."""
    figure, ink = _figure(8.5, 1.2 + 0.24 * max(len(pairs), 1), dark)
    axes = figure.subplots()
    places = np.arange(len(pairs))
    axes.barh(places, pairs[:, 2], color=WRONG, height=0.7)
    axes.set_yticks(places, [f"{names[t]} → {names[p]}" for t, p, _ in pairs], parse_math=False)
    axes.set_ylim(max(len(pairs), 1) - 0.4, -0.6)
    axes.set_xlabel("images of the first class that were taken for the second")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for place, count in zip(places, pairs[:, 2], strict=True):
        axes.annotate(
            str(count), (count, place), (3, 0), textcoords="offset points", va="center", fontsize=8, color=ink
        )
    if not len(pairs):
        axes.text(0.5, 0.5, "no error", transform=axes.transAxes, ha="center", color=ink)
    _style(axes, ink)
    return _png(figure)


def draw_reliability(table: np.ndarray, *, dark: bool, is_transparent: bool = True) -> bytes:
    """Draw each bin's accuracy, the gap to its confidence, and its share of the images. table: from
    metrics.calibration_table."""
    figure, ink = _figure(5.4, 5.6, dark)
    above, below = figure.subplots(2, sharex=True, height_ratios=[4, 1])
    counts, confidence, accuracy = np.nan_to_num(table).T
    centres, width = (np.arange(BINS) + 0.5) / BINS, 0.92 / BINS
    lower = np.minimum(confidence, accuracy)
    above.bar(centres, lower, width, color=RIGHT)
    above.bar(centres, np.maximum(confidence - accuracy, 0), width, lower, color=WRONG, label="too confident")
    above.bar(centres, np.maximum(accuracy - confidence, 0), width, lower, color=MODEST, label="too modest")
    above.plot([0, 1], [0, 1], color=ink, linestyle="--", linewidth=1, label="confidence = accuracy")
    above.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy and confidence")
    figure.legend(loc="outside upper center", ncols=3, frameon=False, labelcolor=ink, fontsize=9)
    below.bar(centres, counts / counts.sum(), width, color=ink, alpha=0.55)
    below.set(xlabel="confidence: the first class's probability", ylabel="share of\nimages")
    _style(above, ink)
    _style(below, ink)
    return _png(figure, is_transparent)


def draw_risk_coverage(
    coverage: np.ndarray,
    risk: np.ndarray,
    answered: float | None,
    max_error: float,
    *,
    dark: bool,
    is_transparent: bool = True,
) -> bytes:
    """Draw the share of errors over the share of answered images. answered: the share above the threshold,
    None without one; max_error: the error rate that it keeps."""
    figure, ink = _figure(5.4, 3.6, dark)
    axes = figure.subplots()
    axes.plot(100 * coverage, 100 * risk, color=RIGHT, linewidth=2)
    axes.fill_between(100 * coverage, 100 * risk, color=RIGHT, alpha=0.15)
    axes.axhline(
        100 * max_error, color=ink, linestyle="--", linewidth=1, label=f"requested: {100 * max_error:g}"
    )
    if answered is not None:
        words = f"answered: {100 * answered:.0f}"
        axes.axvline(100 * answered, color=WRONG, linewidth=2, label=words)
    top = 1.15 * max(risk[len(risk) // 20 :].max(), max_error)  # the first few images alone jump to and fro
    axes.set(xlim=(0, 100), ylim=(0, 100 * top))
    axes.set(xlabel="answered, of 100 pictures", ylabel="wrong, of 100 answers")
    axes.legend(loc="upper left", frameon=False, labelcolor=ink, fontsize=9)
    _style(axes, ink)
    return _png(figure, is_transparent)


def draw_sizes(
    sizes: Sequence[int], top1: Sequence[float], intervals: Sequence[Sequence[float]], own_size: int
) -> bytes:
    """Draw top-1 and its interval over the test resolution. own_size: that of the weights' own
    preprocessing."""
    figure, ink = _figure(6.4, 4.2, dark=False)
    axes = figure.subplots()
    axes.axvline(
        own_size, color=ink, linestyle=":", linewidth=1, alpha=0.7, label=f"the network's own: {own_size}"
    )
    axes.plot(sizes, top1, color=RIGHT, marker="o")
    low, high = zip(*intervals, strict=True)
    axes.vlines(sizes, low, high, color=RIGHT, alpha=0.5, label="95% confidence")
    for size, value in zip(sizes, top1, strict=True):
        axes.annotate(
            f"{value:.4f}", (size, value), (0, 7), textcoords="offset points", ha="center", fontsize=9
        )
    axes.set_xticks(sorted({*sizes}))
    axes.margins(0.1, 0.2)
    axes.set(xlabel="crop, pixels", ylabel="top-1")
    axes.legend(frameon=False, labelcolor=ink)
    _style(axes, ink)
    return _png(figure, is_transparent=False)


def short_names(names: Sequence[str]) -> list[str]:
    """Return the first synonym of each name, shortened if it is long; with the number of the class if two
    would be equal; the number alone if matplotlib's font lacks a letter."""
    letters = get_font(findfont(FontProperties())).get_charmap()
    short = []
    for number, name in enumerate(names):
        text = name.split(",")[0].strip()
        if not text or not all(ord(letter) in letters for letter in text):
            text = f"class {number}"
        short.append(text if len(text) <= LONGEST_NAME else text[: LONGEST_NAME - 1].rstrip() + "…")
    often = Counter(short)
    return [f"{text} ({number})" if often[text] > 1 else text for number, text in enumerate(short)]


def _figure(width: float, height: float, dark: bool) -> tuple[Figure, str]:
    """Return a figure of a size in inches, and the colour to draw with. Without pyplot, Agg draws: there is
    no global state and no screen."""
    return Figure((width, height), layout="constrained", facecolor="white"), "#e6e6e6" if dark else "#1c1c1c"


def _style(axes: Any, ink: str, is_open: bool = True) -> None:
    """Set the colours of axes, labels and ticks. is_open: no frame on the right and on top."""
    axes.set_facecolor("none")
    axes.tick_params(colors=ink, labelsize=9)
    axes.xaxis.label.set_color(ink)
    axes.yaxis.label.set_color(ink)
    for spine in axes.spines.values():
        spine.set(color=ink, alpha=0.4)
    if is_open:
        axes.spines[["top", "right"]].set_visible(False)


def _png(figure: Figure, is_transparent: bool = True) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, transparent=is_transparent, metadata={"Software": None})
    return buffer.getvalue()
