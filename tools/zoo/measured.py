"""Measurements of this project in one JSON file: accuracy by tools/eval.py, latency by tools/benchmark.py."""

import json
from pathlib import Path
from typing import Any

import yaml

from ppcls.architectures import MODELS
from ppcls.errors import DataError, suggest
from ppcls.intervals import interval_of
from ppcls.weights.published import PUBLISHED

# Engines of the page: names in a benchmark's rows, and column titles.
ENGINES = {
    "openvino": "OpenVINO",
    "onnxruntime": "ONNX Runtime",
    "paddle": "Paddle Inference, oneDNN",
    "paddle without oneDNN": "Paddle Inference",
    "eager": "eager",
}
CLASSES = 1000


def read_measured(path: Path) -> dict[str, Any]:
    """Read {"accuracy": {model: ...}, "latency": {model: ...}}. Both are empty if there is no file."""
    measured: dict[str, Any] = {"accuracy": {}, "latency": {}}
    if path.exists():
        measured |= _read_json(path)
    return measured


def to_json(measured: dict[str, Any]) -> str:
    """Return the file's text, with models and keys in alphabetical order."""
    return json.dumps(measured, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def merge(measured: dict[str, Any], path: Path, is_busy: bool = False) -> str:
    """Add a result in place of an older one of the same model, and return a sentence about it.

    path: a folder that tools/eval.py wrote, or a file of tools/benchmark.py engines --json. is_busy: other
    programs ran at the same time, and the page says so beside the latency. Raises DataError for any other
    file.
    """
    if path.is_dir():
        kind, (model, record) = "accuracy", _accuracy(path)
    else:
        kind, (model, record) = "latency", _latency(_read_json(path), path)
        record["is_busy"] = is_busy
    measured[kind][model] = record
    return f"{kind} of {model}, from {path}"


def _accuracy(folder: Path) -> tuple[str, dict[str, Any]]:
    metrics = _read_json(folder / "metrics.json")
    config = folder / "eval.yaml"
    try:
        options = yaml.safe_load(config.read_text(encoding="utf-8"))
        model, classes = options["model"]["name"], options["model"]["num_classes"]
        weights, variant = options["model"]["weights"], options["model"]["variant"]
    except (OSError, yaml.YAMLError, ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{config} must be the resolved config that tools/eval.py writes beside metrics.json. Received: "
            f"{error!r}. Run tools/eval.py again with -o output_dir={folder}."
        ) from error
    _require_model(model, config)
    if classes != CLASSES:
        raise DataError(
            f"{config} must be of a network with ImageNet's {CLASSES} classes. Received: {classes} classes. "
            "Give the results of such a network."
        )
    missing = [key for key in ("top1", "top5", "count") if not isinstance(metrics.get(key), int | float)]
    if missing:
        raise DataError(
            f"{folder / 'metrics.json'} must have top1, top5 and count. Received: no {', '.join(missing)}. "
            "Run tools/eval.py again."
        )
    record = {key: metrics[key] for key in ("top1", "top5", "count")}
    record |= {f"{key}_interval": interval_of(record[key], record["count"]) for key in ("top1", "top5")}
    # only the name of a file: its folder may be private
    return model, record | {"weights": variant or (weights and Path(weights).name) or "exported"}


def _latency(figures: dict[str, Any], path: Path) -> tuple[str, dict[str, Any]]:
    try:
        model, size, batch_size = figures["model"], figures["size"], figures["batch_size"]
        kept = ("processor", "threads", "rounds", "ceiling_gflops", "versions")
        record = {"size": size} | {key: figures[key] for key in kept}
        record["engines"] = {
            engine: {"milliseconds": row["milliseconds"], "share_of_ceiling": row["share_of_ceiling"]}
            for engine, row in figures["rows"].items()
            if engine in ENGINES
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} must be a file of tools/benchmark.py engines --json, of a network and not of an export. "
            f"Received: a JSON file without {error}. Measure again: python tools/benchmark.py engines -c "
            f"CONFIG --json {path}"
        ) from error
    _require_model(model, path)
    crop_size = PUBLISHED[model][0].preprocessing.crop_size
    if (size, batch_size) != (crop_size, 1):
        raise DataError(
            f"{path} must be of {model} at {crop_size} pixels and batch 1, as on the page. Received: {size} "
            f"pixels and batch {batch_size}. Measure again without -o data.preprocessing and --batch-size."
        )
    if not record["engines"]:
        raise DataError(
            f"{path} must have rows of engines: {', '.join(ENGINES)}. Received: "
            f"{', '.join(figures['rows'])}. Measure again without --engines."
        )
    return model, record


def _require_model(model: Any, path: Path) -> None:
    if model not in MODELS:
        raise DataError(f"{path} must be of a known model. Received: {model}; {suggest(str(model), MODELS)}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}. Give a folder that tools/eval.py wrote, or a file of "
            "tools/benchmark.py engines --json."
        ) from error
    except ValueError as error:
        raise DataError(
            f"{path} is not valid JSON: {error}. Write it again with the tool that made it."
        ) from error
    if not isinstance(content, dict):
        raise DataError(f"{path} must hold a JSON object. Received: {type(content).__name__}.")
    return content
