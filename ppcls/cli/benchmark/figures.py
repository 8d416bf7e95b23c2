"""Columns and the JSON file of all benchmarks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ppcls.files import write_json

SPREAD = ("median", "min", "max")  # of a figure over the rounds
HEADING = "".join(f"{key:>8}" for key in SPREAD)


def cells(row: Mapping[str, float], form: str) -> str:
    """Return the SPREAD of a figure as text, for columns below HEADING."""
    return "".join(f"{row[key]:{form}}" for key in SPREAD)


def write_figures(path: Path | None, figures: dict[str, Any]) -> None:
    """Write the figures of --json, if it is given."""
    if path is not None:
        write_json(path, figures)
        print(f"written: {path}")
