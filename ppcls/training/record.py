"""What a training run leaves behind: its config, a line for each epoch, VisualDL's curves, checkpoints."""

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
from ppcls.config import Config
from ppcls.data.class_names import ClassNames
from ppcls.errors import ConfigError
from ppcls.files import write_aside
from ppcls.preprocessing import Preprocessing
from ppcls.training.checkpoint import Progress, State, prune, state_path, states_in, write_state, writing
from ppcls.weights import facts_about, write_weights

if TYPE_CHECKING:
    from paddle import nn
    from PIL import Image

WEIGHTS_FILE = "model.safetensors"
# What a killed process may leave of a file written aside.
HALF_WRITTEN = (
    *(".train.yaml.*", ".metrics.jsonl.*", "visualdl/.vdlrecords.*"),
    *("checkpoints/.state-*", "checkpoints/*/.model.safetensors.*"),
)
CURVES_FILE = "vdlrecords.train.log"  # VisualDL shows one file of a folder
PARTS = ("train.yaml", "metrics.jsonl", "curves.png", "visualdl", "checkpoints")


def refuse_finished_run(output: Path) -> None:
    """Raises ConfigError where the folder holds a run, which a new one would destroy."""
    folder = output / "checkpoints"
    if states_in(folder) or any(folder.glob(f"*/{WEIGHTS_FILE}")):
        raise ConfigError(
            f"{output} holds the checkpoints of an earlier run. Go on with it, --resume auto, keep it and "
            "choose another folder, -o output_dir=DIR, or replace it: --overwrite."
        )


class RunRecord:
    """Writes into `output_dir`; only rank 0 has one, and holds the folder's lock."""

    def __init__(
        self,
        config: Config,
        model: "nn.Layer",
        spec: Preprocessing,
        class_names: ClassNames | None,
        licence: str | None,
        resumed: int | None = None,
    ) -> None:
        """resumed: updates of the run that goes on; what its record has of later ones is cut off. None: a new
        run, in place of any that there was."""
        from visualdl import LogWriter

        self.output, self.options = config.output_path, config.train
        self.checkpoints = self.output / "checkpoints"
        for part in PARTS if resumed is None else ():
            path = self.output / part
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        for pattern in HALF_WRITTEN:
            for leftover in self.output.glob(pattern):
                leftover.unlink()
        self._write("train.yaml", config.to_yaml())
        curves = self.output / "visualdl" / CURVES_FILE
        if resumed is not None and curves.exists():
            cut_curves(curves, resumed)
        with redirect_stdout(StringIO()):  # it says that it adds to a file
            self.scalars = LogWriter(str(curves.parent), file_name=CURVES_FILE)
        names = list(zip(class_names.folders, class_names.names, strict=True)) if class_names else None
        self.facts = facts_about(model, preprocessing=spec, class_names=names, licence=licence)

    def add_scalars(self, values: dict[str, float], step: int) -> None:
        for tag, value in values.items():
            self.scalars.add_scalar(tag, value, step)

    def add_histograms(self, model: "nn.Layer", step: int) -> None:
        """Of the trained parameters and their last gradients, where they are finite."""
        for name, parameter in model.named_parameters():
            arrays = {"weights": parameter.numpy()}
            if parameter.grad is not None:
                arrays["gradients"] = parameter.grad.numpy()
            for kind, array in arrays.items():
                if not parameter.stop_gradient and np.isfinite(array).all():
                    self.scalars.add_histogram(f"{kind}/{name}", array.flatten(), step, buckets=30)

    def add_samples(self, image: "Image.Image") -> None:
        """What the network sees in its first batch."""
        self.scalars.add_image("train/samples", np.asarray(image.convert("RGB")), 0)

    def save_state(self, state: State, step: int, best_step: int | None) -> None:
        """step: updates since the run began. best_step: those at the end of the best epoch."""
        self.scalars.flush()
        write_state(state_path(self.checkpoints, step), state)
        keeps_best = self.options.keep_best and best_step is not None
        best = state_path(self.checkpoints, best_step or 0) if keeps_best else None
        prune(self.checkpoints, self.options.keep_last, best)

    def keep(self, model: "nn.Layer", progress: Progress, step: int) -> None:
        """Write what the last epoch has left: its line, its curves, its weights to checkpoints/last and, if
        it is the best, best/. Each file whole or not at all."""
        self.write_metrics(progress)
        line = progress.history[-1]
        for prefix in ("eval", "eval_raw"):
            tags = {f"{prefix}/{name}": line.get(f"{prefix}_{name}") for name in ("top1", "top5", "loss")}
            self.add_scalars({tag: value for tag, value in tags.items() if value is not None}, step)
        metrics = {k.removeprefix("eval_"): v for k, v in line.items() if k.startswith("eval_")}
        last, best = (self.checkpoints / name / WEIGHTS_FILE for name in ("last", "best"))
        arrays = {key: parameter.numpy() for key, parameter in model.state_dict().items()}
        with writing(last):
            write_weights(last, arrays, self.facts | {"epoch": line["epoch"], "metrics": metrics})
            if line == progress.best:
                with write_aside(best) as aside:
                    shutil.copyfile(last, aside)

    def write_metrics(self, progress: Progress) -> None:
        self._write("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in progress.history))

    def _write(self, name: str, text: str) -> None:
        path = self.output / name
        with writing(path), write_aside(path) as aside:
            aside.write_text(text, encoding="utf-8")

    def best_epoch(self) -> int | None:
        """The epoch whose weights are in checkpoints/best."""
        from safetensors import safe_open

        path = self.checkpoints / "best" / WEIGHTS_FILE
        if not path.exists():
            return None
        with safe_open(path, "numpy") as file:
            return int((file.metadata() or {}).get("epoch", 0))

    def close(self) -> None:
        self.scalars.close()


def write_together(record: RunRecord | None, write: Callable[[RunRecord], None]) -> None:
    """Rank 0, which has the record, writes, while the others wait. What stops it, all raise."""

    def work() -> None:
        if record is not None:
            write(record)

    distributed.run_together(work)


def cut_curves(path: Path, step: int) -> None:
    """Leave out of a VisualDL file what `keep` has yet to write at this step, what is said of later ones, and
    a record that was cut off. Each record has its length, 8 bytes, in front."""
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
