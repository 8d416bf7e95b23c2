"""Train the network of golden/format1 in a process of its own, which ends as by SIGKILL after an update.

python tests/kill_tiny.py UPDATES ARGUMENTS... (those of tools/train.py; 0 updates: train to the end)
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "golden/format1"))
import tiny  # noqa: E402, F401

from ppcls.cli import train  # noqa: E402
from ppcls.commands import run  # noqa: E402
from ppcls.training.loop import Trainer  # noqa: E402


def main(updates, arguments):
    train_step = Trainer.train_step

    def step_and_end(self, batches, rate, step):
        update = train_step(self, batches, rate, step)
        if step + 1 == updates:
            os._exit(9)
        return update

    Trainer.train_step = step_and_end
    run(lambda _: train.main(arguments))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
