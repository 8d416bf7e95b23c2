"""List the options of a config with their types, defaults and meanings."""

import argparse
from collections.abc import Sequence

from ppcls.options import find_options, to_markdown


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "words",
        nargs="*",
        metavar="WORD",
        help="a section, a part of a name, a pattern such as 'optim.*', or what another project calls it "
        "(default: all options)",
    )
    parser.add_argument("--markdown", action="store_true", help="print them as docs/options.md has them")
    args = parser.parse_args(argv)
    options = find_options(args.words)
    if args.markdown:
        print(to_markdown(options), end="")
        return 0
    for option in options:
        print(
            f"{option.name} = {option.default}" if option.default else f"{option.name}, which must be given"
        )
        print(f"    {option.values}\n    {option.meaning}")
    return 0
