"""A training run from its config to its end, new or resumed."""

import signal
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from ppcls import distributed
from ppcls.build import Log, Network, build_to_train
from ppcls.commands import command_line
from ppcls.config import Config
from ppcls.config_files import CHECKPOINTS
from ppcls.data.dataset import Dataset
from ppcls.data.open import open_split, require_images, require_split
from ppcls.data.overlap import check_overlap
from ppcls.errors import DataError, Stopped
from ppcls.training.checkpoint import find_state, read_state, states_in
from ppcls.training.loop import Trainer
from ppcls.training.record import RunRecord, refuse_finished_run, write_together
from ppcls.training.same_run import check_start_file
from ppcls.training.state import SavedState
from ppcls.weights import WeightsInfo

if TYPE_CHECKING:
    from PIL import Image


class Found(NamedTuple):
    """A state to resume from, and its file."""

    path: Path
    state: SavedState


def open_run(config: Config, requested: str | None, num_workers: int, log: Log) -> Trainer:
    """Start Paddle, build the network, open the data, and take over the state of a resumed run.

    requested: "auto" or a state's file, to resume from; None for a new run. Raises PpclsError for anything
    that does not fit.
    """
    data = config.data
    require_split(data, "train")
    require_split(data, "eval")
    found = None if requested is None else find_run_state(config, requested, log)
    network = build_network(config, found, log)
    num_classes, names = config.model.num_classes, network.class_names
    train_set = open_split(data, "train", num_classes=num_classes, class_names=names)
    eval_set = open_split(data, "eval", num_classes=num_classes, class_names=train_set.class_names)
    require_images(train_set, data.train_root, "-o data.train_root=")
    require_images(eval_set, data.eval_root, "-o data.eval_root=")
    look_for_overlap(config, train_set, eval_set, is_resumed=found is not None, log=log)
    network = network._replace(class_names=train_set.class_names)
    trainer = Trainer(config, network, train_set, eval_set, num_workers)
    log(str(trainer.state.kernels))
    if found is not None:
        resume_run(trainer, found, log)
    return trainer


def find_run_state(config: Config, requested: str, log: Log) -> Found | None:
    """Find and read the state that `--resume` requests; None if a new run is to begin.

    Rank 0 decides for all, as it may rename damaged files. Raises PpclsError: see find_state.
    """
    output = config.output_path
    if distributed.world_size() > 1:
        distributed.start(config.device)

    def find() -> Path | None:
        if distributed.rank() != 0:
            return None
        path = find_state(requested, output, log)
        own = [known.resolve() for known in states_in(output / CHECKPOINTS)]
        if path is None or path.resolve() not in own:
            refuse_finished_run(output)
        return path

    path = distributed.gather(distributed.run_together(find))[0]
    if path is None:
        log(f"{output} holds no state to resume from: starting a new run")
        return None
    return Found(path, distributed.run_together(lambda: read_state(path)))


def build_network(config: Config, found: Found | None, log: Log) -> Network:
    """Build the network of a run. A resumed one has the start that its state records.

    A state of version 1 may have no record: then the file that training started from is read again.
    """
    if found is None:
        return build_to_train(config, log)
    train, header = config.train, found.state.header
    if "start" not in header:
        own = yaml.safe_load(header["config"])["train"]
        if train.start_from is None:
            train = replace(train, start_from=own["start_from"], start_variant=own["start_variant"])
        return build_to_train(replace(config, train=train), log)
    if header["start"] is None:  # random weights, whatever train.start_from says by now
        train = replace(train, start_from=None, start_variant=None, reset_head=False)
        return build_to_train(replace(config, train=train), log)
    start = WeightsInfo.from_dict(header["start"])
    is_first = distributed.rank() == 0
    for note in distributed.run_together(lambda: check_start_file(start) if is_first else []):
        log(f"note: {note}")
    return build_to_train(config, log, start)


def look_for_overlap(
    config: Config, train_set: Dataset, eval_set: Dataset, *, is_resumed: bool, log: Log
) -> None:
    """Raise DataError, in all processes, for evaluation images that are training images too, unless
    data.allow_overlap says so. A resumed run began with them, and gets a note. Rank 0 looks for all."""
    data, may_share = config.data, config.data.allow_overlap or is_resumed

    def look() -> list[str]:
        return [] if distributed.rank() else check_overlap(data, train_set, eval_set, may_share=may_share)

    for note in distributed.run_together(look):
        log(f"note: {note}")


def run_to_the_end(trainer: Trainer, log: Log) -> dict[str, Any]:
    """Train the epochs of a new run, or the rest of a resumed one, and write what it leaves in output_dir.

    Returns the best epoch's line of metrics.jsonl. Raises Stopped after a signal.
    """
    record = None
    if distributed.rank() == 0:
        updates = trainer.state.updates if trainer.is_resumed else None
        record = RunRecord(trainer.config, trainer.network, updates)
    try:
        if trainer.is_resumed:
            write_together(record, lambda own: own.write_metrics(trainer.state.progress))
            check_best(trainer, record, log)
        else:
            write_together(record, lambda own: own.add_samples(draw_first_batch(trainer)[0]))
        return trainer.train(record, log)
    except Stopped as stop:
        progress = trainer.state.progress
        log(
            f"stopped by {signal.Signals(stop.number).name}: epoch {progress.epoch + 1}, step "
            f"{progress.step} of {trainer.length.steps_of(progress.epoch)} is saved in "
            f"{trainer.config.output_path}; resume with the same command and --resume auto"
        )
        raise
    finally:
        if record is not None:
            record.close()


def resume_run(trainer: Trainer, found: Found, log: Log) -> None:
    """Have the trainer take over a state. Raises ConfigError if it would be another run."""
    for note in trainer.resume(found.state):
        log(f"note: {note}")
    progress, epochs = trainer.state.progress, trainer.length.epochs
    if progress.epoch >= epochs:
        log(f"the run in {found.path} is finished: {progress.epoch} of {epochs} epochs")
    else:
        steps = trainer.length.steps_of(progress.epoch)
        where = f"epoch {progress.epoch + 1}, step {progress.step} of {steps}"
        log(f"resumed at {where}, from {found.path}")


def check_best(trainer: Trainer, record: RunRecord | None, log: Log) -> None:
    """Forget the best epoch if its weights are not in output_dir, which may be another than the state's."""
    progress = trainer.state.progress
    is_unwritten = progress.step == 0 and progress.history[-1:] == [progress.best]
    best_epoch = distributed.gather(record.best_epoch() if record else None)[0]
    if progress.best and not is_unwritten and best_epoch != progress.best["epoch"]:
        log(
            f"note: the weights of the best epoch, {progress.best['epoch']}, are not here; best/ starts again"
        )
        progress.best = None


def draw_first_batch(trainer: Trainer) -> "tuple[Image.Image, int]":
    """Draw rank 0's first batch of epoch 0. Returns the picture and its number of images.

    Raises DataError if no image can be read.
    """
    from ppcls.data.show import MOST_IMAGES, draw_batch

    batch = next(trainer.batches(0))
    if not len(batch.images):
        raise DataError(
            f"None of the first batch's images can be read, the first of them {batch.unreadable[0].where}. "
            f"Repair the data: {command_line('data', 'check')}."
        )
    names = trainer.network.class_names
    picture = draw_batch(batch, trainer.network.preprocessing, names.names if names else None)
    return picture, min(len(batch.images), MOST_IMAGES)
