"""Evaluate a network on labelled images: top-1, top-5 and loss, written to metrics.json in output_dir; with
--report, also its errors by image and class."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ppcls import distributed
from ppcls.cli.common import (
    add_engine_option,
    config_parser,
    log,
    open_model,
    read_model,
    save_config,
    write_json,
)
from ppcls.config import Config
from ppcls.errors import ConfigError
from ppcls.files import write_aside

if TYPE_CHECKING:
    import numpy as np

    from ppcls.data.dataset import Dataset
    from ppcls.evaluation.evaluate import Evaluation
    from ppcls.inference.predictor import Predictor
    from ppcls.inference.resolve import Resolved


class Subject(NamedTuple):
    """The predictor and the dataset of an evaluation. classes: the only ones that can be predicted, None for
    all. about: further entries for the results."""

    predictor: "Predictor"
    dataset: "Dataset"
    classes: "np.ndarray | None"
    about: dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    resolved = read_model(args)
    config = resolved.config
    subject = open_subject(args, resolved)
    if args.check:
        check(config, subject)
        return 0
    save_config(config, "eval.yaml")
    if args.sizes:
        evaluate_sizes(config, subject, sorted({*args.sizes}))
        return 0
    result = run(config, subject, keep_samples=args.report is not None)
    print_result(result, subject)
    write_json(config.output_path / "metrics.json", result.to_dict() | subject.about)
    if args.report is not None:
        report(Path(args.report), config, subject, result, str(resolved.export or config.model.weights))
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the command's options. Raises ConfigError for those that exclude each other, and for impossible
    sizes."""
    parser = config_parser(__doc__, takes_exports=True)
    add_engine_option(parser, default="auto on a CPU, eager on a GPU")
    parser.add_argument(
        "--report", metavar="DIR", help="write index.html and tables of the errors to this folder"
    )
    parser.add_argument(
        "--labels",
        metavar="FILE",
        help="a file of several valid labels for each image, such as ReaL's real.json",
    )
    parser.add_argument(
        "--classes",
        metavar="NAME",
        help="imagenet-a, imagenet-r, or a file with one class on each line: no other can be predicted",
    )
    parser.add_argument(
        "--sizes", type=int, nargs="+", metavar="S", help="evaluate with crops of S pixels, one after another"
    )
    args = parser.parse_args(argv)
    if args.labels is not None and args.classes is not None:
        raise ConfigError("--labels apply to all classes of the network. Leave --classes out.")
    if args.sizes and args.report is not None:
        raise ConfigError(
            "--report describes one size, --sizes evaluates several. Run them separately; for the report of "
            "another size: -o data.preprocessing.crop_size=S -o data.preprocessing.resize_short=R."
        )
    if args.sizes and min(args.sizes) < 1:
        raise ConfigError(f"--sizes must be at least 1. Received: {min(args.sizes)}")
    return args


def open_subject(args: argparse.Namespace, resolved: "Resolved") -> Subject:
    """Open the predictor and the dataset, with the labels or classes that --labels or --classes request."""
    from ppcls.build import require_weights
    from ppcls.data.dataset import open_split, require_images, require_split

    config = resolved.config
    if resolved.export is None:
        require_weights(config)
    require_split(config.data, "eval")
    predictor = open_model(resolved, args.engine, default="auto", bulk=True)
    num_classes = config.model.num_classes
    dataset = open_split(config.data, "eval", num_classes=num_classes, class_names=predictor.class_names)
    require_images(dataset, config.data.eval_root, "-o data.eval_root=")
    if args.labels is not None:
        from ppcls.data.valid_labels import with_valid_labels

        count, dataset = len(dataset), with_valid_labels(dataset, args.labels, num_classes)
        log(f"{len(dataset)} of {count} images have a valid label in {args.labels}; the others are left out")
        about = {"labels": args.labels, "without_valid_label": count - len(dataset)}
        return Subject(predictor, dataset, None, about)
    if args.classes is not None:
        from ppcls.data.class_subsets import read_classes

        classes = read_classes(args.classes, num_classes, dataset.class_names)
        return Subject(predictor, dataset, classes, {"classes": args.classes})
    return Subject(predictor, dataset, None, {})


def run(config: Config, subject: Subject, keep_samples: bool = False) -> "Evaluation":
    from ppcls.evaluation.evaluate import evaluate

    predictor, dataset, classes, _ = subject
    return evaluate(
        predictor,
        dataset,
        on_error=config.data.on_error,
        classes=classes,
        keep_samples=keep_samples,
        max_unreadable=config.data.max_unreadable,
    )


def check(config: Config, subject: Subject) -> None:
    from ppcls.data.loader import eval_batch_indices

    predictor, dataset = subject.predictor, subject.dataset
    indices = eval_batch_indices(len(dataset), predictor.batch_size)[:1]
    _, outputs = next(predictor.run(dataset, indices, on_error=config.data.on_error))
    log(f"check passed: a batch of {len(outputs[0])} of {len(dataset)} images was read and classified")


def print_result(result: "Evaluation", subject: Subject) -> None:
    from ppcls.evaluation.evaluate import FEW_CLASSES, describe_each

    names, values = subject.dataset.class_names, result.to_dict()
    mean = f"mean average precision {values['map']:.4f}, " if "map" in values else ""
    top5 = "" if result.top5 is None else f"top-5 {result.top5:.4f}, "
    log(
        f"{mean}{result.top1_name} {result.top1:.4f}, {top5}loss {result.loss:.4f} on {result.count} images, "
        f"{result.images_per_second:.1f} images/s"
    )
    if len(values["class_recall"]) <= FEW_CLASSES:
        shown = names.names if names else None
        log(describe_each("recall", values["class_recall"], shown))
        if "map" in values:
            log(describe_each("average precision", values["average_precision"], shown))
    if result.unreadable:
        log(f"left out, unreadable: {len(result.unreadable)} of {len(subject.dataset)}")
        for item in result.unreadable[:10]:
            log(f"  {item.where}: {item.reason}")


def report(folder: Path, config: Config, subject: Subject, result: "Evaluation", weights: str | None) -> None:
    """Write the report, by the first process."""
    from ppcls.evaluation.report import write_report

    about = subject.about | {"model": config.model.name, "weights": weights}
    title = f"{config.model.name}: errors"

    def write() -> None:
        if distributed.rank() == 0:
            write_report(
                folder,
                result,
                subject.dataset,
                subject.predictor.preprocessing,
                title=title,
                num_classes=subject.predictor.num_classes,
                classes=subject.classes,
                about=about,
            )

    distributed.run_together(write)
    log(f"written: {folder / 'index.html'}")


def evaluate_sizes(config: Config, subject: Subject, sizes: Sequence[int]) -> None:
    """Write the accuracy for each test resolution as sizes.json and sizes.png in output_dir."""
    from ppcls.evaluation.plots import draw_sizes
    from ppcls.preprocessing import at_size

    own = subject.predictor.preprocessing
    rows = []
    for size in sizes:
        preprocessing = at_size(own, size)
        resized = subject._replace(predictor=subject.predictor.with_preprocessing(preprocessing))
        result, short = run(config, resized), preprocessing.resize_short
        log(f"crop {size}, short side {short}: top-1 {result.top1:.4f}, loss {result.loss:.4f}")
        rows.append({"crop_size": size, "resize_short": short} | result.to_dict() | subject.about)
    write_json(config.output_path / "sizes.json", rows)
    if distributed.rank() == 0:
        path = config.output_path / "sizes.png"
        with write_aside(path) as aside:
            aside.write_bytes(draw_sizes(sizes, [row["top1"] for row in rows], own.crop_size))
        log(f"written: {path}")
