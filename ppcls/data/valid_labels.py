"""Several valid labels for each image, as ImageNet ReaL has them instead of the original ones.

Beyer et al., Are we done with ImageNet?, https://arxiv.org/abs/2006.07159; its real.json is at
https://github.com/google-research/reassessed-imagenet.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ppcls.data.dataset import Dataset
from ppcls.errors import DataError


def with_valid_labels(dataset: Dataset, file: str, num_classes: int) -> Dataset:
    """Return the images that have a valid label in `file`, with these labels.

    file: JSON; a list of the 50,000 images' labels (real.json: entry n is for ILSVRC2012_val_n.JPEG), or an
    object from file names to labels. Images are matched by their file names, in any folder.
    Raises DataError for a file of another kind, for a label that is not a class, and for an image that the
    file does not have.
    """
    labels_of = _read(file, num_classes)
    rows = []
    for index in range(len(dataset)):
        name = Path(dataset.name(index)).name
        if name not in labels_of:
            raise DataError(
                f"{file} has no labels for {dataset.where(index)}. Expected: a list for each image, under "
                f"its file name or at the number in ILSVRC2012_val_N.JPEG. Received: {name}"
            )
        rows.append(sorted(set(labels_of[name])))
    kept = [index for index, row in enumerate(rows) if row]
    if not kept:
        raise DataError(f"None of the {len(rows)} images has a valid label in {file}.")
    width = max(map(len, rows))
    filled = [rows[index] + rows[index][-1:] * (width - len(rows[index])) for index in kept]
    return replace(dataset.select(kept), labels=np.array(filled, np.int64), label_sets=None)


def _read(file: str, num_classes: int) -> Mapping[str, Sequence[int]]:
    try:
        values: Any = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"The labels in {file} cannot be read: {error}. Expected: JSON, such as real.json."
        ) from error
    if isinstance(values, list):
        values = {f"ILSVRC2012_val_{number:08d}.JPEG": row for number, row in enumerate(values, 1)}
    if not isinstance(values, dict):
        raise DataError(f"{file} must hold a list of lists, or an object of lists. Received: {values!r:.100}")
    for name, row in values.items():
        if not isinstance(row, list) or not all(type(v) is int and 0 <= v < num_classes for v in row):
            raise DataError(
                f"{file}: the labels of {name} must be a list of whole numbers from 0 to {num_classes - 1}. "
                f"Received: {row!r:.100}"
            )
    return values
