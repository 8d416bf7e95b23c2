"""Train or fine-tune a network."""

import argparse
import signal
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppcls import distributed
from ppcls.cli.common import Prepared, config_parser, num_workers, prepare, say
from ppcls.config import Config, load_config
from ppcls.errors import ConfigError, DataError, Stopped
from ppcls.files import locked

if TYPE_CHECKING:
    from PIL import Image

    from ppcls.training.loop import Trainer
    from ppcls.training.record import RunRecord


def main(argv: Sequence[str] | None = None) -> int:
    parser = config_parser(__doc__)
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier run in output_dir")
    parser.add_argument(
        "--resume",
        metavar="auto|FILE",
        help="go on with an interrupted run: from the newest good state in output_dir, or from a file "
        "checkpoints/state-*.safetensors",
    )
    parser.add_argument(
        "--show-batch",
        type=Path,
        metavar="FILE.png",
        help="draw the first batch as the network will see it, and stop",
    )
    args = parser.parse_args(argv)
    config = load_config(args.config, args.override)
    if args.show_batch is not None and args.show_batch.suffix.lower() != ".png":
        raise ConfigError(
            f"--show-batch writes a PNG file: its name must end in .png. Received: {args.show_batch}"
        )
    if args.resume is not None and args.overwrite:
        raise ConfigError("--resume goes on with a run that --overwrite deletes: give one of them.")
    writes = not args.check and args.show_batch is None
    with locked(config.output_path) if writes and distributed.rank() == 0 else nullcontext():
        return train(config, args, writes)


def train(config: Config, args: argparse.Namespace, writes: bool) -> int:
    """What main does once output_dir is its own."""
    from ppcls.data.dataset import open_split, require_split
    from ppcls.training.record import WEIGHTS_FILE, refuse_finished_run

    data, num_classes = config.data, config.model.num_classes
    if writes and not args.overwrite and args.resume is None:
        refuse_finished_run(config.output_path)
    require_split(data, "train")
    require_split(data, "eval")
    prepared = prepare(config, needs_weights=False)
    train_set = open_split(data, "train", num_classes=num_classes, class_names=prepared.class_names)
    eval_set = open_split(data, "eval", num_classes=num_classes, class_names=train_set.class_names)

    from ppcls.training.loop import Trainer

    trainer = Trainer(config, prepared.model, prepared.spec, train_set, eval_set, num_workers(config))
    say(
        f"{len(train_set)} images to train, {len(eval_set)} to evaluate; {config.train.epochs} epochs of "
        f"{trainer.steps_per_epoch} steps, global batch {trainer.global_batch}; learning rate "
        f"{config.optim.lr:g} for 256 images, {trainer.peak_lr:g} for this batch"
    )
    if args.show_batch is not None:
        show_batch(trainer, args.show_batch)
        return 0
    if args.check:
        batch = next(trainer.batches(0))
        say(f"check passed: a batch of {list(batch.images.shape)} was read; nothing was trained or written")
        return 0
    with trainer.signals, distributed.stalls_shown():
        best = run_to_the_end(trainer, prepared, args.resume)
    if distributed.rank() == 0:
        from ppcls.training.curves import summarise

        say(f"{summarise(config.output_path)}\ncurves in {config.output_path / 'curves.png'}")
    weights = config.output_path / "checkpoints" / "best" / WEIGHTS_FILE
    say(f"best top-1 {best['eval_top1']:.4f}; weights in {weights}")
    about_the_start = {"reset_head": "false", "variant": "null"}  # not about the weights that came of it
    changes = [f" -o model.{k}={v}" for k, v in about_the_start.items() if getattr(config.model, k)]
    say(
        f"next: python tools/eval.py -c {config.output_path / 'train.yaml'} -o model.weights={weights}"
        + "".join(changes)
    )
    return 0


def run_to_the_end(trainer: "Trainer", prepared: Prepared, wanted: str | None) -> dict[str, Any]:
    """Train from the start or, where `wanted` says so, from a state. Returns the best epoch's line."""
    from ppcls.training.record import RunRecord, write_together

    is_resumed = wanted is not None and resume(trainer, wanted)
    record = None
    if distributed.rank() == 0:
        licence = prepared.info.licence if prepared.info else None  # what is tuned stays under it
        names, updates = trainer.train_set.class_names, trainer.updates if is_resumed else None
        record = RunRecord(trainer.config, prepared.model, prepared.spec, names, licence, updates)
    try:
        if is_resumed:
            write_together(record, lambda own: own.write_metrics(trainer.progress))
            check_best(trainer, record)
        else:
            write_together(record, lambda own: own.add_samples(draw_first_batch(trainer)[0]))
        return trainer.train(record, say)
    except Stopped as stop:
        progress = trainer.progress
        say(
            f"stopped by {signal.Signals(stop.number).name}: epoch {progress.epoch + 1}, step "
            f"{progress.step} of {trainer.steps_per_epoch} is saved in {trainer.config.output_path}; go on "
            "with the same command and --resume auto"
        )
        raise
    finally:
        if record is not None:
            record.close()


def resume(trainer: "Trainer", wanted: str) -> bool:
    """Have the trainer go on from the state that is wanted. False where a new run is to begin."""
    from ppcls.training.checkpoint import find_state, read_state, restore, states_in
    from ppcls.training.record import refuse_finished_run

    output, epochs = trainer.config.output_path, trainer.config.train.epochs

    def find() -> Path | None:  # on rank 0 alone: it may rename files
        if distributed.rank() != 0:
            return None
        path = find_state(wanted, output, say)
        if path is None or path.resolve() not in [
            known.resolve() for known in states_in(output / "checkpoints")
        ]:
            refuse_finished_run(output)
        return path

    path = distributed.gather(distributed.run_together(find))[0]
    if path is None:
        say(f"{output} holds no state to resume from: starting afresh")
        return False
    state = distributed.run_together(lambda: read_state(path))
    for note in restore(trainer, state):
        say(f"note: {note}")
    progress = trainer.progress
    where = f"epoch {progress.epoch + 1}, step {progress.step} of {trainer.steps_per_epoch}"
    if progress.epoch >= epochs:
        say(f"the run in {path} is finished: {progress.epoch} of {epochs} epochs")
    else:
        say(f"resumed at {where}, from {path}")
    return True


def check_best(trainer: "Trainer", record: "RunRecord | None") -> None:
    """Weights of a best epoch that are not in output_dir, which may be another than the state's, can't be
    kept: then the best is one of the epochs to come."""
    progress = trainer.progress
    is_written_yet = progress.step == 0 and progress.history[-1:] == [progress.best]
    found = distributed.gather(record.best_epoch() if record else None)[0]
    if progress.best and not is_written_yet and found != progress.best["epoch"]:
        say(
            f"note: the weights of the best epoch, {progress.best['epoch']}, are not here; best/ starts again"
        )
        progress.best = None


def show_batch(trainer: "Trainer", path: Path) -> None:
    """Rank 0's first batch of epoch 0 as a PNG file."""
    if distributed.rank() == 0:
        image, count = draw_first_batch(trainer)
        image.save(path)
        say(f"the first {count} images of the first batch are drawn in {path}; nothing was trained")


def draw_first_batch(trainer: "Trainer") -> "tuple[Image.Image, int]":
    """The batch as a picture, and how many images it shows. Raises DataError where none can be read."""
    from ppcls.data.show import MOST_IMAGES, draw_batch

    batch = next(trainer.batches(0))
    if not len(batch.images):
        raise DataError(
            f"None of the first batch's images can be read, the first of them {batch.unreadable[0].where}. "
            "Repair the data: python -m ppcls.data check."
        )
    names = trainer.train_set.class_names
    picture = draw_batch(batch, trainer.spec, names.names if names else None)
    return picture, min(len(batch.images), MOST_IMAGES)
