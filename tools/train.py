"""python tools/train.py --help"""

from ppcls.cli.common import run
from ppcls.cli.train import main

if __name__ == "__main__":
    run(main)
