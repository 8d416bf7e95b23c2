"""Write the pages of docs/models, their plots and the README's table, from published and measured figures."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ppcls.commands import run
from ppcls.errors import DataError

ROOT = Path(__file__).parents[1]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--measured",
        nargs="+",
        type=Path,
        default=[],
        metavar="PATH",
        help="first write these results into docs/models/measured.json, in place of older ones: folders "
        "of tools/eval.py, and files of tools/benchmark.py engines --json",
    )
    parser.add_argument(
        "--busy", action="store_true", help="other programs ran while these latencies were measured"
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit code 1 if a file is out of date"
    )
    parser.add_argument("--root", type=Path, default=ROOT, metavar="DIR", help="another clone of the project")
    args = parser.parse_args(argv)
    if not (args.root / "README.md").is_file():
        raise DataError(
            f"--root must be a clone of this project. Received: {args.root}, which has no README.md. Give a "
            "clone: --root DIR"
        )
    if args.check and args.measured:
        raise DataError("--check writes nothing, but --measured writes results to a file. Give one of them.")

    from zoo.measured import merge, read_measured, to_json
    from zoo.write import MEASURED, stale_files, write_files

    if args.measured:
        measured = read_measured(args.root / MEASURED)
        for path in args.measured:
            print(merge(measured, path, args.busy))
        (args.root / MEASURED).parent.mkdir(parents=True, exist_ok=True)
        (args.root / MEASURED).write_text(to_json(measured), encoding="utf-8")
    if args.check:
        stale = stale_files(args.root)
        for path in stale:
            print(f"old: {path}")
        print("run python tools/model_zoo.py" if stale else "all files are up to date")
        return 1 if stale else 0
    for path in write_files(args.root):
        print(f"written: {path}")
    return 0


if __name__ == "__main__":
    run(main)
