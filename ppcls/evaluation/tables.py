"""Tables that evaluations write: one row for each image, and CSV files."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from ppcls.data.dataset import Dataset
from ppcls.files import write_aside

METRICS, PREDICTIONS = "metrics.json", "predictions.csv"


def prediction_rows(samples: np.ndarray, dataset: Dataset) -> tuple[list[str], Iterator[list]]:
    """Return the header, and a row for each image: file, true class, loss, the likeliest classes and their
    probabilities."""
    places = range(1, samples["best"].shape[1] + 1)
    header = ["file", "label", "loss", *(f"class_{n}" for n in places), *(f"probability_{n}" for n in places)]
    columns = (samples[name].tolist() for name in ("index", "label", "loss", "best", "probability"))
    rows = (
        [dataset.name(index), label, f"{loss:.6g}", *best, *(f"{p:.6g}" for p in probabilities)]
        for index, label, loss, best, probabilities in zip(*columns, strict=True)
    )
    return header, rows


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence]) -> None:
    """Write a CSV file, whole or not at all."""
    with (
        write_aside(path) as aside,
        aside.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
