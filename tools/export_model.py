"""python tools/export_model.py --help"""

from ppcls.cli.export import main
from ppcls.commands import run

if __name__ == "__main__":
    run(main)
