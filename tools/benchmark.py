"""python tools/benchmark.py --help"""

from ppcls.cli.benchmark import main
from ppcls.commands import run

if __name__ == "__main__":
    run(main)
