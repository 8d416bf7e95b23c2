"""What a training run leaves behind: its config, a line for each epoch, VisualDL's scalars, checkpoints."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppcls.config import Config
from ppcls.data.class_names import ClassNames
from ppcls.errors import ConfigError
from ppcls.files import write_aside
from ppcls.preprocessing import Preprocessing
from ppcls.weights import facts_about, write_weights

if TYPE_CHECKING:
    from paddle import nn

WEIGHTS_FILE = "model.safetensors"
PARTS = ("train.yaml", "metrics.jsonl", "curves.png", "visualdl", "checkpoints")


def refuse_finished_run(output: Path) -> None:
    """Raises ConfigError where the folder holds a run, which a new one would destroy."""
    if (output / "checkpoints").exists():
        raise ConfigError(
            f"{output} holds the checkpoints of an earlier run. Keep them and choose another folder, "
            "-o output_dir=DIR, or replace that run: --overwrite."
        )


class RunRecord:
    """Writes into `output_dir`; only rank 0 has one."""

    def __init__(
        self,
        config: Config,
        model: "nn.Layer",
        spec: Preprocessing,
        class_names: ClassNames | None,
        licence: str | None,
    ) -> None:
        from visualdl import LogWriter

        self.output = config.output_path
        for part in PARTS:
            path = self.output / part
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        self.output.mkdir(parents=True, exist_ok=True)
        (self.output / "train.yaml").write_text(config.to_yaml(), encoding="utf-8")
        self.scalars = LogWriter(str(self.output / "visualdl"))
        names = list(zip(class_names.folders, class_names.names, strict=True)) if class_names else None
        self.facts = facts_about(model, preprocessing=spec, class_names=names, licence=licence)

    def add_scalars(self, values: dict[str, float], step: int) -> None:
        for tag, value in values.items():
            self.scalars.add_scalar(tag, value, step)

    def add_epoch(self, values: dict[str, Any]) -> None:
        with (self.output / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")

    def save(self, model: "nn.Layer", is_best: bool, epoch: int, metrics: dict[str, Any]) -> None:
        """Write checkpoints/last/model.safetensors and, if it is the best, best/: whole or not at all."""
        last, best = (self.output / "checkpoints" / name / WEIGHTS_FILE for name in ("last", "best"))
        arrays = {key: parameter.numpy() for key, parameter in model.state_dict().items()}
        write_weights(last, arrays, self.facts | {"epoch": epoch, "metrics": metrics})
        if is_best:
            with write_aside(best) as aside:
                shutil.copyfile(last, aside)

    def close(self) -> None:
        self.scalars.close()
