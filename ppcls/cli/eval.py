"""Evaluate a network on labelled images: top-1, top-5 and loss, written to metrics.json in output_dir."""

import json
from collections.abc import Sequence

from ppcls import distributed
from ppcls.cli.common import config_parser, prepare, save_config, say
from ppcls.config import load_config


def main(argv: Sequence[str] | None = None) -> int:
    args = config_parser(__doc__).parse_args(argv)
    config = load_config(args.config, args.override)

    from ppcls.data.dataset import open_dataset, require_source

    if config.model.weights is not None:
        require_source(config.data.eval_root, config.data.eval_list, "eval")
    prepared = prepare(config, needs_weights=True)

    from ppcls.data.loader import EvalTransform, eval_order, load_batches
    from ppcls.evaluation.evaluate import evaluate
    from ppcls.inference.engines import EagerEngine

    data = config.data
    dataset = open_dataset(
        data.eval_root,
        data.eval_list,
        num_classes=config.model.num_classes,
        class_names=prepared.class_names,
        option="eval",
    )
    if args.check:
        order = eval_order(len(dataset), data.batch_size)[:1]
        transform = EvalTransform(prepared.spec)
        batches = load_batches(
            dataset,
            order,
            transform,
            prepared.spec,
            num_workers=prepared.num_workers,
            on_error=data.on_error,
        )
        batch = next(batches)
        say(f"check passed: a batch of {list(batch.images.shape)} of {len(dataset)} images was read")
        return 0
    result = evaluate(
        EagerEngine(prepared.model).run,
        dataset,
        prepared.spec,
        num_classes=config.model.num_classes,
        batch_size=data.batch_size,
        num_workers=prepared.num_workers,
        on_error=data.on_error,
    )
    top5 = "" if result.top5 is None else f"top-5 {result.top5:.4f}, "
    say(
        f"top-1 {result.top1:.4f}, {top5}loss {result.loss:.4f} on {result.count} images, "
        f"{result.images_per_second:.1f} images/s"
    )
    if result.unreadable:
        say(f"left out, unreadable: {len(result.unreadable)} of {len(dataset)}")
        for item in result.unreadable[:10]:
            say(f"  {item.where}: {item.reason}")
    save_config(config, "eval.yaml")
    if distributed.rank() == 0:
        path = config.output_path / "metrics.json"
        path.write_text(json.dumps(result.to_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        say(f"written: {path}")
    return 0
