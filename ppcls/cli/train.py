"""Train or fine-tune a network."""

import argparse
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ppcls import distributed
from ppcls.cli.common import config_parser, log, num_workers, read_config
from ppcls.commands import command_line
from ppcls.config import Config
from ppcls.config_files import best_weights
from ppcls.errors import ConfigError, counted
from ppcls.files import locked, write_aside

if TYPE_CHECKING:
    from ppcls.training.loop import Trainer

# Options of evaluation that were options of training before.
START = {
    "model.weights": "train.start_from",
    "model.variant": "train.start_variant",
    "model.averaged": "train.start_averaged",
}


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    refuse_options_of_evaluation(args.override)
    config = read_config(args, to_train=True)
    config = replace(config, model=replace(config.model, weights=None, variant=None, averaged=True))
    writes = not args.check and args.show_batch is None
    with locked(config.output_path) if writes and distributed.rank() == 0 else nullcontext():
        return train(config, args, writes)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the command's options. Raises ConfigError for those that exclude each other."""
    parser = config_parser(__doc__)
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier run in output_dir")
    parser.add_argument(
        "--resume",
        metavar="auto|FILE",
        help="resume an interrupted run: from the newest good state in output_dir, or from a file "
        "checkpoints/state-*.safetensors",
    )
    parser.add_argument(
        "--show-batch",
        type=Path,
        metavar="FILE.png",
        help="draw the first batch as the network will see it, and stop",
    )
    args = parser.parse_args(argv)
    if args.show_batch is not None and args.show_batch.suffix.lower() != ".png":
        raise ConfigError(
            f"--show-batch writes a PNG file: its name must end in .png. Received: {args.show_batch}"
        )
    if args.resume is not None and args.overwrite:
        raise ConfigError("--resume needs the run that --overwrite deletes: give one of them.")
    return args


def refuse_options_of_evaluation(overrides: Sequence[str]) -> None:
    """Raise ConfigError for an override that said, in earlier versions, what training starts from."""
    for override in overrides:
        option, _, text = override.partition("=")
        names = [option.strip()]
        if names == ["model"]:
            with suppress(yaml.YAMLError, ValueError, RecursionError):  # which load_config reports
                names += [f"model.{name}" for name in yaml.safe_load(text) or ()]
        for name in names:
            if name in START:
                raise ConfigError(
                    f"{name} says what is evaluated, exported and run; training does not use it. Training "
                    f"starts from train.start_from, null for random weights (and train.start_variant): give "
                    f"{START[name]}. Received: {override}"
                )


def train(config: Config, args: argparse.Namespace, writes: bool) -> int:
    """Train, or do what --check and --show-batch request. Rank 0 has locked output_dir if it `writes`."""
    from ppcls.data.dataset import describe_classes
    from ppcls.data.sampling import imbalance_hint
    from ppcls.training.record import refuse_finished_run
    from ppcls.training.run import open_run, run_to_the_end

    if writes and not args.overwrite and args.resume is None:
        refuse_finished_run(config.output_path)
    trainer = open_run(config, args.resume if writes else None, num_workers(config), log)
    log(
        f"{counted(len(trainer.train_set), 'image')} to train, {len(trainer.eval_set)} to evaluate; "
        f"{trainer.length}, global batch {trainer.global_batch}; learning rate {config.optim.lr:g} for 256 "
        f"images, {trainer.state.peak_lr:g} for this batch"
    )
    log_short_epochs(trainer)
    for part, dataset in (("train", trainer.train_set), ("eval", trainer.eval_set)):
        log(f"{part}: {describe_classes(dataset, config.model.num_classes)}")
    if hint := imbalance_hint(config, trainer.train_set.all_labels):
        log(f"note: {hint}")
    if args.show_batch is not None:
        show_batch(trainer, args.show_batch)
        return 0
    if args.check:
        batch = next(trainer.batches(0))
        log(f"check passed: a batch of {list(batch.images.shape)} was read; nothing was trained or written")
        return 0
    with trainer.signals, distributed.stalls_shown():
        best = run_to_the_end(trainer, log)
    run = config.output_path
    if distributed.rank() == 0:
        from ppcls.training.curves import summarise

        log(f"{summarise(run, config.train.measure)}\ncurves in {run / 'curves.png'}")
    print_best(best, trainer)
    log(f"next: {command_line('eval', run)}")
    return 0


FEW_IMAGES = 50  # of an evaluation, below which its result is hardly more than a guess


def print_best(best: dict[str, Any], trainer: "Trainer") -> None:
    """Print the measures of the best epoch, from its line of metrics.jsonl; of few classes their recalls."""
    from ppcls.evaluation.evaluate import describe_each
    from ppcls.evaluation.metrics import MEASURES
    from ppcls.intervals import interval_of

    config, names = trainer.config, trainer.network.class_names
    for key, measure in (("class_recall", "recall"), ("average_precision", "average precision")):
        if f"eval_{key}" in best:  # not in those of earlier versions either
            shown_names, intervals = names.names if names else None, best.get(f"eval_{key}_interval")
            log(describe_each(measure, best[f"eval_{key}"], shown_names, intervals))
    shown = {config.train.measure: None, "top1": None}  # the one that decides first
    count, epoch = best["eval_count"], best["epoch"]
    values = ", ".join(f"{MEASURES[name]} {best[f'eval_{name}']:.4f}" for name in shown)
    values += " (95%: {:.4f} to {:.4f})".format(*interval_of(best["eval_top1"], count))
    weights = best_weights(config.output_path)
    log(f"best {values}, of epoch {epoch}, on {counted(count, 'image')}; weights in {weights}")
    if count < FEW_IMAGES:
        more = command_line("data", "split", "FOLDER", "--eval-share", "0.3", "--force")
        log(
            f"note: {count} images say little: one is {1 / count:.2f} of top-1, and they have chosen the "
            f"epoch too. More of them: {more}"
        )


def log_short_epochs(trainer: "Trainer") -> None:
    """Log what train.min_steps_per_epoch, train.images and train.freeze_epochs do, if anything."""
    train, images = trainer.config.train, trainer.steps_per_epoch * trainer.global_batch
    count = len(trainer.train_set)
    if train.images is not None:
        images = trainer.length.steps * trainer.global_batch
        log(f"the run uses {images} images, each {images / count:.2f} times on average (train.images)")
    elif images > count:
        log(f"an epoch uses each image {images / count:.1f} times (train.min_steps_per_epoch)")
    if train.freeze_epochs:
        log(f"the classifier alone is trained at first: train.freeze_epochs is {train.freeze_epochs}")


def show_batch(trainer: "Trainer", path: Path) -> None:
    """Write rank 0's first batch of epoch 0 as a PNG file."""
    from ppcls.training.run import draw_first_batch

    if distributed.rank() == 0:
        image, count = draw_first_batch(trainer)
        with write_aside(path) as aside:
            image.save(aside, "png")
        log(f"the first {count} images of the first batch are drawn in {path}; nothing was trained")
