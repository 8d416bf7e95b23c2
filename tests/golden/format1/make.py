"""Files of format 1, written by ppcls as of commit f4cd1ea: weights, a run that was killed within an epoch,
and an export of its best weights. Later versions must read them, and finish the run with the same bits.

    git worktree add /tmp/format1 f4cd1ea
    PYTHONPATH=/tmp/format1 python tests/golden/format1/make.py

It replaces what lies beside it. `expected.npz` holds the end of the run without the interruption, and
`environment.json` the machine whose bits these are.
"""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
EPOCHS, KILLED_AT = 3, 21  # updates; an epoch has 12
CONFIG = """\
model:
  name: Tiny
  num_classes: 3
  weights: weights.safetensors
  dropout: 0.1
data:
  train_root: pictures
  eval_root: pictures
  batch_size: 2
  num_workers: 2
  resize_short: 28
  crop_size: 24
  interpolation: bilinear
  antialias: false
  mean: [0.5, 0.5, 0.5]
  std: [0.25, 0.25, 0.25]
augment:
  mixup: 0.2
train:
  epochs: 3
  ema_decay: 0.9
  checkpoint_steps: 7
  keep_last: 1
  keep_best: false
optim:
  name: rmsprop
  lr: 0.5
  schedule: step
  decay_epochs: 1
device: cpu
output_dir: run
"""


def draw_pictures() -> None:
    from PIL import Image

    random = np.random.RandomState(0)
    for index in range(24):
        path = Path("pictures") / "abc"[index % 3] / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        colour = random.randint(0, 4, (5, 6, 3)) * 16 + 64 * (index % 3)
        Image.fromarray(colour.astype(np.uint8).repeat(6, 0).repeat(6, 1)).save(path, optimize=True)


def write_start() -> None:
    """Weights whose network computes otherwise than the model's default, under a licence of their own."""
    import paddle

    from ppcls import build_model
    from ppcls.preprocessing import Preprocessing
    from ppcls.weights import facts_about, write_weights

    paddle.seed(1)
    model = build_model("Tiny", num_classes=3, bn_epsilon=1e-5, padding="symmetric")
    spec = Preprocessing(28, 24, "bilinear", False, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    names = [(letter, f"class {letter}") for letter in "abc"]
    facts = facts_about(model, preprocessing=spec, class_names=names, licence="CC-BY-NC-4.0")
    arrays = {key: parameter.numpy() for key, parameter in model.state_dict().items()}
    write_weights(Path("weights.safetensors"), arrays, facts)


def train(*options: str, kill: bool) -> None:
    """Train in a process of its own, which ends as by SIGKILL once the state is written."""
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        return
    from ppcls.cli.train import main
    from ppcls.training.loop import Trainer

    save = Trainer.save

    def save_and_end(self: Trainer, record: object) -> None:
        save(self, record)
        if kill and self.updates == KILLED_AT:
            os._exit(0)

    Trainer.save = save_and_end
    main(["-c", "config.yaml", *options])
    os._exit(0)


def main() -> None:
    os.chdir(HERE)
    sys.path.insert(0, str(HERE))
    import tiny  # noqa: F401

    for name in ("pictures", "run", "export"):
        shutil.rmtree(name, ignore_errors=True)
    Path("config.yaml").write_text(CONFIG)
    draw_pictures()
    pid = os.fork()  # Paddle must not be loaded before the others fork
    if not pid:
        write_start()
        os._exit(0)
    os.waitpid(pid, 0)
    train("-o", "output_dir=whole", "--overwrite", kill=False)
    train("--overwrite", kill=True)
    shutil.rmtree("run/visualdl")
    Path("run/run.lock").unlink()

    from ppcls.cli import export
    from ppcls.processor import processor
    from ppcls.training.checkpoint import read_state, states_in

    best = "model.weights=run/checkpoints/best/model.safetensors"
    export.main(["-c", "run/train.yaml", "-o", best, "--output", "export", "--formats", "onnx"])
    (last,) = states_in(Path("whole/checkpoints"))
    state = read_state(last)
    np.savez_compressed("expected.npz", **state.arrays)
    import paddle

    about = {
        "processor": processor(),
        "paddle": paddle.__version__,
        "numpy": np.__version__,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
        "metrics": [json.loads(line) for line in Path("whole/metrics.jsonl").read_text().splitlines()],
    }
    Path("environment.json").write_text(json.dumps(about, indent=2) + "\n")
    shutil.rmtree("whole")


if __name__ == "__main__":
    main()
