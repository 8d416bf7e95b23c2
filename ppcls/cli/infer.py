"""Classify image files: the likeliest classes of each, with their probabilities."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ppcls import distributed
from ppcls.cli.common import config_parser, save_config, say
from ppcls.cli.engine import Runner, add_engine_options, open_runner, read_config
from ppcls.errors import ConfigError
from ppcls.progress import progress_bar

if TYPE_CHECKING:
    from ppcls.inference.classify import Prediction


def main(argv: Sequence[str] | None = None) -> int:
    parser = config_parser(__doc__, needs_config=False)
    add_engine_options(parser, default="eager")
    parser.add_argument(
        "-i", "--input", required=True, help="an image, a folder (with all below it), or a glob pattern"
    )
    parser.add_argument("--topk", type=int, default=5, help="classes shown for each image (default 5)")
    parser.add_argument(
        "--output", help="write the predictions to this .csv or .json file, not to the screen"
    )
    parser.add_argument(
        "--explain", metavar="DIR", help="write there what of each image speaks for its class; needs -c"
    )
    parser.add_argument(
        "--resume", action="store_true", help="with --output: go on with a run that was cut off"
    )
    args = parser.parse_args(argv)
    if args.topk < 1:
        raise ConfigError(f"--topk must be at least 1. Received: {args.topk}")
    output = None if args.output is None else Path(args.output)
    if output is not None and output.suffix.lower() not in (".csv", ".json"):
        raise ConfigError(f"--output must end in .csv or .json. Received: {output}")
    if output is None and (args.resume or distributed.world_size() > 1):
        raise ConfigError("--resume and several processes need a file to write to: --output FILE.csv")
    if args.explain is not None and (args.exported is not None or args.engine not in (None, "eager")):
        raise ConfigError("--explain needs the network itself: give -c, no --exported and no other --engine.")
    config = read_config(args)

    from ppcls.inference.classify import find_images
    from ppcls.inference.predictor import MANY
    from ppcls.inference.shards import require_no_shards

    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        if not args.resume:
            require_no_shards(output)
    files = find_images(args.input)
    wanted = args.engine or ("auto" if args.exported else "eager")
    runner = open_runner(config, args.exported, wanted, is_many=len(files) >= MANY)
    if args.check:
        done = list(_classify(runner, files[: runner.batch_size], args.topk))
        failed = sum(prediction.error is not None for prediction in done)
        say(f"check passed: {len(done)} of {len(files)} files were classified, {failed} unreadable")
        return 0
    if args.config is not None:
        save_config(config, "infer.yaml")
    if output is None:
        code = _to_screen(runner, files, args.topk)
    else:
        code = _to_file(runner, files, args.topk, output)
    if args.explain is not None:
        _explain(runner, files, Path(args.explain))
    return code


def _classify(runner: Runner, files: Sequence[str], topk: int) -> "Iterator[Prediction]":
    from ppcls.inference.classify import classify

    return classify(
        runner.engine,
        files,
        runner.spec,
        is_softmax_inside=runner.is_softmax_inside,
        names=runner.class_names.names if runner.class_names else None,
        topk=topk,
        batch_size=runner.batch_size,
        num_workers=runner.num_workers,
    )


def _to_screen(runner: Runner, files: Sequence[str], topk: int) -> int:
    failed = []
    bar = progress_bar(len(files), "classify") if len(files) > 1 else None
    for prediction in _classify(runner, files, topk):
        if bar is not None:
            bar.update()
            bar.clear()
        print(_line(prediction))
        if prediction.error is not None:
            failed.append(prediction)
    if bar is not None:
        bar.close()
    for prediction in failed:
        print(f"unreadable: {prediction.file}: {prediction.error}", file=sys.stderr)
    return 1 if failed else 0


def _to_file(runner: Runner, files: Sequence[str], topk: int, output: Path) -> int:
    """Each process its share, into a shard; the first one puts them together when all are done."""
    from ppcls.inference.shards import ShardWriter, files_done, merge, next_shard, run_facts

    rank, world_size = distributed.rank(), distributed.world_size()
    facts = run_facts(runner.parameters, topk, files, runner.spec.to_dict())
    if any(theirs != facts for theirs in distributed.gather(facts)):
        raise ConfigError(
            "The processes found different files or networks. All need the same ones under the same paths."
        )
    done = files_done(output, facts)
    if done:
        say(f"going on: {len(done)} of {len(files)} files are done")
    left = [file for file in files if file not in done]
    shard = next_shard(output, rank)
    distributed.gather(None)  # all have looked before any writes

    def work() -> None:
        mine = left[rank::world_size]
        writer = ShardWriter(shard, facts)
        try:
            with progress_bar(len(mine), "classify") as bar:
                for prediction in _classify(runner, mine, topk):
                    writer.add(prediction)
                    bar.update()
                    if prediction.error is not None:
                        bar.clear()
                        print(f"unreadable: {prediction.file}: {prediction.error}", file=sys.stderr)
        finally:
            writer.close()

    distributed.run_together(work)
    result = distributed.run_together(lambda: merge(output, files) if rank == 0 else None)
    classified, failed = distributed.gather(result)[0]
    say(f"written: {output}, {classified} files classified, {failed} unreadable")
    return 1 if failed else 0


def _explain(runner: Runner, files: Sequence[str], folder: Path) -> None:
    """Each process its share. Unreadable files have been reported already."""
    from ppcls.inference.engines import EagerEngine
    from ppcls.inference.explain import explain

    if not isinstance(runner.engine, EagerEngine):
        raise ConfigError(f"--explain needs the network itself. Received: the engine {runner.engine.name}.")
    model = runner.engine.model

    def work() -> int:
        return explain(model, files, runner.spec, folder, num_workers=runner.num_workers)

    written = distributed.gather(distributed.run_together(work))
    say(f"written: {sum(written)} pictures in {folder}")


def _line(prediction: "Prediction") -> str:
    if prediction.error is not None:
        return f"{prediction.file}: unreadable"
    best = zip(prediction.labels, prediction.probabilities, strict=True)
    return f"{prediction.file}: " + "; ".join(f"{label} {p:.4f}" for label, p in best)
