"""Compare two evaluations on the same images: is one network better, or is it chance?"""

import argparse
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("a", "b"):
        parser.add_argument(
            name,
            type=Path,
            metavar=name.upper(),
            help="the folder that an evaluation or its --report wrote, or its metrics.json",
        )
    args = parser.parse_args(argv)
    from ppcls.evaluation.compare import describe, read_judged

    print(describe(read_judged(args.a), read_judged(args.b)))
    return 0
