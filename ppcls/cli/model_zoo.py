"""Write the pages of docs/models, their plots and the README's table, from published and measured figures."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ppcls.cli.common import say
from ppcls.errors import DataError

ROOT = Path(__file__).parents[2]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--measured",
        nargs="+",
        type=Path,
        default=[],
        metavar="PATH",
        help="first put these results into docs/models/measured.json, in place of older ones: folders that "
        "tools/eval.py wrote, and files of tools/benchmark.py engines --json",
    )
    parser.add_argument(
        "--busy", action="store_true", help="other programs ran while these latencies were measured"
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where files are old")
    parser.add_argument("--root", type=Path, default=ROOT, metavar="DIR", help="the project (default: this)")
    args = parser.parse_args(argv)
    if not (args.root / "README.md").is_file():
        raise DataError(
            f"{args.root} holds no README.md: it is no clone of this project. Give one: --root DIR"
        )
    if args.check and args.measured:
        raise DataError("--check writes nothing, but --measured puts results into a file. Give one of them.")

    from ppcls.zoo.measured import merge, read_measured, to_json
    from ppcls.zoo.write import MEASURED, stale_files, write_files

    if args.measured:
        measured = read_measured(args.root / MEASURED)
        for path in args.measured:
            say(merge(measured, path, args.busy))
        (args.root / MEASURED).parent.mkdir(parents=True, exist_ok=True)
        (args.root / MEASURED).write_text(to_json(measured), encoding="utf-8")
    if args.check:
        stale = stale_files(args.root)
        for path in stale:
            say(f"old: {path}")
        say("run python tools/model_zoo.py" if stale else "all files are as the code writes them")
        return 1 if stale else 0
    for path in write_files(args.root):
        say(f"written: {path}")
    return 0
