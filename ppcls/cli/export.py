"""Export a trained network for Paddle Inference, ONNX Runtime and OpenVINO, to run without this project."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from ppcls import distributed
from ppcls.cli.common import config_parser, log, read_config
from ppcls.commands import command_line
from ppcls.config import Config
from ppcls.config_files import run_of_checkpoint
from ppcls.errors import ConfigError
from ppcls.inference.formats import FORMATS
from ppcls.inference.formats.format import ExportOptions, Int8For, Int8Options
from ppcls.inference.formats.onnx import OPSET
from ppcls.preprocessing import Preprocessing

if TYPE_CHECKING:
    from paddle import nn

    from ppcls.inference.calibration import Calibration


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    config = read_config(args)
    if distributed.world_size() > 1:
        raise ConfigError("The export runs as one process. Start it without paddle.distributed.launch.")
    from ppcls.build import build_to_run
    from ppcls.inference.eager import describe
    from ppcls.inference.export import export_model, require_free, require_writable
    from ppcls.inference.formats import writable_formats
    from ppcls.inference.int8_forms import log_speed

    output = config.output_path / "exported" if args.output is None else Path(args.output)
    options = ExportOptions(
        softmax=args.softmax,
        embeddings=args.embeddings,
        fp16=args.fp16,
        opset=args.opset,
        batch_size=args.batch_size,
        image_size=args.image_size,
        int8=int8_options(args, config),
    )
    require_free(output, args.overwrite)
    model, weights, preprocessing, class_names = build_to_run(config, log)
    formats = args.formats
    if formats is None:
        formats, missing = writable_formats(model, options)
        for name, reason in missing.items():
            log(f"note: without {name}: {reason}")
    description = describe(model, preprocessing, class_names, weights)
    require_writable(model, description, formats, options)
    calibration = choose_calibration(args, config, model, preprocessing)
    if args.check:
        log(f"check passed: {', '.join(formats)} can be written to {output}; nothing was written")
        return 0
    artifact = export_model(
        model,
        output,
        replace(description, calibration=calibration),
        formats=formats,
        threads=distributed.cores(),
        options=options,
        overwrite=args.overwrite,
        log=log,
    )
    log_speed(output, artifact, distributed.cores(), log)
    log(f"written: {output}; it returns {artifact.output}; license: {artifact.license or 'not stated'}")
    log(f"next: {command_line('infer', output, '-i', 'IMAGE_OR_FOLDER')}")
    return 0


def choose_calibration(
    args: argparse.Namespace, config: Config, model: "nn.Layer", preprocessing: Preprocessing
) -> "Calibration | None":
    """Return the calibration that --calibration names, or that lies in the folder of the run that is exported
    and fits; None without one. Raises ConfigError for one that was named and does not fit."""
    from ppcls.inference.calibration import CALIBRATION, Subject, read_calibration
    from ppcls.inference.engines import ENGINES
    from ppcls.weights import hash_parameters

    given = args.calibration
    if given == "none":
        return None
    path = Path(given) if given is not None else config.output_path / CALIBRATION
    is_runs = run_of_checkpoint(Path(config.model.weights or "")) is not None
    if given is None and not (is_runs and path.is_file()):
        return None
    precisions = ["float16" if args.fp16 else "float32"]
    precisions += [name for name, engine in ENGINES.items() if engine.is_int8 and args.int8 is not None]
    try:
        found = read_calibration(path, Subject(hash_parameters(model), preprocessing), precisions)
    except ConfigError as error:
        if given is not None:
            raise
        log(f"note: without a calibration: {error}")
        return None
    sure = "no answer is marked" if found.threshold is None else f"below {found.threshold:.4f} it is unsure"
    log(f"calibration: {path}; temperature {found.temperature:.4f}, {sure} (--calibration none: without)")
    return found


def int8_options(args: argparse.Namespace, config: Config) -> Int8Options | None:
    """Return the options of --int8, with its pictures opened; None without it."""
    values = {name: getattr(args, f"int8_{name}") for name in ("images", "agreement", "made_for", "minutes")}
    given = {name: value for name, value in values.items() if value is not None}
    if args.int8 is None:
        if given:
            raise ConfigError("The options --int8-... need pictures: --int8 LIST_OR_FOLDER.")
        return None
    from ppcls.data.open import open_calibration

    return Int8Options(open_calibration(args.int8, config.data), on_error=config.data.on_error, **given)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = config_parser(__doc__)
    parser.add_argument(
        "--output", metavar="DIR", help="the folder to write (default: exported, in the run's folder)"
    )
    parser.add_argument(
        "--formats",
        nargs="+",
        choices=tuple(FORMATS),
        metavar="FORMAT",
        help=f"some of {', '.join(FORMATS)} (default: all whose converters are installed, but triton)",
    )
    parser.add_argument(
        "--softmax",
        action="store_true",
        help="return probabilities instead of logits (of a network trained with train.loss=binary: the "
        "sigmoids)",
    )
    parser.add_argument(
        "--embeddings",
        action="store_true",
        help="return the embeddings too, what the classifier sees, as a second output",
    )
    parser.add_argument(
        "--fp16",
        action="store_true",
        help="store the weights in half precision, which halves the files of onnx and openvino; engines "
        "still compute in float32",
    )
    parser.add_argument("--opset", type=int, metavar="N", help=f"ONNX's operator set (default {OPSET})")
    parser.add_argument(
        "--batch-size", type=int, metavar="N", help="take batches of N images only (default: of any number)"
    )
    parser.add_argument(
        "--image-size",
        type=int,
        metavar="S",
        help="take images of S x S pixels only, as preprocessing crops them (default: of any size)",
    )
    parser.add_argument(
        "--calibration",
        metavar="FILE",
        help="say how sure each answer is, by the calibration.json that `eval --calibrate` wrote; none: do "
        "not (default: that in the folder of the run that is exported, if it is of these weights)",
    )
    add_int8_options(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace an exported model in DIR")
    return parser.parse_args(argv)


def add_int8_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--int8",
        metavar="DATA",
        help="add int8 forms, calibrated and tested on these pictures: a list file, a folder, a glob pattern "
        "or shards, like what the network will see; labels are not needed",
    )
    parser.add_argument(
        "--int8-images",
        type=int,
        metavar="N",
        help=f"pictures that are drawn from them (default {Int8Options.images})",
    )
    parser.add_argument(
        "--int8-agreement",
        type=float,
        metavar="SHARE",
        help="of them for which the same class must come first as in float (default "
        f"{Int8Options.agreement})",
    )
    parser.add_argument(
        "--int8-for",
        dest="int8_made_for",
        choices=get_args(Int8For),
        help=f"the processors that will run it (default {Int8Options.made_for}): vnni are those with VNNI or "
        "AMX alone, which is more exact there and wrong elsewhere",
    )
    parser.add_argument(
        "--int8-minutes",
        type=float,
        metavar="M",
        help="if it does not agree: let accuracy control search the layers that must stay in float, for M "
        "minutes and each format at most (default: without)",
    )
