"""python tools/infer.py --help"""

from ppcls.cli.common import run
from ppcls.cli.infer import main

if __name__ == "__main__":
    run(main)
