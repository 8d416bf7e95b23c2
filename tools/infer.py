"""python tools/infer.py --help"""

from ppcls.cli.infer import main
from ppcls.commands import run

if __name__ == "__main__":
    run(main)
