"""Export a trained network for Paddle Inference, ONNX Runtime and OpenVINO, to run without this project."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ppcls import distributed
from ppcls.cli.common import config_parser, log, read_config
from ppcls.commands import command_line
from ppcls.errors import ConfigError
from ppcls.inference.formats import FORMATS
from ppcls.inference.formats.format import ExportOptions
from ppcls.inference.formats.onnx import OPSET


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    config = read_config(args)
    if distributed.world_size() > 1:
        raise ConfigError("The export runs as one process. Start it without paddle.distributed.launch.")
    from ppcls.build import build_to_run
    from ppcls.inference.export import export_model, require_free, require_writable
    from ppcls.inference.formats import writable_formats
    from ppcls.inference.predictor import describe

    output = config.output_path / "exported" if args.output is None else Path(args.output)
    options = ExportOptions(
        softmax=args.softmax,
        embeddings=args.embeddings,
        fp16=args.fp16,
        opset=args.opset,
        batch_size=args.batch_size,
        image_size=args.image_size,
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
    if args.check:
        log(f"check passed: {', '.join(formats)} can be written to {output}; nothing was written")
        return 0
    artifact = export_model(
        model,
        output,
        description,
        formats=formats,
        threads=distributed.cores(),
        options=options,
        overwrite=args.overwrite,
        log=log,
    )
    log(f"written: {output}; it returns {artifact.output}; license: {artifact.license or 'not stated'}")
    log(f"next: {command_line('infer', output, '-i', 'IMAGE_OR_FOLDER')}")
    return 0


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
        help=f"some of {', '.join(FORMATS)} (default: all whose converters are installed)",
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
    parser.add_argument("--overwrite", action="store_true", help="replace an exported model in DIR")
    return parser.parse_args(argv)
