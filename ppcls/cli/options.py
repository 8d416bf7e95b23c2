"""List the options of a config with their types, defaults and meanings."""

import argparse
from collections.abc import Sequence

from ppcls.options import find_options


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "words",
        nargs="*",
        metavar="WORD",
        help="a section, a part of a name, or what another project calls it (default: all options)",
    )
    for option in find_options(parser.parse_args(argv).words):
        print(
            f"{option.name} = {option.default}" if option.default else f"{option.name}, which must be given"
        )
        print(f"    {option.values}\n    {option.meaning}")
    return 0
