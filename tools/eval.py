"""python tools/eval.py --help"""

from ppcls.cli.common import run
from ppcls.cli.eval import main

if __name__ == "__main__":
    run(main)
