"""Train or fine-tune a network."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ppcls import distributed
from ppcls.cli.common import config_parser, num_workers, prepare, say
from ppcls.config import load_config
from ppcls.errors import ConfigError, DataError

if TYPE_CHECKING:
    from ppcls.training.loop import Trainer


def main(argv: Sequence[str] | None = None) -> int:
    parser = config_parser(__doc__)
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier run in output_dir")
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

    from ppcls.data.dataset import open_dataset, require_source
    from ppcls.training.record import WEIGHTS_FILE, RunRecord, refuse_finished_run

    if not args.overwrite and not args.check and args.show_batch is None:
        refuse_finished_run(config.output_path)
    data, num_classes = config.data, config.model.num_classes
    require_source(data.train_root, data.train_list, "train")
    require_source(data.eval_root, data.eval_list, "eval")
    prepared = prepare(config, needs_weights=False)
    train_set = open_dataset(
        data.train_root,
        data.train_list,
        num_classes=num_classes,
        class_names=prepared.class_names,
        option="train",
    )
    eval_set = open_dataset(
        data.eval_root,
        data.eval_list,
        num_classes=num_classes,
        class_names=train_set.class_names,
        option="eval",
    )

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
    record = None
    if distributed.rank() == 0:
        licence = prepared.info.licence if prepared.info else None  # what is tuned stays under it
        record = RunRecord(config, prepared.model, prepared.spec, train_set.class_names, licence)
    try:
        best = trainer.train(record, say)
    finally:
        if record is not None:
            record.close()
    if distributed.rank() == 0:
        from ppcls.training.curves import summarise

        say(f"{summarise(config.output_path)}\ncurves in {config.output_path / 'curves.png'}")
    weights = config.output_path / "checkpoints" / "best" / WEIGHTS_FILE
    say(f"best top-1 {best.top1:.4f}; weights in {weights}")
    about_the_start = {"reset_head": "false", "variant": "null"}  # not about the weights that came of it
    changes = [f" -o model.{k}={v}" for k, v in about_the_start.items() if getattr(config.model, k)]
    say(
        f"next: python tools/eval.py -c {config.output_path / 'train.yaml'} -o model.weights={weights}"
        + "".join(changes)
    )
    return 0


def show_batch(trainer: "Trainer", path: Path) -> None:
    """Rank 0's first batch of epoch 0 as a PNG file."""
    from ppcls.data.show import MOST_IMAGES, draw_batch

    if distributed.rank() != 0:
        return
    batch = next(trainer.batches(0))
    if not len(batch.images):
        raise DataError(
            f"None of the first batch's images can be read, the first of them {batch.unreadable[0].where}. "
            "Repair the data: python -m ppcls.data check."
        )
    names = trainer.train_set.class_names
    draw_batch(batch, trainer.spec, names.names if names else None).save(path)
    count = min(len(batch.images), MOST_IMAGES)
    say(f"the first {count} images of the first batch are drawn in {path}; nothing was trained")
