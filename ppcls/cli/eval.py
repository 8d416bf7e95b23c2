"""Evaluate a network on labelled images: top-1, top-5 and loss, written to metrics.json in output_dir."""

import json
from collections.abc import Sequence

from ppcls import distributed
from ppcls.cli.common import config_parser, save_config, say
from ppcls.cli.engine import add_engine_options, open_runner, read_config


def main(argv: Sequence[str] | None = None) -> int:
    parser = config_parser(__doc__, needs_config=False)
    add_engine_options(parser, default="auto on a CPU, eager on a GPU")
    args = parser.parse_args(argv)
    config = read_config(args)

    from ppcls.data.dataset import open_dataset, require_source

    data = config.data
    if config.model.weights is not None or args.exported is not None:
        require_source(data.eval_root, data.eval_list, "eval")
    runner = open_runner(config, args.exported, args.engine or "auto", is_many=True)
    dataset = open_dataset(
        data.eval_root,
        data.eval_list,
        num_classes=config.model.num_classes,
        class_names=runner.class_names,
        option="eval",
    )

    from ppcls.data.loader import eval_order
    from ppcls.evaluation.evaluate import evaluate
    from ppcls.inference.classify import run_batches

    if args.check:
        order = eval_order(len(dataset), runner.batch_size)[:1]
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
    result = evaluate(
        runner.engine,
        dataset,
        runner.spec,
        num_classes=config.model.num_classes,
        batch_size=runner.batch_size,
        num_workers=runner.num_workers,
        on_error=data.on_error,
        is_softmax_inside=runner.is_softmax_inside,
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
