"""How many wrong labels `ppcls data clean` finds: 5% of the digits' labels are replaced by others.

python dataset/prepare_digits.py
python experiments/wrong_labels.py [MODEL] [--size PIXELS] [--seeds N]

MODEL: as `ppcls data clean` takes it, by default EfficientNetLite0. Beside it stands the plain rule that the
first out-of-sample prediction differs from the label.
"""

import argparse
from pathlib import Path

import numpy as np

import ppcls
from ppcls.data.open import open_path
from ppcls.evaluation import clean

DIGITS = Path(__file__).parent.parent / "dataset" / "digits"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", nargs="?", default="EfficientNetLite0")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    sizes = [f"data.preprocessing.{name}={args.size}" for name in ("crop_size", "resize_short")]
    predictor = ppcls.load(args.model, "eager", overrides=sizes)
    datasets = [open_path(DIGITS / f"{part}_list.txt") for part in ("train", "val")]
    images = clean.join_datasets(datasets)
    embeddings = clean.embed(predictor, images, lambda count: None)
    copies = clean.find_near_duplicates(embeddings, clean.hash_images(images, 2, lambda count: None))
    for seed in range(args.seeds):
        planted, labels = plant(images.labels, seed)
        found = clean.find_wrong_labels(embeddings, images._replace(labels=labels), copies)
        positions = np.array([item.position for item in found], np.int64)
        print(f"seed {seed}: recall, precision {scores(np.isin(np.arange(len(labels)), positions), planted)}")
        rows, folds = clean.prepare(embeddings, labels, copies, images.names)
        first = clean.predict_folds(rows, labels, folds, np.ones(len(labels), bool)).argmax(axis=1)
        print(f"  plain rule {scores(first != labels, planted)}", flush=True)


def plant(true: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return which labels are wrong, bool [N], and the labels."""
    random = np.random.RandomState(seed)
    count = round(0.05 * len(true))
    places = random.choice(len(true), count, replace=False)
    labels = true.copy()
    labels[places] = (labels[places] + random.randint(1, 10, count)) % 10
    return labels != true, labels


def scores(found: np.ndarray, planted: np.ndarray) -> str:
    right = (found & planted).sum()
    return f"{right / planted.sum():.3f} {right / found.sum():.3f}"


if __name__ == "__main__":
    main()
