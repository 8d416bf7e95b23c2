"""python tools/model_zoo.py --help"""

from ppcls.cli.common import run
from ppcls.cli.model_zoo import main

if __name__ == "__main__":
    run(main)
