"""Doubtful images of datasets: likely wrong labels by confident learning, and near duplicates.

Confident learning: Northcutt, Jiang, Chuang, https://arxiv.org/abs/1911.00068, by the package cleanlab.
"""

import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ppcls.commands import command_line
from ppcls.config import Config
from ppcls.config_files import load_config, run_of_checkpoint
from ppcls.data.class_names import ClassNames
from ppcls.data.copies import perceptual_hash
from ppcls.data.dataset import Dataset
from ppcls.data.decode import decode
from ppcls.data.open import open_split
from ppcls.data.overlap import find_shared_images
from ppcls.distributed import cores
from ppcls.errors import ConfigError, DataError, PpclsError
from ppcls.inference.formats.format import missing_packages
from ppcls.inference.predictor import Predictor
from ppcls.progress import note

FOLDS = 5
HASH_BITS = 14  # of 64: copies differ in at most as many
COSINE = 0.75  # of two embeddings: copies have at least this
_BLOCK = 512  # images compared with all others at a time
_CHUNK = 1024  # images handed to the threads at a time
Progress = Callable[[int], object]


class Doubtful(NamedTuple):
    """A likely wrong label. position: of the image among those of all datasets. suggested: another label.
    probabilities: of the given one and of this, by a classifier that has not seen the image."""

    position: int
    suggested: int
    probabilities: tuple[float, float]


class Images(NamedTuple):
    """The images of several datasets, one after the other.

    sources: int64 [N], the number of each image's dataset. indices: int64 [N], its place there. labels:
    int64 [N]. names: of the classes, by label.
    """

    datasets: Sequence[Dataset]
    sources: np.ndarray
    indices: np.ndarray
    labels: np.ndarray
    names: Sequence[str]

    def dataset(self, position: int) -> tuple[Dataset, int]:
        """Return an image's dataset and its index there."""
        return self.datasets[self.sources[position]], int(self.indices[position])


def require_packages() -> None:
    """Raise ConfigError if the packages of the extra are missing."""
    if problem := missing_packages({"cleanlab": "clean", "imagehash": "clean"}):
        raise ConfigError(f"This command needs packages: {problem}")


def join_datasets(datasets: Sequence[Dataset], class_names: ClassNames | None = None) -> Images:
    """Put datasets with the same classes together.

    class_names: for lists, which have none; a label beyond them is shown as its number. Raises DataError for
    a dataset without labels, for different classes, for fewer than two classes, and for a class of fewer than
    FOLDS images.
    """
    first = datasets[0]
    for dataset in datasets:
        if dataset.label_sets is not None:
            raise DataError(
                f"{dataset.name(0)} and the other images beside it have several labels each. The search for "
                "wrong labels predicts the one label of an image. Give a list of the images of one label; "
                "copies among images of several are found by their bytes: "
                f"{command_line('data', 'check', 'LIST')}"
            )
        if dataset.labels is None:
            raise DataError(
                f"{dataset.name(0)} and the other images beside it have no labels. Expected: a list file of "
                "lines 'path label', or a folder with one folder for each class."
            )
        if dataset.class_names != first.class_names:
            raise DataError(
                "The lists or folders have different classes. Expected: list files with the same labels, or "
                f"folders with the same class folders. Received: those of {first.name(0)} and of "
                f"{dataset.name(0)}"
            )
    sizes = [len(dataset) for dataset in datasets]
    labels = np.concatenate([dataset.labels for dataset in datasets if dataset.labels is not None])
    if len(np.unique(labels)) < 2:
        raise DataError("All images have the same label. A wrong label is found by the images of others.")
    known = first.class_names or class_names
    names = list(known.names) if known else []
    names += [str(label) for label in range(len(names), labels.max() + 1)]
    for label, count in zip(*np.unique(labels, return_counts=True), strict=True):
        if count < FOLDS:
            raise _too_few(names[label], count)
    return Images(
        datasets,
        np.repeat(np.arange(len(sizes)), sizes),
        np.concatenate([np.arange(size) for size in sizes]),
        labels,
        names,
    )


def embed(predictor: Predictor, images: Images, progress: Progress) -> np.ndarray:
    """Return the embeddings float32 [N, D], of length 1; NaN for an unreadable image."""
    rows = np.full((len(images.labels), predictor.require_embeddings()), np.nan, np.float32)
    found = (predictor.stream(dataset, embeddings=True) for dataset in images.datasets)
    for row, prediction in zip(rows, chain.from_iterable(found), strict=True):
        if prediction.embedding is not None:
            row[:] = prediction.embedding
        progress(1)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def hash_images(images: Images, num_workers: int, progress: Progress) -> np.ndarray:
    """Return the perceptual hashes bool [N, 64]: the signs of the lowest frequencies. All 64 are False for an
    image that is unreadable or below 32 pixels, which has no such frequencies."""
    count = len(images.labels)
    found = np.zeros((count, 64), bool)
    with warnings.catch_warnings(), ThreadPoolExecutor(num_workers) as pool:
        warnings.simplefilter("ignore")  # of damaged files; `check` reports them
        for start in range(0, count, _CHUNK):
            chunk = range(start, min(start + _CHUNK, count))
            for position, bits in zip(chunk, pool.map(partial(_hash, images), chunk), strict=True):
                found[position] = bits
                progress(1)
    return found


def _hash(images: Images, position: int) -> np.ndarray | bool:
    dataset, index = images.dataset(position)
    try:
        pixels = decode(dataset.read(index))
    except (OSError, DataError):
        return False
    bits = perceptual_hash(pixels, 8)
    return False if bits is None else bits


def find_near_duplicates(embeddings: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """Return int64 [N], for each image the first image of its group; its own number if it has no copy.

    embeddings: float32 [N, D], of length 1. Two images are copies if their hashes differ in at most HASH_BITS
    bits and their embeddings' cosine is at least COSINE; copies of copies belong together. The memory is that
    of a block of images times all images.
    """
    signs = np.where(hashes, np.float32(1), np.float32(-1))
    signs[~hashes.any(axis=1)] = 0  # no hash: 32 bits from every other
    first = np.arange(len(hashes))
    for start in range(0, len(hashes), _BLOCK):
        close = signs[start : start + _BLOCK] @ signs[start:].T >= 64 - 2 * HASH_BITS
        for image, row in enumerate(close, start):
            others = start + np.flatnonzero(row)
            copies = others[embeddings[others] @ embeddings[image] >= COSINE]
            groups = np.unique(first[copies])
            if len(groups) > 1:
                first[np.isin(first, groups)] = groups[0]
    return first


def find_wrong_labels(embeddings: np.ndarray, images: Images, copies: np.ndarray) -> list[Doubtful]:
    """Return the likely wrong labels, the least probable first, of all images with an embedding.

    A linear classifier on the embeddings predicts each image without having seen it or a copy of it: FOLDS
    parts of the images are predicted from the others. It is then trained once more without the images found.
    cleanlab estimates the number of wrong labels, and takes those of lowest probability.
    copies: as find_near_duplicates returns them. Raises DataError for a class of too few images.
    """
    from cleanlab.filter import find_label_issues

    positions = np.flatnonzero(np.isfinite(embeddings).all(axis=1))
    classes, labels = np.unique(images.labels[positions], return_inverse=True)
    names = [images.names[label] for label in classes]
    rows, folds = prepare(embeddings[positions], labels, copies[positions], names)
    keep = np.ones(len(labels), bool)
    for _ in range(2):
        probabilities = predict_folds(rows, labels, folds, keep)
        found = find_label_issues(labels, probabilities, filter_by="low_self_confidence", n_jobs=1)
        keep = ~found
    own = probabilities[np.arange(len(labels)), labels]
    best = probabilities.argmax(axis=1)
    found &= best != labels
    return [
        Doubtful(
            int(positions[n]),
            int(classes[best[n]]),
            (float(own[n]), float(probabilities[n, best[n]])),
        )
        for n in sorted(np.flatnonzero(found), key=lambda n: own[n])
    ]


def prepare(
    embeddings: np.ndarray, labels: np.ndarray, copies: np.ndarray, names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the classifier's input float32 [N, D], centred and of length 1, and the folds int64 [N]."""
    rows = embeddings - embeddings.mean(axis=0)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True) + 1e-12
    return rows, _deal(labels, copies, names)


def _deal(labels: np.ndarray, copies: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Return the fold of each image, int64 [N]: those of a class are dealt out, and copies stay together."""
    random = np.random.RandomState(0)
    _, leaders, groups = np.unique(copies, return_index=True, return_inverse=True)  # leaders: first images
    fold_of = np.empty(len(leaders), np.int64)
    for label, name in enumerate(names):
        members = np.flatnonzero(labels[leaders] == label)
        if len(members) < FOLDS:
            raise _too_few(name, len(members))
        fold_of[random.permutation(members)] = (np.arange(len(members)) + label) % FOLDS
    return fold_of[groups]


def _too_few(name: str, count: int) -> DataError:
    return DataError(
        f"The class {name} has {count} different readable images. Expected: at least {FOLDS} of each class, "
        f"as each fifth of them is predicted from the others. Add images to {name}, or leave the class out."
    )


def predict_folds(rows: np.ndarray, labels: np.ndarray, folds: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Return probabilities [N, C] of each fold from the others, of which only the images in `keep` count."""
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    classes = int(labels.max()) + 1
    probabilities = np.zeros((len(labels), classes))

    def predict(fold: int) -> None:
        train = (folds != fold) & keep
        if len(np.unique(labels[train])) < classes:  # a class without an image would never be predicted
            train = folds != fold
        head = LogisticRegression(C=10, max_iter=300).fit(rows[train], labels[train])
        held_out = np.flatnonzero(folds == fold)
        probabilities[held_out[:, None], head.classes_] = head.predict_proba(rows[held_out])

    # A fold on each core, each with one thread: the optimizer's many short sums would only wait for more.
    with warnings.catch_warnings(), threadpool_limits(1), ThreadPoolExecutor(cores()) as pool:
        warnings.simplefilter("ignore")  # of an optimum that is not reached to the last digits
        list(pool.map(predict, range(FOLDS)))
    return probabilities


def require_unseen(config: Config, images: Images) -> None:
    """Raise ConfigError if model.weights are of a run that was trained on some of the images. Such a network
    has learnt their wrong labels too: on digits with 5% wrong ones, its features found 0.47 of them in place
    of 0.92."""
    run = run_of_checkpoint(Path(config.model.weights or ""))
    if run is None:
        return
    try:
        own = load_config(run)
        classes = own.model.num_classes
        seen = open_split(own.data, "train", num_classes=classes, class_names=own.data.class_names)
    except PpclsError as error:
        note(f"whether the run was trained on these images cannot be told: {error}")
        return
    count = sum(len(find_shared_images(seen, dataset)) for dataset in images.datasets)
    if count:
        raise ConfigError(
            f"The run in {run} was trained on {count} of the {len(images.labels)} images, so its features "
            "have learnt their labels, the wrong ones too. Give a network that has not seen them, such as "
            f"the published weights: {command_line('data', 'clean', config.model.name, 'LIST')}"
        )
