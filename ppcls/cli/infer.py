"""Classify image files: the likeliest classes of each, with their probabilities."""

import csv
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ppcls import distributed
from ppcls.cli.common import config_parser, prepare, save_config, say
from ppcls.config import load_config
from ppcls.errors import ConfigError
from ppcls.progress import progress_bar

if TYPE_CHECKING:
    from ppcls.inference.classify import Prediction


def main(argv: Sequence[str] | None = None) -> int:
    parser = config_parser(__doc__)
    parser.add_argument(
        "-i", "--input", required=True, help="an image, a folder (with all below it), or a glob pattern"
    )
    parser.add_argument("--topk", type=int, default=5, help="classes shown for each image (default 5)")
    parser.add_argument("--output", help="also write the predictions to this .csv or .json file")
    args = parser.parse_args(argv)
    config = load_config(args.config, args.override)
    if args.topk < 1:
        raise ConfigError(f"--topk must be at least 1. Received: {args.topk}")
    if args.output is not None and Path(args.output).suffix.lower() not in (".csv", ".json"):
        raise ConfigError(f"--output must end in .csv or .json. Received: {args.output}")

    if distributed.world_size() > 1:
        raise ConfigError("infer.py runs as one process. Start it without paddle.distributed.launch.")
    if args.output is not None:
        Path(args.output).parent.mkdir(parents=True, exist_ok=True)

    from ppcls.inference.classify import classify, find_images

    files = find_images(args.input)
    prepared = prepare(config, needs_weights=True)

    from ppcls.inference.engines import EagerEngine

    names = prepared.class_names.names if prepared.class_names else None
    predictions = classify(
        EagerEngine(prepared.model).run,
        files[: config.data.batch_size] if args.check else files,
        prepared.spec,
        topk=args.topk,
        batch_size=config.data.batch_size,
        num_workers=prepared.num_workers,
    )
    done = []
    with progress_bar(len(files), "classify") as bar:
        for prediction in predictions:
            done.append(prediction)
            bar.update()
            if args.output is None and not args.check:
                bar.clear()
                print(_line(prediction, names))
    failed = [prediction for prediction in done if prediction.error is not None]
    if args.check:
        say(f"check passed: {len(done)} of {len(files)} files were classified, {len(failed)} unreadable")
        return 0
    if args.output is not None:
        _write(Path(args.output), done, names)
        say(f"written: {args.output}, {len(done) - len(failed)} files classified")
    save_config(config, "infer.yaml")
    for prediction in failed:
        print(f"unreadable: {prediction.file}: {prediction.error}", file=sys.stderr)
    return 1 if failed else 0


def _label(class_id: int, names: Sequence[str] | None) -> str:
    return str(class_id) if names is None else names[class_id]


def _line(prediction: "Prediction", names: Sequence[str] | None) -> str:
    if prediction.error is not None:
        return f"{prediction.file}: unreadable"
    best = zip(prediction.class_ids, prediction.probabilities, strict=True)
    return f"{prediction.file}: " + "; ".join(f"{_label(i, names)} {p:.4f}" for i, p in best)


def _write(path: Path, predictions: Iterable["Prediction"], names: Sequence[str] | None) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        if path.suffix.lower() == ".json":
            json.dump([_record(prediction, names) for prediction in predictions], file, indent=2)
            return
        writer = csv.writer(file)
        writer.writerow(["file", "rank", "class_id", "label", "probability", "error"])
        for prediction in predictions:
            if prediction.error is not None:
                writer.writerow([prediction.file, "", "", "", "", prediction.error])
            best = zip(prediction.class_ids, prediction.probabilities, strict=True)
            for rank, (class_id, probability) in enumerate(best, 1):
                label = _label(class_id, names)
                writer.writerow([prediction.file, rank, class_id, label, f"{probability:.6f}", ""])


def _record(prediction: "Prediction", names: Sequence[str] | None) -> dict:
    if prediction.error is not None:
        return {"file": prediction.file, "error": prediction.error}
    best = zip(prediction.class_ids, prediction.probabilities, strict=True)
    classes = [{"class_id": i, "label": _label(i, names), "probability": p} for i, p in best]
    return {"file": prediction.file, "predictions": classes}
