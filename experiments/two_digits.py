"""The recipe of ResNeXt101 WSL in small: pretraining on pictures of two digits, then tuning to single ones.

python experiments/two_digits.py [--seeds N ...] [--images N]

Each picture has two of scikit-learn's digits side by side and the labels of both. To train on, the n-th class
is drawn in proportion to n ** -1.5, so that the last ones are rare. The pictures are packed into shards.
Copies of pictures for evaluation, planted among them, are found and left out. A shallow ResNeXt is pretrained
on them, with the classes in their natural proportions and with data.sampling=sqrt, and then tuned to five
single digits of each class. The same network is trained on these from random weights. A further run has a
sigmoid for each class. Finished runs are kept; delete output/two_digits to repeat them.
Needs: python dataset/prepare_digits.py, and pip install -e '.[cpu,quickstart,clean]'.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "experiments")]

import shallow_resnext  # noqa: E402, F401 - so that ppcls knows the network

import ppcls  # noqa: E402
from ppcls.data.loader import eval_batch_indices  # noqa: E402
from ppcls.data.open import open_path  # noqa: E402

DIGITS = ROOT / "dataset/digits"
OUTPUT = ROOT / "output/two_digits"
CONFIG = "experiments/two_digits.yaml"
SCALE, SIDE = 4, 8  # a digit of 8 x 8 pixels is drawn four times as large
TRAIN, HELD_OUT, PLANTED = 3000, 400, 12  # pictures; copies of each of two kinds
TAIL, RARE, FEW = 1.5, (7, 8, 9), 5
TUNE = ("data.preprocessing.resize_short=16", "data.preprocessing.crop_size=16", "optim.lr=0.2")
SAMPLINGS = ("natural", "sqrt")
STARTS = {"natural": 1, "sqrt": 1, "random": 1, "random, 4 times as long": 4}  # and the length of tuning


class Pictures(NamedTuple):
    """Pictures of two digits, uint8 [64, 64] each, and their classes in ascending order."""

    images: list[np.ndarray]
    labels: list[list[int]]


def read_list(name: str) -> list[tuple[str, int]]:
    """Return (path, label) of each line of one of the digits' lists."""
    lines = [line.split() for line in (DIGITS / name).read_text(encoding="utf-8").splitlines()]
    return [(path, int(label)) for path, label in lines]


def draw_pictures(name: str, count: int, tail: float, seed: int) -> Pictures:
    """Draw pictures of two digits of a list, one left and one right, each at a height of its own."""
    random = np.random.RandomState(seed)
    digits: list[list[np.ndarray]] = [[] for _ in range(10)]
    for path, label in read_list(name):
        digits[label].append(cv2.imread(str(DIGITS / path), cv2.IMREAD_GRAYSCALE))
    shares = np.arange(1, 11) ** -tail
    found = Pictures([], [])
    for classes in random.choice(10, (count, 2), p=shares / shares.sum()):
        image = np.zeros((2 * SIDE, 2 * SIDE), np.uint8)
        for side, label in enumerate(classes):
            top, chosen = random.randint(SIDE + 1), random.randint(len(digits[label]))
            image[top : top + SIDE, side * SIDE : (side + 1) * SIDE] = digits[label][chosen]
        found.images.append(cv2.resize(image, None, fx=SCALE, fy=SCALE, interpolation=cv2.INTER_CUBIC))
        found.labels.append(sorted(set(classes.tolist())))
    return found


def write_pictures(folder: Path, pictures: Pictures, prefix: str = "", ending: str = ".png") -> list[str]:
    """Write picture files. Returns their lines of a list."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for index, (image, labels) in enumerate(zip(*pictures, strict=True)):
        file = f"{prefix}{index:04d}{ending}"
        cv2.imwrite(str(folder / file), image)
        lines.append(f"{file} {','.join(map(str, labels))}\n")
    return lines


def make_data() -> None:
    """Write and pack the pictures, find the planted copies, and pack the others."""
    held_out = draw_pictures("val_list.txt", HELD_OUT, 0, 1)
    lines = write_pictures(OUTPUT / "files", draw_pictures("train_list.txt", TRAIN, TAIL, 0), "train_")
    val = write_pictures(OUTPUT / "files", held_out, "val_")
    same = Pictures(held_out.images[:PLANTED], held_out.labels[:PLANTED])
    part = slice(PLANTED, 2 * PLANTED)
    smaller = [cv2.resize(image, (56, 56), interpolation=cv2.INTER_AREA) for image in held_out.images[part]]
    lines += write_pictures(OUTPUT / "files", same, "same_")
    lines += write_pictures(OUTPUT / "files", Pictures(smaller, held_out.labels[part]), "smaller_", ".jpg")
    pack("val", val)
    pack("found", lines)
    pack("train", leave_out_copies(lines))


def pack(name: str, lines: list[str]) -> None:
    """Pack the files of a list into shards."""
    file = OUTPUT / "files" / f"{name}.txt"
    file.write_text("".join(lines), encoding="utf-8")
    run("-m", "ppcls", "data", "pack", file, OUTPUT / name, "--shuffle", "0", "--overwrite")


def leave_out_copies(lines: list[str]) -> list[str]:
    """Return the lines without those that `ppcls data check --against` finds, and print what it finds."""
    text = run("-m", "ppcls", "data", "check", OUTPUT / "found", "--against", OUTPUT / "val", codes=(0, 1))
    found = re.findall(r"^(?:bytes|pixels|near) .*?((?:train|same|smaller)_\d+)", text, re.MULTILINE)
    keys = set(found)
    for kind in ("same", "smaller"):
        print(f"planted, {kind}: {sum(key.startswith(kind) for key in keys)} of {PLANTED} found")
    others = sum(key.startswith("train") for key in keys)
    print(f"other pictures taken for copies: {others} of {TRAIN}")
    return [line for line in lines if line.partition(".")[0] not in keys]


def run(*arguments: object, codes: tuple[int, ...] = (0,)) -> str:
    """Run Python. Returns what it prints; leaves with its message if it fails."""
    command = [sys.executable, *map(str, arguments)]
    print(f"$ python {' '.join(command[1:])}", flush=True)
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    if done.returncode not in codes:
        sys.exit(f"{done.stdout}{done.stderr}\nthat command ended with exit code {done.returncode}")
    return done.stdout


def train(name: str, *options: str) -> Path:
    """Train, unless this run is finished. Returns its folder."""
    folder = OUTPUT / "runs" / name.replace(" ", "_").replace(",", "")
    if not (folder / "curves.png").exists():
        options += (f"output_dir={folder}",)
        arguments = [part for option in options for part in ("-o", option)]
        run("experiments/shallow_resnext.py", "-c", CONFIG, "--overwrite", *arguments)
    return folder


def tune(start: str, seed: int) -> float:
    """Train on few single digits of each class, drawn with the seed. Returns top-1 of the held-out digits."""
    random = np.random.RandomState(seed)
    rows = read_list("train_list.txt")
    chosen: list[tuple[str, int]] = []
    for label in range(10):
        own = [row for row in rows if row[1] == label]
        chosen += [own[index] for index in random.permutation(len(own))[:FEW]]
    file = OUTPUT / f"single_{seed}.txt"
    file.write_text("".join(f"{path} {label}\n" for path, label in chosen), encoding="utf-8")
    images = 1600 * STARTS[start]
    options = [*TUNE, f"seed={seed}", f"train.images={images}", f"train.epoch_images={images}"]
    options += [f"data.train_root={DIGITS}", f"data.train_list={file}"]
    options += [f"data.eval_root={DIGITS}", f"data.eval_list={DIGITS / 'val_list.txt'}"]
    if start in SAMPLINGS:
        weights = OUTPUT / f"runs/{start}_{seed}/checkpoints/last/model.safetensors"
        options += [f"train.start_from={weights}", "train.reset_head=true"]
    return lines_of(train(f"tuned from {start} {seed}", *options))[-1]["eval_top1"]


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def logits_of(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the logits float32 [N, 10] of the pictures for evaluation, by the run's last weights, and the
    classes of each picture, bool [N, 10]."""
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):  # it says what it loads
        predictor = ppcls.load(folder / "checkpoints/last", "eager")
    pictures = open_path(OUTPUT / "val")
    batches = predictor.run(pictures, eval_batch_indices(len(pictures), 100), on_error="fail")
    logits = np.concatenate([predictor.to_logits(outputs[0]) for _, outputs in batches])
    truth, sets = np.zeros(logits.shape, bool), pictures.all_labels
    truth[sets.images, sets.values] = True
    return logits, truth


def report_pretraining(seeds: list[int]) -> None:
    """Print the recall of each class, and the mean average precision by scikit-learn."""
    from sklearn.metrics import average_precision_score

    counts = np.bincount(open_path(OUTPUT / "train").all_labels.values)
    print(f"\n{'pictures to train on':26}" + "".join(f"{count:6}" for count in counts))
    for name in SAMPLINGS:
        folders = [OUTPUT / f"runs/{name}_{seed}" for seed in seeds]
        recalls = np.array([lines_of(folder)[-1]["eval_class_recall"] for folder in folders])
        precisions = [average_precision_score(truth, logits) for logits, truth in map(logits_of, folders)]
        print(f"{f'recall, {name}':26}" + "".join(f"{value:6.2f}" for value in recalls.mean(axis=0)))
        print(f"  of all classes {spread(recalls.mean(axis=1))}")
        print(f"  of {', '.join(map(str, RARE))} {spread(recalls[:, RARE].mean(axis=1))}")
        print(f"  mean average precision {spread(precisions)}")


def report_binary(folder: Path) -> None:
    """Print the mean average precision of a run and scikit-learn's on its scores."""
    from sklearn.metrics import average_precision_score

    logits, truth = logits_of(folder)
    scores = 1 / (1 + np.exp(-logits))
    theirs, ours = average_precision_score(truth, scores), lines_of(folder)[-1]["eval_map"]
    print(f"\nsigmoid, mean average precision {ours:.6f}, by scikit-learn {theirs:.6f}")


def spread(values: np.ndarray | list[float]) -> str:
    """Return the mean and the values."""
    return f"{np.mean(values):.3f}  ({' '.join(f'{value:.3f}' for value in values)})"


def draw(seeds: list[int], top1: dict[str, list[float]]) -> None:
    """Draw the recall of the rare classes over the images, of each class, and top-1 of the single digits."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    curve, bars, tuned = figure.subplots(1, 3)
    for number, name in enumerate(SAMPLINGS):
        runs = [lines_of(OUTPUT / f"runs/{name}_{seed}") for seed in seeds]
        recalls = np.array([[line["eval_class_recall"] for line in lines] for lines in runs])
        images = [line["images"] for line in runs[0]]
        for values in recalls[:, :, RARE].mean(axis=2):
            curve.plot(images, values, color=f"C{number}", alpha=0.3)
        mean = recalls[:, :, RARE].mean(axis=(0, 2))
        curve.plot(images, mean, color=f"C{number}", marker=".", label=name)
        bars.bar(np.arange(10) + 0.4 * number - 0.2, recalls[:, -1].mean(axis=0), 0.4, color=f"C{number}")
    curve.set(title="recall of the rare classes", xlabel="images")
    curve.legend(fontsize="small")
    bars.set(title="recall of each class", xlabel="the most frequent class first", xticks=range(10))
    for number, values in enumerate(top1.values()):
        tuned.plot(values, [-number] * len(values), "o", color=f"C{number}", alpha=0.6)
    tuned.set(title="top-1 of single digits", yticks=range(0, -len(top1), -1))
    tuned.set_yticklabels([name.replace(", ", ",\n") for name in top1], fontsize="small")
    for axis in (curve, bars, tuned):
        axis.grid(alpha=0.3)
    figure.savefig(OUTPUT / "curves.png", dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--images", type=int, default=10_000, help="length of a pretraining")
    args = parser.parse_args()
    began = time.monotonic()
    if not (OUTPUT / "train/index.safetensors").exists():  # the last file that is made
        make_data()
    length = (f"train.images={args.images}", f"train.epoch_images={args.images // 5}")
    top1: dict[str, list[float]] = {start: [] for start in STARTS}
    for seed in args.seeds:
        for name in SAMPLINGS:
            train(f"{name} {seed}", f"seed={seed}", f"data.sampling={name}", *length)
        for start in STARTS:
            top1[start].append(tune(start, seed))
    options = (f"seed={args.seeds[0]}", "data.sampling=sqrt", "train.loss=binary", *length)
    binary = train("sigmoid", *options, "optim.lr=4")  # ten times as much: its loss is a mean of ten classes
    report_pretraining(args.seeds)
    report_binary(binary)
    print(f"\ntop-1 of single digits, from {FEW} of each class")
    for start, values in top1.items():
        print(f"  {start:26}{spread(values)}")
    draw(args.seeds, top1)
    print(f"\ncurves: {OUTPUT / 'curves.png'}; {time.monotonic() - began:.0f} seconds")


if __name__ == "__main__":
    main()
