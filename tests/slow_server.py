"""A server whose network is a function that takes its time: FOLDER SECONDS [OPTION=VALUE...]

FOLDER/computed has a line for each batch, the number of its images. While FOLDER/dead exists, the engine
fails. While FOLDER/wait exists, the model is not opened. While FOLDER/nan exists, its outputs are NaN. At
SIGUSR1 it says how many jobs and connections are in memory. Cyclic garbage stays there, as if its collection
were long in coming.
"""

import ctypes
import gc
import signal
import sys
import time
from pathlib import Path

import numpy as np
from helpers import predictor_of

from ppcls.errors import ExportError
from ppcls.inference.fastest import to_stderr
from ppcls.preprocessing import Preprocessing
from ppcls.serving.connection import Connection
from ppcls.serving.jobs import Job
from ppcls.serving.limits import Limits
from ppcls.serving.server import listen, serve
from ppcls.typed import build_section

SIZE = 32
PREPROCESSING = Preprocessing(SIZE, SIZE, "bilinear", False, (0.5,) * 3, (0.5,) * 3)


def main() -> int:
    folder, seconds = Path(sys.argv[1]), float(sys.argv[2])
    given = dict(text.split("=") for text in sys.argv[3:])
    values = {name: float(text) if "." in text else int(text) for name, text in given.items()}
    limits = build_section(Limits, values, {})

    def run(images: np.ndarray) -> np.ndarray:
        if (folder / "dead").exists():
            raise RuntimeError("the engine is dead")
        if images.any():  # it is not the warm-up
            with (folder / "computed").open("a") as file:
                file.write(f"{len(images)}\n")
            time.sleep(seconds)
        return images.mean(axis=(2, 3)) * np.float32("nan" if (folder / "nan").exists() else 1)

    def open_model():
        while (folder / "wait").exists():
            time.sleep(0.01)
        for number in (signal.SIGTERM, signal.SIGINT):
            ctypes.CDLL(None).signal(number, 0)  # as a library that takes signals when it is loaded
        if (folder / "broken").exists():
            raise ExportError("the export is broken")
        return predictor_of(run, preprocessing=PREPROCESSING, num_classes=3)

    gc.disable()
    signal.signal(
        signal.SIGUSR1, lambda *_: to_stderr(f"in memory: {count_alive(Job)} {count_alive(Connection)}")
    )
    return serve({"slow": open_model}, listen("127.0.0.1", 0), limits, to_stderr)


def count_alive(kind: type) -> int:
    return sum(isinstance(item, kind) for item in gc.get_objects())


if __name__ == "__main__":
    sys.exit(main())
