"""Convert a file of weights between this project, PaddleClas, torchvision and timm."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ppcls import distributed
from ppcls.architectures import get_variant
from ppcls.cli.common import log
from ppcls.errors import ConfigError
from ppcls.files import require_place


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "input", help="a file of weights, or a folder with one, of any format that ppcls reads"
    )
    parser.add_argument("output", help="the file to write, ending in .safetensors or .pdparams")
    parser.add_argument("-m", "--model", required=True, help="the network, such as EfficientNetB0")
    parser.add_argument(
        "--to",
        default="ppcls",
        choices=("ppcls", "paddleclas", "torchvision", "timm"),
        help="the format of the output (default ppcls)",
    )
    parser.add_argument(
        "--variant", help="the published weights that the input holds, if its content does not identify them"
    )
    parser.add_argument(
        "--raw", action="store_true", help="of a checkpoint that has the moving average of its weights too"
    )
    args = parser.parse_args(argv)
    get_variant(args.model)
    output = Path(args.output)
    if output.suffix not in (".safetensors", ".pdparams"):
        raise ConfigError(f"The output must end in .safetensors or .pdparams. Received: {output}")

    require_place(output, "The output")

    distributed.start("cpu")
    from ppcls.weights.convert import convert

    identity = convert(Path(args.input), output, args.model, args.to, args.variant, not args.raw)
    log(f"input: {identity.source}; license of the weights: {identity.license or 'not stated'}")
    for note in identity.notes:
        log(f"note: {note}")
    log(f"written: {output}, format {args.to}")
    return 0
