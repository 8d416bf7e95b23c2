"""python tools/export_model.py --help"""

from ppcls.cli.common import run
from ppcls.cli.export import main

if __name__ == "__main__":
    run(main)
