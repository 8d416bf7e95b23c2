"""Predictions of many files, saved as they are made, so that an interrupted run loses nothing.

Each process appends to its own part beside the output, with one JSON text on each line. The first line is a
header that identifies the run. When all files are done, the parts become the outputs and are removed.
"""

import csv
import hashlib
import json
import sys
from base64 import b64decode, b64encode
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from glob import escape
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from ppcls.data.dataset import Dataset
from ppcls.errors import DataError
from ppcls.files import write_aside
from ppcls.inference.predictions import Prediction
from ppcls.inference.predictor import Predictor
from ppcls.progress import progress_bar

CSV_COLUMNS = ["file", "rank", "class_id", "label", "probability", "error"]
SURE = "sure"  # column or key of the predictions of an export with a threshold


def run_header(predictor: Predictor, files: Sequence[str], *, embeddings: bool = False) -> dict[str, Any]:
    """Return the values that must not change when a run is resumed, so that all its predictions are of one
    kind. embeddings: each has one. Raises ExportError for an export that does not give them."""
    digest = hashlib.sha256("\0".join(files).encode("utf-8", "surrogateescape")).hexdigest()
    return {
        "parameters_sha256": predictor.fingerprint,
        "topk": predictor.topk,
        "preprocessing": predictor.preprocessing.to_dict(),
        **({"threshold": predictor.threshold} if predictor.activation == "sigmoid" else {}),
        "files": len(files),
        "files_sha256": digest,
        **({"embeddings": predictor.require_embeddings()} if embeddings else {}),
        **({"calibration": predictor.calibration.to_dict()} if predictor.calibration else {}),
    }


def write_part(path: Path, header: dict[str, Any], predictor: Predictor, dataset: Dataset) -> None:
    """Classify the images into a new part, with progress; unreadable ones are reported."""
    writer = PartWriter(path, header)
    try:
        with progress_bar(len(dataset), "classify") as bar:
            for prediction in predictor.stream(dataset, embeddings="embeddings" in header):
                writer.add(prediction)
                bar.update()
                if prediction.error is not None:
                    bar.clear()
                    print(f"unreadable: {prediction.file}: {prediction.error}", file=sys.stderr)
    finally:
        writer.close()


def find_parts(output: Path) -> list[Path]:
    """Return the parts of all runs into this output."""
    return sorted(output.parent.glob(f"{escape(output.name)}.shard-*"))


def require_no_parts(output: Path) -> None:
    """Raise DataError if an earlier run was cut off, whose predictions this one would lose."""
    parts = find_parts(output)
    if parts:
        raise DataError(
            f"An earlier run into {output} was interrupted; its predictions are in {len(parts)} file(s) "
            f"such as {parts[0]}. Resume it: --resume. Or start again: delete {output}.shard-*"
        )


def files_done(output: Path, header: dict[str, Any]) -> set[str]:
    """Return the files that the parts have predictions for. Raises DataError for parts of another run."""
    done: set[str] = set()
    for part in find_parts(output):
        theirs = next(_lines(part), None)
        differing = [key for key, value in header.items() if theirs is not None and theirs.get(key) != value]
        if differing:
            raise DataError(
                f"{part} belongs to another run: {', '.join(differing)} differ. Give the command of the "
                f"interrupted run, or start again: delete {output}.shard-*"
            )
        done.update(prediction.file or "" for prediction in _predictions(part))
    return done


def next_part(output: Path, rank: int) -> Path:
    """Return the path of this process's part: a new file for each run, so that none is written to twice."""
    runs = [int(path.name.rsplit("-", 2)[1]) for path in find_parts(output)]
    return output.with_name(f"{output.name}.shard-{max(runs, default=0) + 1:04d}-{rank:05d}")


class PartWriter:
    """Appends predictions to a new file; each has left this process when `add` returns.

    Raises FileExistsError if another run writes to that file.
    """

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        self._file = path.open("x", encoding="utf-8", errors="surrogateescape")
        self._write(header)

    def add(self, prediction: Prediction) -> None:
        values = {key: value for key, value in asdict(prediction).items() if value is not None}
        if prediction.embedding is not None:
            values["embedding"] = b64encode(prediction.embedding.astype("<f4").tobytes()).decode()
        self._write(values)

    def _write(self, values: dict[str, Any]) -> None:
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def merge(
    output: Path, files: Sequence[str], embeddings: Path | None = None, size: int = 0, *, sure: bool = False
) -> tuple[int, int]:
    """Write `output`, .csv or .json, in the order of `files`, and remove the parts. Return how many files
    were classified and how many could not be read.

    embeddings: .npy, written besides, float32 [files, size]; if it is `output`, it alone is written. sure:
    the predictions say whether they are; a .csv then has a column for it.
    Raises DataError if some files are in no part, as when machines do not share the folder.
    """
    parts = find_parts(output)
    counts = [0, 0]

    def counted(predictions: Iterable[Prediction]) -> Iterator[Prediction]:
        for prediction in predictions:
            counts[prediction.error is not None] += 1
            yield prediction

    predictions = counted(_in_order(output, parts, files))
    if embeddings is not None:
        predictions = _save_embeddings(embeddings, len(files), size, predictions)
    if output == embeddings:
        deque(predictions, maxlen=0)
    else:
        with _open_aside(output) as file:
            if output.suffix.lower() == ".json":
                _write_json(file, predictions)
            else:
                _write_csv(file, predictions, sure)
    for part in parts:
        part.unlink()
    return counts[0], counts[1]


@contextmanager
def _open_aside(path: Path) -> Iterator[TextIO]:
    with (
        write_aside(path) as aside,
        aside.open("w", encoding="utf-8", newline="", errors="surrogateescape") as file,
    ):
        yield file


def _save_embeddings(
    path: Path, count: int, size: int, predictions: Iterable[Prediction]
) -> Iterator[Prediction]:
    """Pass the predictions on. Write their embeddings, float32 [count, size], NaN for unreadable files, and
    beside them a .csv of the same name that says which file each row is of."""
    with write_aside(path) as aside, _open_aside(path.with_suffix(".csv")) as names:
        rows = np.lib.format.open_memmap(aside, "w+", np.float32, (count, size))
        writer = csv.writer(names)
        writer.writerow(("row", "file", "error"))
        for row, prediction in enumerate(predictions):
            rows[row] = np.nan if prediction.embedding is None else prediction.embedding
            writer.writerow((row, prediction.file, prediction.error))
            yield prediction
        rows.flush()


def _in_order(output: Path, parts: Sequence[Path], files: Sequence[str]) -> Iterator[Prediction]:
    """Yield the predictions in the order of `files`. Each part has this order, so only its next one is
    needed."""
    sources = [_predictions(part) for part in parts]
    heads: dict[str, tuple[Prediction, Iterator[Prediction]]] = {}

    def advance(source: Iterator[Prediction]) -> None:
        prediction = next(source, None)
        if prediction is not None:
            heads[prediction.file or ""] = prediction, source

    for source in sources:
        advance(source)
    for file in files:
        if file not in heads:
            raise DataError(
                f"{file} has no prediction in {output}.shard-*. If several machines took part, they must "
                "share the output's folder. The predictions so far are kept: --resume does the rest."
            )
        prediction, source = heads.pop(file)
        yield prediction
        advance(source)


def _lines(part: Path) -> Iterator[dict[str, Any]]:
    """Yield the complete lines; the last one may have been cut off. Raises DataError for a damaged one."""
    with part.open(encoding="utf-8", errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith("\n"):
                return
            try:
                values = json.loads(line)
            except ValueError:
                values = None
            if not isinstance(values, dict):
                raise DataError(
                    f"{part} is damaged in line {number}. Delete it: --resume does its files again."
                )
            yield values


def _predictions(part: Path) -> Iterator[Prediction]:
    lines = _lines(part)
    next(lines, None)
    for values in lines:
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        if "embedding" in fields:
            fields["embedding"] = np.frombuffer(b64decode(fields["embedding"]), "<f4")
        yield Prediction(**fields)


def _write_csv(file: TextIO, predictions: Iterable[Prediction], sure: bool) -> None:
    writer = csv.writer(file)
    writer.writerow(CSV_COLUMNS + [SURE] * sure)
    for prediction in predictions:
        mark = [{None: "", True: "yes", False: "no"}[prediction.is_sure]] * sure
        if prediction.error is not None:
            writer.writerow([prediction.file, "", "", "", "", prediction.error, *mark])
        elif not prediction.class_ids:  # no class above the threshold
            writer.writerow([prediction.file, "", "", "", "", "", *mark])
        best = zip(prediction.class_ids, prediction.labels, prediction.probabilities, strict=True)
        for rank, (class_id, label, probability) in enumerate(best, 1):
            writer.writerow([prediction.file, rank, class_id, label, f"{probability:.6f}", "", *mark])


def _write_json(file: TextIO, predictions: Iterable[Prediction]) -> None:
    file.write("[")
    for number, prediction in enumerate(predictions):
        file.write(",\n " if number else "\n ")
        json.dump(_record(prediction), file)
    file.write("\n]\n")


def _record(prediction: Prediction) -> dict[str, Any]:
    if prediction.error is not None:
        return {"file": prediction.file, "error": prediction.error}
    best = zip(prediction.class_ids, prediction.labels, prediction.probabilities, strict=True)
    classes = [{"class_id": i, "label": label, "probability": p} for i, label, p in best]
    mark = {} if prediction.is_sure is None else {SURE: prediction.is_sure}
    return {"file": prediction.file, **mark, "predictions": classes}
