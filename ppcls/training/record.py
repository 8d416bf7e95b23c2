"""The files of a training run: its config, a line for each epoch, VisualDL's curves, checkpoints."""

import json
import shutil
import struct
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ppcls import distributed
from ppcls.build import Network
from ppcls.config import Config
from ppcls.config_files import CHECKPOINTS, RUN_CONFIG, WEIGHTS_FILE, best_weights
from ppcls.errors import ConfigError
from ppcls.evaluation.metrics import MEASURES
from ppcls.files import write_aside
from ppcls.training.checkpoint import prune, state_path, states_in, write_state, writing
from ppcls.training.state import Progress, SavedState
from ppcls.weights import metadata_of, write_weights

if TYPE_CHECKING:
    from paddle import nn
    from PIL import Image

# Leftovers of a killed process: files that were being written.
HALF_WRITTEN = (
    *(".train.yaml.*", ".metrics.jsonl.*", "visualdl/.vdlrecords.*"),
    *("checkpoints/.state-*", "checkpoints/*/.model.safetensors.*"),
)
CURVES_FILE = "vdlrecords.train.log"  # VisualDL shows one file of a folder
PARTS = (RUN_CONFIG, "metrics.jsonl", "curves.png", "visualdl", CHECKPOINTS)


def refuse_finished_run(output: Path) -> None:
    """Raise ConfigError if the folder holds a run, which a new one would destroy."""
    folder = output / CHECKPOINTS
    if states_in(folder) or any(folder.glob(f"*/{WEIGHTS_FILE}")):
        raise ConfigError(
            f"{output} holds the checkpoints of an earlier run. Resume it, --resume auto, keep it and choose "
            "another folder, -o output_dir=DIR, or replace it: --overwrite."
        )


class RunRecord:
    """Writes into `output_dir`. Only rank 0 has one, and holds the folder's lock."""

    def __init__(self, config: Config, network: Network, resumed: int | None = None) -> None:
        """Open the folder of a run.

        network: its preprocessing, class names and license go into the files of weights. resumed: updates of
        the run that is resumed; later ones are cut off its curves. None: a new run, which replaces any other.
        """
        from visualdl import LogWriter

        self.output, self.options = config.output_path, config.train
        self.checkpoints = self.output / CHECKPOINTS
        for part in PARTS if resumed is None else ():
            path = self.output / part
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        for pattern in HALF_WRITTEN:
            for leftover in self.output.glob(pattern):
                leftover.unlink()
        self._write(RUN_CONFIG, config.to_yaml())
        curves = self.output / "visualdl" / CURVES_FILE
        if resumed is not None and curves.exists():
            cut_curves(curves, resumed)
        with redirect_stdout(StringIO()):  # it prints that it appends to a file
            self.scalars = LogWriter(str(curves.parent), file_name=CURVES_FILE)
        names, start = network.class_names, network.weights
        self.metadata = metadata_of(
            network.model,
            preprocessing=network.preprocessing,
            class_names=names.to_pairs() if names else None,
            license=start.license if start else None,  # tuned weights stay under it
            activation=config.train.activation,
        )

    def add_scalars(self, values: dict[str, float], step: int) -> None:
        for tag, value in values.items():
            self.scalars.add_scalar(tag, value, step)

    def add_histograms(self, model: "nn.Layer", step: int) -> None:
        """Add histograms of the trained parameters and of their last gradients, if they are finite."""
        for name, parameter in model.named_parameters():
            arrays = {"weights": parameter.numpy()}
            if parameter.grad is not None:
                arrays["gradients"] = parameter.grad.numpy()
            for kind, array in arrays.items():
                if not parameter.stop_gradient and np.isfinite(array).all():
                    self.scalars.add_histogram(f"{kind}/{name}", array.flatten(), step, buckets=30)

    def add_samples(self, image: "Image.Image") -> None:
        """Add the picture of the first batch, as the network sees it."""
        self.scalars.add_image("train/samples", np.asarray(image.convert("RGB")), 0)

    def save_state(self, state: SavedState, step: int, best_step: int | None) -> None:
        """Write a state and prune the others. step: updates since the run began. best_step: those at the end
        of the best epoch."""
        self.scalars.flush()
        write_state(state_path(self.checkpoints, step), state)
        keeps_best = self.options.keep_best and best_step is not None
        best = state_path(self.checkpoints, best_step or 0) if keeps_best else None
        prune(self.checkpoints, self.options.keep_last, best)

    def save_epoch(self, model: "nn.Layer", progress: Progress, step: int) -> None:
        """Write the last epoch's line, curves, and weights: to checkpoints/last and, if it is the best, to
        best/. Each file whole or not at all."""
        self.write_metrics(progress)
        line = progress.history[-1]
        for prefix in ("eval", "eval_raw"):
            tags = {f"{prefix}/{name}": line.get(f"{prefix}_{name}") for name in (*MEASURES, "top5", "loss")}
            self.add_scalars({tag: value for tag, value in tags.items() if value is not None}, step)
        metrics = {k.removeprefix("eval_"): v for k, v in line.items() if k.startswith("eval_")}
        last, best = self.checkpoints / "last" / WEIGHTS_FILE, best_weights(self.output)
        arrays = {key: parameter.numpy() for key, parameter in model.state_dict().items()}
        with writing(last):
            write_weights(last, arrays, self.metadata | {"epoch": line["epoch"], "metrics": metrics})
            if line == progress.best:
                with write_aside(best) as aside:
                    shutil.copyfile(last, aside)

    def write_metrics(self, progress: Progress) -> None:
        """Write the lines of all epochs."""
        self._write("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in progress.history))

    def _write(self, name: str, text: str) -> None:
        path = self.output / name
        with writing(path), write_aside(path) as aside:
            aside.write_text(text, encoding="utf-8")

    def best_epoch(self) -> int | None:
        """Return the epoch whose weights are in checkpoints/best."""
        from safetensors import safe_open

        path = best_weights(self.output)
        if not path.exists():
            return None
        with safe_open(path, "numpy") as file:
            return int((file.metadata() or {}).get("epoch", 0))

    def close(self) -> None:
        self.scalars.close()


def write_together(record: RunRecord | None, write: Callable[[RunRecord], None]) -> None:
    """Let rank 0, which has the record, write while the others wait. An error there is raised by all."""

    def work() -> None:
        if record is not None:
            write(record)

    distributed.run_together(work)


def cut_curves(path: Path, step: int) -> None:
    """Cut off a VisualDL file what `save_epoch` has yet to write at this step, all later steps, and a record
    that is not whole. Each record has its length, 8 bytes, in front."""
    from google.protobuf.message import DecodeError
    from visualdl.proto.record_pb2 import Record

    data, start = path.read_bytes(), 0
    with write_aside(path) as aside, aside.open("wb") as file:
        while start + 8 <= len(data):
            end = start + 8 + struct.unpack_from("<Q", data, start)[0]
            if end > len(data):
                break
            try:
                values = Record.FromString(data[start + 8 : end]).values
            except DecodeError:
                break
            if all(value.id < step + (not value.tag.startswith("eval")) for value in values):
                file.write(data[start:end])
            start = end
