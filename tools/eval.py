"""python tools/eval.py --help"""

from ppcls.cli.eval import main
from ppcls.commands import run

if __name__ == "__main__":
    run(main)
