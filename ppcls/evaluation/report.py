"""Report of a network's errors: tables, pictures and a page, from one row for each image."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ppcls.data.dataset import Dataset
from ppcls.data.decode import decode
from ppcls.data.transforms import resize_short_center_crop
from ppcls.errors import DataError
from ppcls.evaluation import html
from ppcls.evaluation.evaluate import Evaluation
from ppcls.evaluation.metrics import (
    calibration,
    confusion,
    expected_calibration_error,
    main_confusions,
)
from ppcls.evaluation.plots import MATRIX_CLASSES, draw_confusion, draw_reliability, short_names
from ppcls.evaluation.sureness import section
from ppcls.evaluation.tables import METRICS, PREDICTIONS, prediction_rows, write_csv
from ppcls.files import write_json, write_text
from ppcls.intervals import interval_of
from ppcls.preprocessing import Preprocessing

MOST_MISTAKES = 48
THUMBNAIL = 160  # pixels
COLUMNS = [
    html.Column("class", is_number=True),
    html.Column("name", is_number=False),
    html.Column("precision", is_number=True),
    html.Column("recall", is_number=True),
    html.Column("its 95% interval", is_number=False),
    html.Column("F1", is_number=True),
    html.Column("images", is_number=True),
    html.Column("most often taken for", is_number=False),
]
F1_COLUMN = 5
AVERAGE_PRECISION = html.Column("average precision", is_number=True)  # of a network with a sigmoid
SEVERAL = (
    "an image may have several. In the confusion, the calibration and the errors the likeliest of them "
    "counts as the true one"
)


@dataclass(frozen=True)
class Tables:
    """Tables of a report.

    classes: int64 [C], those evaluated. names: of all the network's classes. confusion, calibration, scores:
    as metrics.confusion, metrics.calibration and, for these classes, metrics.class_scores return them.
    average_precision: float64 [C], for these classes, or None.
    """

    classes: np.ndarray
    names: Sequence[str]
    confusion: np.ndarray
    calibration: np.ndarray
    scores: np.ndarray
    average_precision: np.ndarray | None = None

    @property
    def columns(self) -> list[html.Column]:
        """The columns of `class_rows`."""
        own = [] if self.average_precision is None else [AVERAGE_PRECISION]
        return [*COLUMNS[:-1], *own, COLUMNS[-1]]


def write_report(
    folder: Path,
    result: Evaluation,
    dataset: Dataset,
    preprocessing: Preprocessing,
    *,
    title: str,
    num_classes: int,
    classes: np.ndarray | None,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """Write index.html, metrics.json, per_class.csv, confusion.csv and predictions.csv; return the metrics.

    result: with its samples. classes: those evaluated, None for all num_classes of the network; without names
    in the dataset their numbers are shown. about: further entries for the metrics and the page.
    """
    if result.samples is None:
        raise ValueError("The evaluation has no samples. Evaluate with keep_samples=True.")
    folder.mkdir(parents=True, exist_ok=True)
    names = dataset.class_names.names if dataset.class_names else [str(n) for n in range(num_classes)]
    classes = np.arange(num_classes) if classes is None else classes
    samples = result.samples
    precision = None if result.average_precision is None else result.average_precision[classes]
    tables = Tables(
        classes, names, confusion(samples), calibration(samples), result.scores[classes], precision
    )
    metrics = result.to_dict() | {
        "nll": result.loss,
        "ece": expected_calibration_error(tables.calibration),
        **about,
    }
    write_json(folder / METRICS, metrics)
    write_csv(
        folder / "per_class.csv",
        ["class_id", "name", "precision", "recall", "f1", "support", "recall_low", "recall_high"]
        + ["average_precision"] * (precision is not None),
        ([*row[:4], *row[5:7], *row[4].partition(" to ")[::2], *row[7:-1]] for row in class_rows(tables)),
    )
    write_csv(folder / "confusion.csv", ["true", "predicted", "count"], tables.confusion.tolist())
    write_csv(folder / PREDICTIONS, *prediction_rows(result.samples, dataset))
    mistakes = _mistakes(result.samples, dataset, preprocessing, names)
    sizes = f"short side {preprocessing.resize_short}, crop {preprocessing.crop_size} pixels"
    labels = {"labels of images": SEVERAL} if result.has_sets else {}
    sure = None if result.sureness is None else section(result.sureness)
    page = _page(title, {**about, "images": sizes, **labels}, metrics, tables, mistakes, sure)
    write_text(folder / "index.html", page, errors="replace")
    return metrics


def class_rows(tables: Tables) -> list[list[str]]:
    """Return one row of the tables' columns for each class; undefined scores are empty."""
    names, taken_for = tables.names, dict[int, str]()
    for true, predicted, count in main_confusions(tables.confusion).tolist():
        taken_for.setdefault(true, f"{names[predicted]} ({count})")
    count, precision = len(tables.classes), tables.average_precision
    own = np.empty((count, 0)) if precision is None else precision[:, None]
    return [
        [
            str(label),
            names[label],
            *map(_score, row[:2]),
            "{:.4f} to {:.4f}".format(*interval_of(row[1], int(row[3]))) if row[3] else "",
            _score(row[2]),
            str(int(row[3])),
            *map(_score, more),
            taken_for.get(label, ""),
        ]
        for label, row, more in zip(
            tables.classes.tolist(), tables.scores.tolist(), own.tolist(), strict=True
        )
    ]


def _score(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.4f}"


def worst_mistakes(samples: np.ndarray) -> np.ndarray:
    """Return the rows of the wrong images of highest loss, at most MOST_MISTAKES, the worst first."""
    wrong = samples[samples["best"][:, 0] != samples["label"]]
    return wrong[np.argsort(-wrong["loss"], kind="stable")[:MOST_MISTAKES]]


def thumbnail(dataset: Dataset, index: int, preprocessing: Preprocessing) -> bytes | None:
    """Return a JPEG of the crop that the network saw; None if the image cannot be read any more."""
    try:
        pixels = resize_short_center_crop(decode(dataset.read(index)), preprocessing)
    except (OSError, DataError):
        return None
    image = Image.fromarray(pixels)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "jpeg", quality=80)
    return buffer.getvalue()


def _mistakes(
    samples: np.ndarray, dataset: Dataset, preprocessing: Preprocessing, names: Sequence[str]
) -> list[html.Figure]:
    short, figures = short_names(names), []
    for row in worst_mistakes(samples):
        true, predicted = short[row["label"]], short[row["best"][0]]
        lines = [
            f"true: {escape(true)}, {html.probability(np.exp(-row['loss']))}",
            f"predicted: <b>{escape(predicted)}</b>, {html.probability(row['probability'][0])}",
        ]
        picture, file = thumbnail(dataset, row["index"], preprocessing), Path(dataset.name(row["index"])).name
        figures.append(html.Figure(picture, f"{true}, taken for {predicted}", lines, file))
    return figures


def _page(
    title: str,
    about: Mapping[str, Any],
    metrics: Mapping[str, Any],
    tables: Tables,
    mistakes: Sequence[html.Figure],
    sure: str | None,
) -> str:
    count, bins = len(tables.classes), len(tables.calibration)
    errors = sum(row[2] for row in main_confusions(tables.confusion).tolist())
    if count <= MATRIX_CLASSES:
        confused = "The confusion matrix: a row for each true class, a column for each predicted one."
    else:
        confused = "The pairs of a true and a predicted class that are confused most often."
    rows = class_rows(tables)
    rows.sort(key=lambda row: float(row[F1_COLUMN] or "inf"))
    light, dark = (
        draw_confusion(tables.confusion, tables.classes, tables.names, dark=is_dark)
        for is_dark in (False, True)
    )
    light_bins, dark_bins = (draw_reliability(tables.calibration, dark=is_dark) for is_dark in (False, True))
    sections = [
        (
            "Confusion",
            html.paragraph(confused + " Each pair is in confusion.csv.")
            + html.picture(light, dark, confused),
        ),
        (
            "Calibration",
            html.paragraph(
                f"Confidence and accuracy in {bins} bins of the first class's probability. ECE is the mean "
                "gap, weighted by the images of each bin; NLL is the mean cross-entropy."
            )
            + html.picture(
                light_bins, dark_bins, f"Accuracy over confidence in {bins} bins; ECE {metrics['ece']:.4f}"
            ),
        ),
        (
            "Worst errors",
            html.paragraph(
                f"The {len(mistakes)} of {errors} errors with the lowest probability of the true class, "
                "cropped as the network saw them."
            )
            + html.gallery(mistakes),
        ),
        (
            "Classes",
            html.paragraph("Click a header to sort by its column; click again to reverse the order.")
            + html.table(tables.columns, rows, "Scores of each class", F1_COLUMN),
        ),
    ]
    if sure is not None:
        sections[1] = ("How sure it is", sure)
    shown = {name: str(value) for name, value in about.items()}
    return html.page(title, shown, _figures(metrics, count), sections)


def _figures(metrics: Mapping[str, Any], num_classes: int) -> dict[str, str]:
    shown = {
        "top-1": "top1",
        "top-5": "top5",
        "NLL": "nll",
        "ECE": "ece",
        "macro F1": "macro_f1",
        "balanced accuracy": "balanced_accuracy",
        "mean average precision": "map",
    }
    scores = {title: f"{metrics[name]:.4f}" for title, name in shown.items() if name in metrics}
    for title, name in (("top-1", "top1_interval"), ("top-5", "top5_interval")):
        if name in metrics:
            with_interval = "{}, 95%: {:.4f} to {:.4f}".format(title, *metrics[name])
            scores = {with_interval if key == title else key: text for key, text in scores.items()}
    counts = {"images": metrics["count"], "unreadable, left out": metrics["skipped"], "classes": num_classes}
    return scores | {title: f"{count:,}" for title, count in counts.items()}
