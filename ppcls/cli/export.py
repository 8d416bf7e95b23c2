"""Export a trained network to run without its code: for Paddle Inference, ONNX Runtime and OpenVINO."""

from collections.abc import Sequence
from pathlib import Path

from ppcls import distributed
from ppcls.cli.common import config_parser, prepare, say
from ppcls.config import load_config
from ppcls.errors import ConfigError
from ppcls.inference.artifact import FORMATS


def main(argv: Sequence[str] | None = None) -> int:
    parser = config_parser(__doc__)
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="the folder to write, whole or not at all"
    )
    parser.add_argument(
        "--formats",
        nargs="+",
        choices=FORMATS,
        metavar="FORMAT",
        help=f"of {', '.join(FORMATS)} (default: all whose converters are installed)",
    )
    parser.add_argument("--softmax", action="store_true", help="return probabilities instead of logits")
    parser.add_argument("--overwrite", action="store_true", help="replace an exported model in DIR")
    args = parser.parse_args(argv)
    config = load_config(args.config, args.override)
    if distributed.world_size() > 1:
        raise ConfigError("export_model.py runs as one process. Start it without paddle.distributed.launch.")
    from ppcls.inference.export import export_model, require_free
    from ppcls.inference.formats import writable_formats

    output = Path(args.output)
    require_free(output, args.overwrite)
    prepared = prepare(config, needs_weights=True)
    formats = args.formats
    if formats is None:
        formats, missing = writable_formats(prepared.model)
        for kind, reason in missing.items():
            say(f"note: without {kind}: {reason}")
    if args.check:
        say(f"check passed: {', '.join(formats)} can be written to {output}; nothing was")
        return 0
    artifact = export_model(
        prepared.model,
        output,
        preprocessing=prepared.spec,
        class_names=prepared.class_names,
        info=prepared.info,
        formats=formats,
        threads=distributed.cores(),
        softmax=args.softmax,
        overwrite=args.overwrite,
        say=say,
    )
    say(f"written: {output}; it returns {artifact.output}; licence: {artifact.licence or 'not stated'}")
    say(f"next: python tools/infer.py --exported {output} -i IMAGE_OR_FOLDER")
    return 0
