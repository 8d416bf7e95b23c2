"""python tools/convert_weights.py --help"""

from ppcls.cli.common import run
from ppcls.cli.convert import main

if __name__ == "__main__":
    run(main)
