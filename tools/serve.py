"""python tools/serve.py --help"""

from ppcls.cli.serve import main
from ppcls.commands import run

if __name__ == "__main__":
    run(main)
