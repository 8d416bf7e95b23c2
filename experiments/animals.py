"""Compare EfficientNetLite0 on animals and things: tuned from its published weights, and from random ones.

python experiments/animals.py FOLDER [--epochs N]

FOLDER holds photographs and val_list.txt, with lines 'file label' and ImageNet's labels from 0 to 999. Labels
0 to 397 are animals. A quarter of each kind is held out, drawn with a fixed seed. Both runs have the same
steps and options, and two processes. Needs: pip install -e '.[cpu,lite]'.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from ppcls.intervals import with_interval  # noqa: E402
from ppcls.training.curves import draw_curves, read_epochs  # noqa: E402

OUTPUT = ROOT / "output/animals"
ANIMALS = 398
RECIPE = (
    *("model.num_classes=2", "model.bn_momentum=0.9", "data.batch_size=8", "device=cpu"),
    *("augment.auto_augment=null", "augment.crop_area=[0.35, 1.0]", "train.ema_decay=null"),
    *("optim={name: sgd, lr: 0.16, nesterov: true, weight_decay: 1e-4, warmup_epochs: 1}",),
)
STARTS = {
    "published": ("train.start_from=pretrained", "train.reset_head=true"),
    "fresh": ("train.start_from=null",),
}


def split(folder: Path) -> None:
    """Write train_list.txt, val_list.txt and class_names.txt to OUTPUT."""
    lines = [line.rsplit(maxsplit=1) for line in (folder / "val_list.txt").read_text().splitlines()]
    files, labels = [file for file, _ in lines], np.array([int(label) < ANIMALS for _, label in lines])
    random = np.random.RandomState(0)
    held_out = set()
    for kind in (True, False):
        indices = random.permutation(np.flatnonzero(labels == kind))
        held_out |= set(indices[: round(len(indices) / 4)].tolist())
    parts: dict[str, list[str]] = {"train_list.txt": [], "val_list.txt": []}
    for index, (file, is_animal) in enumerate(zip(files, labels, strict=True)):
        parts["val_list.txt" if index in held_out else "train_list.txt"].append(f"{file} {int(is_animal)}\n")
    OUTPUT.mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        (OUTPUT / name).write_text("".join(part), encoding="utf-8")
    (OUTPUT / "class_names.txt").write_text("thing\nanimal\n", encoding="utf-8")


def train(folder: Path, start: str, epochs: int) -> None:
    """Run tools/train.py with two processes; leave with its exit code if it fails."""
    options = [
        *RECIPE,
        *STARTS[start],
        *(f"data.train_root={folder}", f"data.train_list={OUTPUT / 'train_list.txt'}"),
        *(f"data.eval_root={folder}", f"data.eval_list={OUTPUT / 'val_list.txt'}"),
        f"data.class_names={OUTPUT / 'class_names.txt'}",
        *(f"train.epochs={epochs}", f"output_dir={OUTPUT / start}"),
    ]
    launch = ["-m", "paddle.distributed.launch", "--nproc_per_node", "2", "--log_dir", f"{OUTPUT}/log"]
    command = [*launch, "tools/train.py", "-c", "configs/EfficientNetLite0.yaml", "--overwrite"]
    command += [part for option in options for part in ("-o", option)]
    print(f"\n$ python {' '.join(command)}", flush=True)
    code = subprocess.run([sys.executable, *command], cwd=ROOT, check=False).returncode
    if code:
        sys.exit(f"that run ended with exit code {code}; see its message above")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, help="photographs and their val_list.txt")
    parser.add_argument("--epochs", type=int, default=6)
    args = parser.parse_args()
    if not (args.folder / "val_list.txt").is_file():
        parser.error(f"there is no {args.folder / 'val_list.txt'}")
    folder = args.folder.resolve()
    split(folder)
    runs, seconds = {}, {}
    for start in STARTS:
        began = time.monotonic()
        train(folder, start, args.epochs)
        runs[start], seconds[start] = read_epochs(OUTPUT / start / "metrics.jsonl"), time.monotonic() - began
    draw_curves(runs, OUTPUT / "curves.png")
    print(f"\n{'weights':12}{'last top-1 (95%)':>28}{'best (95%)':>28}{'seconds':>10}")
    for start, epochs in runs.items():
        top1, count = [line["eval_top1"] for line in epochs], epochs[-1]["eval_count"]
        last, best = (with_interval(value, count) for value in (top1[-1], max(top1)))
        print(f"{start:12}{last:>28}{best:>28}{seconds[start]:10.0f}")
    print(f"curves: {OUTPUT / 'curves.png'}")


if __name__ == "__main__":
    main()
