"""A finished run at a glance: a table of its epochs, and its curves as a picture."""

import json
from pathlib import Path
from typing import Any

from ppcls.evaluation.metrics import MEASURES

COLUMNS = (  # key in metrics.jsonl, heading, format
    ("epoch", "epoch", "d"),
    ("train_loss", "train loss", ".4f"),
    ("eval_loss", "eval loss", ".4f"),
    ("eval_top1", "top-1", ".4f"),
    ("eval_top1_interval", "95%", ""),
    ("lr", "lr", ".3g"),
    ("images_per_second", "images/s", ".1f"),
)


def read_epochs(metrics: Path) -> list[dict[str, Any]]:
    """Read the lines of a metrics.jsonl, in their order. If an epoch has several, the last one counts."""
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    return list({line["epoch"]: line for line in lines}.values())


def epoch_table(epochs: list[dict[str, Any]], best_by: str = "top1") -> str:
    """Return a table with one line for each epoch; a star marks the best, whose weights are kept.

    best_by: train.best_by. Another measure than top-1 has a column of its own.
    """
    best = max(epochs, key=lambda line: (line[f"eval_{best_by}"], -line["eval_loss"]))
    columns = list(COLUMNS)
    if best_by != "top1":
        columns.insert(5, (f"eval_{best_by}", MEASURES[best_by], ".4f"))
    table = [[heading for _, heading, _ in columns]]
    table += [[_cell(line.get(key), form) for key, _, form in columns] for line in epochs]
    widths = [max(12, *(len(cell) + 2 for cell in column)) for column in zip(*table, strict=True)]
    rows = ["".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in table]
    rows[1 + epochs.index(best)] += " *"
    return "\n".join(rows)


def _cell(value: Any, form: str) -> str:
    """Return a value of an epoch as text; "" for an interval that an earlier version did not write."""
    if value is None:
        return ""
    return "{:.4f} to {:.4f}".format(*value) if isinstance(value, list) else f"{value:{form}}"


def draw_curves(runs: dict[str, list[dict[str, Any]]], path: Path, best_by: str = "top1") -> None:
    """Draw losses, the measure `best_by` and the learning rate at the end of each epoch, of one run or of
    several by their names; of top-1 also its interval. The path's ending says the kind of picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.4), layout="constrained")
    FigureCanvasAgg(figure)  # draws without a screen
    axes = figure.subplots(1, 3)
    for number, (name, epochs) in enumerate(runs.items()):
        color = f"C{number}"
        label = f"{name}, " if name else ""
        x = [line["epoch"] for line in epochs]
        for axis, key, words, style in (
            (axes[0], "train_loss", "training", "--"),
            (axes[0], "eval_loss", "evaluation", "-"),
            (axes[1], f"eval_{best_by}", "evaluation", "-"),
            (axes[2], "lr", "", "-"),
        ):
            values = [line[key] for line in epochs]
            axis.plot(x, values, style, color=color, marker=".", label=f"{label}{words}".removesuffix(", "))
        if all(f"eval_{best_by}_interval" in line for line in epochs):
            bounds = zip(*(line[f"eval_{best_by}_interval"] for line in epochs), strict=True)
            axes[1].fill_between(x, *bounds, color=color, alpha=0.15, linewidth=0)
    for axis, title in zip(axes, ("loss", MEASURES[best_by], "learning rate"), strict=True):
        axis.set(title=title, xlabel="epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize="small")
    figure.savefig(path, dpi=100)


def summarise(output: Path, best_by: str = "top1") -> str:
    """Draw `curves.png` beside a run's metrics.jsonl. Returns the table of its epochs. best_by: see
    train.best_by."""
    epochs = read_epochs(output / "metrics.jsonl")
    draw_curves({"": epochs}, output / "curves.png", best_by)
    return epoch_table(epochs, best_by)
