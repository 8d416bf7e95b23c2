"""python tools/train.py --help"""

from ppcls.cli.train import main
from ppcls.commands import run

if __name__ == "__main__":
    run(main)
