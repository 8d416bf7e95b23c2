"""Evaluate a network on labelled images: top-1, top-5 and loss, written to metrics.json in output_dir; and
with --report, where it errs."""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppcls import distributed
from ppcls.cli.common import config_parser, save_config, say
from ppcls.cli.engine import add_engine_options, open_runner, read_config
from ppcls.config import Config
from ppcls.errors import ConfigError

if TYPE_CHECKING:
    from ppcls.evaluation.evaluate import Evaluation
    from ppcls.preprocessing import Preprocessing


def main(argv: Sequence[str] | None = None) -> int:
    parser = config_parser(__doc__, needs_config=False)
    add_engine_options(parser, default="auto on a CPU, eager on a GPU")
    parser.add_argument("--report", metavar="DIR", help="write there index.html and tables: where it errs")
    parser.add_argument(
        "--labels", metavar="FILE", help="several valid labels an image, such as ReaL's real.json"
    )
    parser.add_argument(
        "--classes",
        metavar="NAME",
        help="imagenet-a, imagenet-r, or a file of one class a line: no other can be predicted",
    )
    parser.add_argument(
        "--sizes", type=int, nargs="+", metavar="S", help="evaluate with crops of S pixels, one after another"
    )
    args = parser.parse_args(argv)
    _check(args)
    config = read_config(args)

    from ppcls.data.dataset import open_split, require_split

    data, num_classes = config.data, config.model.num_classes
    if config.model.weights is not None or args.exported is not None:
        require_split(data, "eval")
    runner = open_runner(config, args.exported, args.engine or "auto", is_many=True)
    dataset = open_split(data, "eval", num_classes=num_classes, class_names=runner.class_names)

    from ppcls.data.class_subsets import read_classes
    from ppcls.data.loader import eval_batch_indices
    from ppcls.data.valid_labels import with_valid_labels
    from ppcls.evaluation.evaluate import evaluate
    from ppcls.inference.classify import run_batches

    about: dict[str, Any] = {} if args.classes is None else {"classes": args.classes}
    classes = None if args.classes is None else read_classes(args.classes, num_classes, dataset.class_names)
    if args.labels is not None:
        whole, dataset = len(dataset), with_valid_labels(dataset, args.labels, num_classes)
        about = {"labels": args.labels, "without_valid_label": whole - len(dataset)}
        say(f"{len(dataset)} of {whole} images have a valid label in {args.labels}; the others are left out")
    if args.check:
        order = eval_batch_indices(len(dataset), runner.batch_size)[:1]
        batches = run_batches(
            runner.engine,
            dataset,
            order,
            runner.spec,
            num_workers=runner.num_workers,
            on_error=data.on_error,
        )
        _, outputs = next(batches)
        say(f"check passed: of {len(dataset)} images a batch of {len(outputs)} was read and classified")
        return 0

    def run(spec: "Preprocessing") -> "Evaluation":
        return evaluate(
            runner.engine,
            dataset,
            spec,
            num_classes=num_classes,
            batch_size=runner.batch_size,
            num_workers=runner.num_workers,
            on_error=data.on_error,
            is_softmax_inside=runner.is_softmax_inside,
            classes=classes,
            keep_samples=args.report is not None,
        )

    save_config(config, "eval.yaml")
    if args.sizes:
        _over_sizes(config, runner.spec, sorted({*args.sizes}), run, about)
        return 0
    result = run(runner.spec)
    top5 = "" if result.top5 is None else f"top-5 {result.top5:.4f}, "
    say(
        f"top-1 {result.top1:.4f}, {top5}loss {result.loss:.4f} on {result.count} images, "
        f"{result.images_per_second:.1f} images/s"
    )
    if result.unreadable:
        say(f"left out, unreadable: {len(result.unreadable)} of {len(dataset)}")
        for item in result.unreadable[:10]:
            say(f"  {item.where}: {item.reason}")
    _write_json(config.output_path / "metrics.json", result.to_dict() | about)
    if args.report is None:
        return 0

    from ppcls.evaluation.report import write_report

    def report() -> None:
        write_report(
            Path(args.report),
            result,
            dataset,
            runner.spec,
            title=f"{config.model.name}: where it errs",
            num_classes=num_classes,
            classes=classes,
            names=dataset.class_names.names if dataset.class_names else None,
            about=about | {"model": config.model.name, "weights": args.exported or config.model.weights},
        )

    distributed.run_together(lambda: report() if distributed.rank() == 0 else None)
    say(f"written: {Path(args.report) / 'index.html'}")
    return 0


def _check(args: argparse.Namespace) -> None:
    """Raises ConfigError for options that exclude each other, and for impossible sizes."""
    if args.labels is not None and args.classes is not None:
        raise ConfigError("--labels are of all the network's classes: leave --classes out.")
    if args.sizes and args.report is not None:
        raise ConfigError(
            "--report is about one size, --sizes about several: run them one after the other. The report of "
            "another size: -o data.crop_size=S -o data.resize_short=R."
        )
    if args.sizes and min(args.sizes) < 1:
        raise ConfigError(f"--sizes must be at least 1. Received: {min(args.sizes)}")


def _over_sizes(
    config: Config,
    own: "Preprocessing",
    sizes: Sequence[int],
    run: "Callable[[Preprocessing], Evaluation]",
    about: dict[str, Any],
) -> None:
    """Accuracy over the test resolution, as sizes.json and sizes.png in output_dir."""
    from ppcls.evaluation.plots import draw_sizes
    from ppcls.preprocessing import at_size

    rows = []
    for size in sizes:
        spec = at_size(own, size)
        result = run(spec)
        say(f"crop {size}, short side {spec.resize_short}: top-1 {result.top1:.4f}, loss {result.loss:.4f}")
        rows.append({"crop_size": size, "resize_short": spec.resize_short} | result.to_dict() | about)
    _write_json(config.output_path / "sizes.json", rows)
    if distributed.rank() == 0:
        path = config.output_path / "sizes.png"
        path.write_bytes(draw_sizes(sizes, [row["top1"] for row in rows], own.crop_size))
        say(f"written: {path}")


def _write_json(path: Path, values: Any) -> None:
    if distributed.rank() == 0:
        path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        say(f"written: {path}")
