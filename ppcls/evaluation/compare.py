"""Compare two evaluations on the same images: do they differ by more than chance?"""

import csv
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from ppcls.commands import command_line
from ppcls.errors import DataError, counted, why_unreadable
from ppcls.evaluation.tables import METRICS, PREDICTIONS
from ppcls.intervals import mcnemar, with_interval

DOUBTFUL = 0.05  # from this probability on, chance explains a difference


class Judged(NamedTuple):
    """Files of an evaluation. metrics: of metrics.json. rows: file, label and whether it is right, of each
    image in predictions.csv."""

    folder: Path
    metrics: dict[str, Any]
    rows: list[tuple[str, int, bool]]


class Comparison(NamedTuple):
    """Images by which of two networks has them right. p: see intervals.mcnemar."""

    both: int
    first_only: int
    second_only: int
    neither: int
    p: float


def read_judged(path: Path) -> Judged:
    """Read an evaluation: its folder or the metrics.json in it. Raises DataError for anything else."""
    if path.is_file() and path.name != METRICS:
        raise DataError(f"{path} is not an evaluation. Expected: its folder, or the {METRICS} in it.")
    folder = path.parent if path.name == METRICS else path
    try:
        metrics = json.loads((folder / METRICS).read_text(encoding="utf-8"))
        with (folder / PREDICTIONS).open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            rows = [
                (row["file"], int(row["label"]), row["label"] == row["class_1"])
                for row in csv.DictReader(file)
            ]
        if not rows or len(rows) != metrics["count"]:
            raise ValueError(f"{len(rows)} rows, but {metrics['count']} images in {METRICS}")
    except (OSError, ValueError, TypeError, KeyError, csv.Error) as error:
        raise DataError(
            f"{path} is not a whole evaluation ({why_unreadable(error)}). Expected: a folder with "
            f"{METRICS} and {PREDICTIONS}, or its {METRICS}. Evaluate again: {command_line('eval', 'MODEL')} "
            "writes both to -o output_dir=DIR."
        ) from error
    return Judged(folder, metrics, rows)


def compare(first: Judged, second: Judged) -> Comparison:
    """Compare two evaluations. Raises DataError if they are of other images, labels or classes."""
    one, other = _aligned(first, second)
    counts = [0, 0, 0, 0]
    for (_, _, is_right), (_, _, other_is_right) in zip(one, other, strict=True):
        counts[2 * (not is_right) + (not other_is_right)] += 1
    both, first_only, second_only, neither = counts
    return Comparison(both, first_only, second_only, neither, mcnemar(first_only, second_only))


def describe(first: Judged, second: Judged) -> str:
    """Return the comparison as text: both accuracies, a table of the images, and what it means."""
    found = compare(first, second)
    total = len(first.rows)
    right = {"A": found.both + found.first_only, "B": found.both + found.second_only}
    lines = [
        f"{letter}: {judged.folder}: top-1 {with_interval(right[letter] / total, total, '95%: ')}"
        for letter, judged in (("A", first), ("B", second))
    ]
    lines += [
        counted(total, "image"),
        f"{'':12}{'B right':>10}{'B wrong':>10}",
        f"{'A right':12}{found.both:10}{found.first_only:10}",
        f"{'A wrong':12}{found.second_only:10}{found.neither:10}",
        f"McNemar's exact test: p = {found.p:.2g}",
        _meaning(found),
    ]
    return "\n".join(lines)


def _meaning(found: Comparison) -> str:
    apart = found.first_only + found.second_only
    if not apart:
        return "A and B are right and wrong on the same images: these show no difference."
    split = f"Of the {apart} images that only one has right, A has {found.first_only}, B {found.second_only}"
    if found.p >= DOUBTFUL:
        return (
            f"{split}. Two equally good networks would differ as much or more in {100 * found.p:.0f} of 100 "
            "such comparisons: these images do not show which is better, or that they are equal."
        )
    better = "A" if found.first_only > found.second_only else "B"
    return (
        f"{split}. Two equally good networks would differ as much in {100 * found.p:.2g} of 100 such "
        f"comparisons: {better} is better on images of this kind."
    )


def _aligned(first: Judged, second: Judged) -> tuple[list, list]:
    """Return the rows of both in the same order."""
    for key, option in (("labels", "--labels"), ("classes", "--classes")):
        values = [judged.metrics.get(key) for judged in (first, second)]
        if values[0] != values[1]:
            raise DataError(
                f"The evaluations have different {option}. Received: {values[0]} in {first.folder}, "
                f"{values[1]} in {second.folder}. Evaluate both with the same."
            )
    one, other = (sorted(judged.rows) for judged in (first, second))
    if [row[0] for row in one] != [row[0] for row in other]:  # other images, or in another place
        one, other = (sorted(_below_their_folder(judged.rows)) for judged in (first, second))
    names, others = ({row[0] for row in rows} for rows in (one, other))
    if names != others or len(one) != len(other):
        example = min(names ^ others, default="one that is listed twice")
        raise DataError(
            f"The evaluations are of different images: {len(one)} in {first.folder}, {len(other)} in "
            f"{second.folder}, {len(names & others)} in both. In one of them only: {example}. Evaluate both "
            "on the same list."
        )
    has_one_truth = first.metrics.get("labels") is None  # of several valid labels each takes its likeliest
    differing = [row[0] for row, theirs in zip(one, other, strict=True) if row[1] != theirs[1]]
    if differing and has_one_truth:
        raise DataError(
            f"The evaluations have different labels for {len(differing)} of {len(one)} images; the first: "
            f"{differing[0]}. Evaluate both with the same labels."
        )
    return one, other


def _below_their_folder(rows: list[tuple[str, int, bool]]) -> list[tuple[str, int, bool]]:
    """Return the rows with the files' names below the folder that holds them all."""
    home = os.path.commonpath([os.path.dirname(os.path.abspath(row[0])) for row in rows])
    return [(os.path.relpath(os.path.abspath(file), home), label, right) for file, label, right in rows]
