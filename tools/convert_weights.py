"""python tools/convert_weights.py --help"""

from ppcls.cli.convert import main
from ppcls.commands import run

if __name__ == "__main__":
    run(main)
