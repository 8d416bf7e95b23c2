"""Classify image files: print the likeliest classes of each with their probabilities, or write them to a
file. Of a network trained with train.loss=binary: all classes above a threshold."""

import argparse
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from ppcls import distributed
from ppcls.cli.common import (
    add_engine_option,
    config_parser,
    log,
    open_model,
    read_model,
    save_config,
)
from ppcls.errors import ConfigError, counted
from ppcls.files import require_place
from ppcls.progress import progress_bar
from ppcls.streams import has_reader

if TYPE_CHECKING:
    from ppcls.data.dataset import Dataset
    from ppcls.inference.predictions import Prediction
    from ppcls.inference.predictor import Predictor

TOPK = 5


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    require_places(args)
    resolved = read_model(args)
    if args.explain is not None and resolved.export is not None:
        raise ConfigError(
            f"--explain needs the network itself, and {resolved.export} is an exported model. Give the run "
            "or the config in its place."
        )

    from ppcls.data.open import open_images
    from ppcls.inference.predictor import BULK
    from ppcls.inference.saved import require_no_parts

    outputs = [path for path in (args.output, args.embeddings) if path is not None]
    for path in outputs:
        path.parent.mkdir(parents=True, exist_ok=True)
    if outputs and not args.resume:
        require_no_parts(outputs[0])
    dataset = open_images(args.input)
    topk, bulk = args.topk or TOPK, len(dataset) >= BULK
    predictor = open_model(
        resolved, args.engine, default="eager", precision=args.precision, topk=topk, bulk=bulk
    )
    set_threshold(predictor, args)
    if args.embeddings is not None:
        predictor.require_embeddings()
    if args.check:
        done = list(islice(predictor.stream(dataset), predictor.batch_size))
        failed = sum(prediction.error is not None for prediction in done)
        log(f"check passed: {len(done)} of {len(dataset)} files were classified, {failed} unreadable")
        return 0
    if resolved.export is None:
        try:
            save_config(resolved.config, "infer.yaml")
        except ConfigError as error:  # inference needs no such folder
            log(f"note: without infer.yaml: {error}")
    if outputs:
        code = to_files(predictor, dataset, outputs[0], args.embeddings)
    else:
        code = to_screen(predictor, dataset)
    if args.explain is not None:
        explain_files(predictor, dataset, args.explain)
    return code


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the command's options. Raises ConfigError as `require_consistent` does."""
    parser = config_parser(__doc__, takes_exports=True)
    add_engine_option(parser, default="eager")
    add_options(parser)
    args = parser.parse_args(argv)
    require_consistent(args)
    return args


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that this command alone has."""
    parser.add_argument(
        "-i",
        "--input",
        required=True,
        help="an image, a folder (with all below it), a glob pattern, or shards",
    )
    parser.add_argument("--topk", type=int, help=f"classes shown for each image (default {TOPK})")
    parser.add_argument(
        "--threshold",
        type=float,
        metavar="P",
        help="of a network trained with train.loss=binary: show each class of at least this probability "
        "(default 0.5)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="write the predictions to this .csv or .json file instead of the screen",
    )
    parser.add_argument(
        "--embeddings",
        type=Path,
        metavar="FILE",
        help="write each image's embedding, what the classifier sees, to this .npy file, float32 [files, D], "
        "and the files' names to a .csv beside it; without --output no classes are shown",
    )
    parser.add_argument(
        "--explain",
        type=Path,
        metavar="DIR",
        help="write a picture of each image to this folder, which shows the regions that speak for its "
        "class; not of an exported model",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="with --output or --embeddings: resume a run that was interrupted",
    )


def require_consistent(args: argparse.Namespace) -> None:
    """Raise ConfigError for impossible values, and for options that exclude each other."""
    if args.topk is not None and args.topk < 1:
        raise ConfigError(f"--topk must be at least 1. Received: {args.topk}")
    if args.threshold is not None and not 0 <= args.threshold <= 1:
        raise ConfigError(f"--threshold must be from 0 to 1. Received: {args.threshold:g}")
    if args.output is not None and args.output.suffix.lower() not in (".csv", ".json"):
        raise ConfigError(f"--output must end in .csv or .json. Received: {args.output}")
    if args.embeddings is not None:
        if args.embeddings.suffix != ".npy":
            raise ConfigError(f"--embeddings must end in .npy. Received: {args.embeddings}")
        if args.output == args.embeddings.with_suffix(".csv"):
            raise ConfigError(
                f"--embeddings writes the files' names to {args.output}: choose another --output."
            )
    elif args.output is None and (args.resume or distributed.world_size() > 1):
        raise ConfigError("--resume and several processes need a file to write to: --output FILE.csv")
    for option, own in (("engine", (None, "eager")), ("precision", ("float",))):
        given = getattr(args, option)
        if args.explain is not None and given not in own:
            raise ConfigError(
                f"--explain runs the network itself. Received: --{option} {given}. Leave it out."
            )


def require_places(args: argparse.Namespace) -> None:
    """Raise ConfigError if a file that the options request cannot be written."""
    for option, path in (("--output", args.output), ("--embeddings", args.embeddings)):
        if path is not None:
            require_place(path, option)
    if args.explain is not None:
        require_place(args.explain, "--explain", "picture.png")


def set_threshold(predictor: "Predictor", args: argparse.Namespace) -> None:
    """Give the predictor the threshold. Raises ConfigError for an option that its network does not have."""
    if predictor.activation == "softmax" and args.threshold is not None:
        raise ConfigError(
            "--threshold is for networks trained with train.loss=binary; this one divides a probability of 1 "
            f"among its classes. Received: {args.threshold:g}. Give --topk in its place."
        )
    if predictor.activation == "sigmoid" and args.topk is not None:
        raise ConfigError(
            "This network was trained with train.loss=binary: it decides on each class by itself. Received: "
            f"--topk {args.topk}. Give --threshold P in its place."
        )
    predictor.threshold = predictor.threshold if args.threshold is None else args.threshold


def to_screen(predictor: "Predictor", dataset: "Dataset") -> int:
    failed = []
    with progress_bar(len(dataset), "classify") if len(dataset) > 1 else nullcontext() as bar:
        for prediction in predictor.stream(dataset):
            if bar is not None:
                bar.update()
                bar.clear()
            print(format_line(prediction))
            if prediction.error is not None:
                failed.append(prediction)
            if not has_reader():
                break
    for prediction in failed:
        print(f"unreadable: {prediction.file}: {prediction.error}", file=sys.stderr)
    return 1 if failed else 0


def to_files(predictor: "Predictor", dataset: "Dataset", output: Path, embeddings: Path | None = None) -> int:
    """Write the predictions of all processes: each writes its share to a part, and the first merges the
    parts. embeddings: their file, which may be the only output."""
    from ppcls.inference.saved import files_done, merge, next_part, run_header, write_part

    rank, world_size = distributed.rank(), distributed.world_size()
    files = [dataset.name(index) for index in range(len(dataset))]
    header = run_header(predictor, files, embeddings=embeddings is not None)
    if any(theirs != header for theirs in distributed.gather(header)):
        raise ConfigError(
            "The processes found different files or networks. All need the same ones under the same paths."
        )
    done = files_done(output, header)
    if done:
        log(f"resuming: {len(done)} of {len(files)} files are done")
    share = [index for index, file in enumerate(files) if file not in done][rank::world_size]
    part = next_part(output, rank)
    distributed.gather(None)  # no process writes before all have read
    distributed.run_together(lambda: write_part(part, header, predictor, dataset.select(share)))
    size = header.get("embeddings", 0)
    sure = predictor.calibration is not None and predictor.calibration.threshold is not None
    result = distributed.run_together(
        lambda: merge(output, files, embeddings, size, sure=sure) if rank == 0 else None
    )
    classified, failed = distributed.gather(result)[0]
    log(f"written: {output}, {counted(classified, 'file')} classified, {failed} unreadable")
    if embeddings is not None:
        names = embeddings.with_suffix(".csv")
        log(f"embeddings: {embeddings}, float32 [{len(files)}, {size}]; the files of its rows: {names}")
    return 1 if failed else 0


def explain_files(predictor: "Predictor", dataset: "Dataset", folder: Path) -> None:
    """Explain the files, each process its share. Unreadable files have been reported already."""
    from ppcls.evaluation.explain import explain

    written = distributed.gather(distributed.run_together(lambda: explain(predictor, dataset, folder)))
    log(f"written: {counted(sum(written), 'picture')} in {folder}")


def format_line(prediction: "Prediction") -> str:
    if prediction.error is not None:
        return f"{prediction.file}: unreadable"
    best = zip(prediction.labels, prediction.probabilities, strict=True)
    mark = "unsure; " if prediction.is_sure is False else ""
    shown = "; ".join(f"{label} {p:.4f}" for label, p in best)
    return f"{prediction.file}: {mark}{shown or 'no class above the threshold'}"
