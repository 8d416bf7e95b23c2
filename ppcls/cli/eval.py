"""Evaluate a network on labelled images: top-1, top-5 and loss, written to metrics.json in output_dir; with
--report, also its errors by image and class; with --calibrate, how sure it is and may be."""

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
from ppcls.commands import command_line
from ppcls.config import Config
from ppcls.errors import ConfigError, counted
from ppcls.files import require_place, write_aside
from ppcls.inference.calibration import CALIBRATION

if TYPE_CHECKING:
    import numpy as np

    from ppcls.data.dataset import Dataset
    from ppcls.evaluation.evaluate import Evaluation
    from ppcls.inference.predictor import Predictor
    from ppcls.inference.resolve import Resolved


class Subject(NamedTuple):
    """The predictor and the dataset of an evaluation. classes: the only ones that can be predicted, None for
    all. about: further entries for the results. others: images of none of the classes, of --ood."""

    predictor: "Predictor"
    dataset: "Dataset"
    classes: "np.ndarray | None"
    about: dict[str, Any]
    others: "Dataset | None" = None


MAX_ERROR = 0.01


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    if args.report is not None:
        require_place(Path(args.report), "--report", "index.html")
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
    result = run(config, subject, keep_samples=True, keep_logits=args.calibrate)
    print_result(result, subject)
    write_results(config, subject, result)
    if args.calibrate:
        result = calibrate(args, resolved, subject, result)
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
    parser.add_argument(
        "--calibrate",
        action="store_true",
        help="fit a temperature and a threshold to these images, and write calibration.json for `export`",
    )
    parser.add_argument(
        "--max-error",
        type=float,
        metavar="RATE",
        help=f"with --calibrate: the error rate that is allowed above the threshold (default {MAX_ERROR})",
    )
    parser.add_argument(
        "--ood",
        metavar="FOLDER|LIST|SHARDS",
        help="with --calibrate: images of none of the classes; how well scores tell them apart",
    )
    args = parser.parse_args(argv)
    require_calibrate(args)
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


def require_calibrate(args: argparse.Namespace) -> None:
    """Raise ConfigError for options that --calibrate excludes, or that need it."""
    for name in ("max_error", "ood"):
        if getattr(args, name) is not None and not args.calibrate:
            raise ConfigError(f"--{name.replace('_', '-')} is a part of --calibrate. Give that too.")
    if args.max_error is not None and not 0 < args.max_error < 0.5:
        raise ConfigError(f"--max-error must be above 0 and below 0.5. Received: {args.max_error}")
    for name in ("labels", "classes", "sizes"):
        if getattr(args, name) is not None and args.calibrate:
            raise ConfigError(
                f"--calibrate is for the network as it is used, with one true class for each image. Leave "
                f"--{name} out."
            )


def open_subject(args: argparse.Namespace, resolved: "Resolved") -> Subject:
    """Open the predictor and the dataset, with the labels or classes that --labels or --classes request."""
    from ppcls.build import require_weights
    from ppcls.data.open import open_split, require_images, require_split

    config = resolved.config
    if resolved.export is None:
        require_weights(config)
    require_split(config.data, "eval")
    predictor = open_model(resolved, args.engine, default="auto", precision=args.precision, bulk=True)
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
    if args.calibrate:
        from ppcls.evaluation.sureness import open_others, require_one_label

        require_one_label(predictor, dataset)
        others = None if args.ood is None else open_others(args.ood)
        return Subject(predictor, dataset, None, {}, others)
    return Subject(predictor, dataset, None, {})


def run(
    config: Config, subject: Subject, keep_samples: bool = False, keep_logits: bool = False
) -> "Evaluation":
    from ppcls.evaluation.evaluate import evaluate

    return evaluate(
        subject.predictor,
        subject.dataset,
        on_error=config.data.on_error,
        classes=subject.classes,
        keep_samples=keep_samples,
        keep_logits=keep_logits,
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
    from ppcls.intervals import with_interval

    names, values = subject.dataset.class_names, result.to_dict()
    mean = f"mean average precision {values['map']:.4f}, " if "map" in values else ""
    top5 = "" if result.top5 is None else f"top-5 {with_interval(result.top5, result.count)}, "
    log(
        f"{mean}{result.top1_name} {with_interval(result.top1, result.count, '95%: ')}, {top5}"
        f"loss {result.loss:.4f} on {counted(result.count, 'image')}, {result.images_per_second:.1f} images/s"
    )
    if len(values["class_recall"]) <= FEW_CLASSES:
        shown = names.names if names else None
        log(describe_each("recall", values["class_recall"], shown, values["class_recall_interval"]))
        if "map" in values:
            log(describe_each("average precision", values["average_precision"], shown))
    if result.unreadable:
        log(f"left out, unreadable: {len(result.unreadable)} of {len(subject.dataset)}")
        for item in result.unreadable[:10]:
            log(f"  {item.where}: {item.reason}")


def calibrate(
    args: argparse.Namespace, resolved: "Resolved", subject: Subject, result: "Evaluation"
) -> "Evaluation":
    """Return the result with its sureness; print it, and write it to output_dir by the first process."""
    from ppcls.evaluation.sureness import calibrate_evaluation, describe_sureness, write_sureness

    config, export = resolved
    predictor, folder = subject.predictor, config.output_path
    result = calibrate_evaluation(
        predictor,
        result,
        max_error=args.max_error or MAX_ERROR,
        others=subject.others,
        on_error=config.data.on_error,
    )
    if distributed.rank() == 0 and result.sureness is not None:
        log(describe_sureness(result.sureness))
        for path in write_sureness(folder, predictor, result):
            log(f"written: {path}")
    model = "MODEL" if export else args.model or args.config  # an export cannot be exported
    own = [option for option in args.override if option.startswith(("model.", "data.preprocessing"))]
    overrides = [part for option in own for part in ("-o", option)]
    log(f"next: {command_line('export', model, *overrides, '--calibration', folder / CALIBRATION)}")
    return result


def write_results(config: Config, subject: Subject, result: "Evaluation") -> None:
    """Write metrics.json and, by the first process, a row for each image; `ppcls compare` reads both."""
    from ppcls.evaluation.tables import PREDICTIONS, prediction_rows, write_csv

    folder = config.output_path
    if distributed.rank() == 0 and result.samples is not None:
        write_csv(folder / PREDICTIONS, *prediction_rows(result.samples, subject.dataset))
    write_json(folder / "metrics.json", result.to_dict() | subject.about)


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
    from ppcls.intervals import with_interval
    from ppcls.preprocessing import at_size

    own = subject.predictor.preprocessing
    rows = []
    for size in sizes:
        preprocessing = at_size(own, size)
        resized = subject._replace(predictor=subject.predictor.with_preprocessing(preprocessing))
        result, short = run(config, resized), preprocessing.resize_short
        top1 = with_interval(result.top1, result.count, "95%: ")
        log(f"crop {size}, short side {short}: top-1 {top1}, loss {result.loss:.4f}")
        rows.append({"crop_size": size, "resize_short": short} | result.to_dict() | subject.about)
    write_json(config.output_path / "sizes.json", rows)
    if distributed.rank() == 0:
        path = config.output_path / "sizes.png"
        with write_aside(path) as aside:
            intervals = [row["top1_interval"] for row in rows]
            aside.write_bytes(draw_sizes(sizes, [row["top1"] for row in rows], intervals, own.crop_size))
        log(f"written: {path}")
