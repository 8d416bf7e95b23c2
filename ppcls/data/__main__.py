"""python -m ppcls.data is the command `ppcls data`."""

from ppcls.cli.data import main
from ppcls.commands import run

if __name__ == "__main__":
    run(main)
