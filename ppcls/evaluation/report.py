"""Where a network errs: tables, pictures and a page, from one row an image."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    class_scores,
    confusion,
    expected_calibration_error,
    main_confusions,
)
from ppcls.evaluation.plots import MATRIX_CLASSES, draw_confusion, draw_reliability, short_names
from ppcls.preprocessing import Preprocessing

MOST_MISTAKES = 48
THUMBNAIL = 160  # pixels
COLUMNS = [
    html.Column("class", is_number=True),
    html.Column("name", is_number=False),
    html.Column("precision", is_number=True),
    html.Column("recall", is_number=True),
    html.Column("F1", is_number=True),
    html.Column("images", is_number=True),
    html.Column("most often taken for", is_number=False),
]
F1_COLUMN = 4


def write_report(
    folder: Path,
    result: Evaluation,
    dataset: Dataset,
    spec: Preprocessing,
    *,
    title: str,
    num_classes: int,
    classes: np.ndarray | None,
    names: Sequence[str] | None,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """Write index.html, metrics.json, per_class.csv, confusion.csv and predictions.csv; return the metrics.

    result: with its samples. classes: those evaluated, None for all. names: of all the network's classes;
    None: they are called by their numbers. about: what else the metrics and the page should say.
    """
    if result.samples is None:
        raise ValueError("the evaluation has kept no samples: keep_samples=True")
    folder.mkdir(parents=True, exist_ok=True)
    samples = result.samples
    evaluated = np.arange(num_classes) if classes is None else classes
    called = [str(number) for number in range(num_classes)] if names is None else names
    triples, bins = confusion(samples), calibration(samples)
    scores = class_scores(triples, evaluated)
    metrics = result.to_dict() | {
        "nll": result.loss,
        "ece": expected_calibration_error(bins),
        "macro_f1": float(np.nanmean(scores[:, 2])),
        "balanced_accuracy": float(np.nanmean(scores[:, 1])),
        **about,
    }
    text = json.dumps(metrics, indent=2, ensure_ascii=False) + "\n"
    (folder / "metrics.json").write_text(text, encoding="utf-8", errors="surrogateescape")
    _write_csv(
        folder / "per_class.csv",
        ["class_id", "name", "precision", "recall", "f1", "support"],
        (row[:-1] for row in class_rows(scores, evaluated, called, triples)),
    )
    _write_csv(folder / "confusion.csv", ["true", "predicted", "count"], triples.tolist())
    _write_csv(folder / "predictions.csv", *prediction_rows(samples, dataset))
    page = _page(title, about, metrics, samples, dataset, spec, triples, bins, scores, evaluated, called)
    (folder / "index.html").write_text(page, encoding="utf-8", errors="replace")
    return metrics


def class_rows(
    scores: np.ndarray, classes: np.ndarray, names: Sequence[str], triples: np.ndarray
) -> list[list[str]]:
    """One row of COLUMNS a class; empty where a score isn't defined."""
    taken_for: dict[int, str] = {}
    for true, predicted, count in main_confusions(triples).tolist():
        taken_for.setdefault(true, f"{names[predicted]} ({count})")
    return [
        [
            str(label),
            names[label],
            *("" if np.isnan(score) else f"{score:.4f}" for score in row[:3]),
            str(int(row[3])),
            taken_for.get(label, ""),
        ]
        for label, row in zip(classes.tolist(), scores.tolist(), strict=True)
    ]


def prediction_rows(samples: np.ndarray, dataset: Dataset) -> tuple[list[str], Iterator[list]]:
    """The header and a row an image: file, true class, loss, the likeliest classes, their probabilities."""
    places = range(1, samples["best"].shape[1] + 1)
    header = ["file", "label", "loss", *(f"class_{n}" for n in places), *(f"probability_{n}" for n in places)]
    columns = (samples[name].tolist() for name in ("index", "label", "loss", "best", "probability"))
    rows = (
        [dataset.name(index), label, f"{loss:.6g}", *best, *(f"{p:.6g}" for p in probabilities)]
        for index, label, loss, best, probabilities in zip(*columns, strict=True)
    )
    return header, rows


def worst_mistakes(samples: np.ndarray) -> np.ndarray:
    """The rows of the wrong images of highest loss, MOST_MISTAKES at most, the worst first."""
    wrong = samples[samples["best"][:, 0] != samples["label"]]
    return wrong[np.argsort(-wrong["loss"], kind="stable")[:MOST_MISTAKES]]


def thumbnail(dataset: Dataset, index: int, spec: Preprocessing) -> bytes | None:
    """Return a JPEG of the crop that the network saw; None if the image cannot be read any more."""
    try:
        pixels = resize_short_center_crop(decode(dataset.read(index)), spec)
    except (OSError, DataError):
        return None
    image = Image.fromarray(pixels)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "jpeg", quality=80)
    return buffer.getvalue()


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence]) -> None:
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def _page(
    title: str,
    about: Mapping[str, Any],
    metrics: Mapping[str, Any],
    samples: np.ndarray,
    dataset: Dataset,
    spec: Preprocessing,
    triples: np.ndarray,
    bins: np.ndarray,
    scores: np.ndarray,
    classes: np.ndarray,
    names: Sequence[str],
) -> str:
    worst, short = worst_mistakes(samples), short_names(names)
    mistakes = [
        html.Mistake(
            file=Path(dataset.name(row["index"])).name,
            true=short[row["label"]],
            true_probability=float(np.exp(-row["loss"])),
            predicted=short[row["best"][0]],
            probability=float(row["probability"][0]),
            thumbnail=thumbnail(dataset, row["index"], spec),
        )
        for row in worst
    ]
    if len(classes) <= MATRIX_CLASSES:
        confused = "The confusion matrix: a row for each true class, a column for each predicted one."
    else:
        confused = "The pairs of a true and a predicted class that are confused most often."
    rows = class_rows(scores, classes, names, triples)
    rows.sort(key=lambda row: float(row[F1_COLUMN] or "inf"))
    errors = int((samples["best"][:, 0] != samples["label"]).sum())
    sections = [
        (
            "Confusion",
            html.paragraph(confused + " Each pair is in confusion.csv.")
            + html.picture(
                draw_confusion(triples, classes, names, dark=False),
                draw_confusion(triples, classes, names, dark=True),
                confused,
            ),
        ),
        (
            "Calibration",
            html.paragraph(
                f"How sure the network is, and how often it is right, in {len(bins)} bins of the first "
                "class's probability. ECE is the mean gap, weighted with the bins' images; NLL the mean "
                "cross-entropy."
            )
            + html.picture(
                draw_reliability(bins, dark=False),
                draw_reliability(bins, dark=True),
                f"Accuracy over confidence in {len(bins)} bins; ECE {metrics['ece']:.4f}",
            ),
        ),
        (
            "Worst errors",
            html.paragraph(
                f"The {len(worst)} of {errors} errors in which the true class was least expected, as the "
                "network saw the images."
            )
            + html.gallery(mistakes),
        ),
        (
            "Classes",
            html.paragraph("A header sorts by its column, once more the other way round.")
            + html.table(COLUMNS, rows, "Scores of each class", F1_COLUMN),
        ),
    ]
    sizes = f"short side {spec.resize_short}, crop {spec.crop_size} pixels"
    told = {name: str(value) for name, value in about.items()} | {"images": sizes}
    return html.page(title, told, _figures(metrics, len(classes)), sections)


def _figures(metrics: Mapping[str, Any], num_classes: int) -> dict[str, str]:
    shown = {
        "top-1": "top1",
        "top-5": "top5",
        "NLL": "nll",
        "ECE": "ece",
        "macro F1": "macro_f1",
        "balanced accuracy": "balanced_accuracy",
    }
    scores = {title: f"{metrics[name]:.4f}" for title, name in shown.items() if name in metrics}
    counts = {"images": metrics["count"], "unreadable, left out": metrics["skipped"], "classes": num_classes}
    return scores | {title: f"{count:,}" for title, count in counts.items()}
