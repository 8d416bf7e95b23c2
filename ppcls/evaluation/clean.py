"""Doubtful images of datasets: likely wrong labels by confident learning, and near duplicates.

Confident learning: Northcutt, Jiang, Chuang, https://arxiv.org/abs/1911.00068, by the package cleanlab.
"""

import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
from PIL import Image

from ppcls.commands import command_line
from ppcls.config import Config
from ppcls.data.dataset import Dataset, open_split
from ppcls.data.decode import decode
from ppcls.distributed import cores
from ppcls.errors import ConfigError, DataError, PpclsError, first_few
from ppcls.inference.predictor import Predictor
from ppcls.progress import note

FOLDS = 5
HASH_SIDE = 32  # pixels; the perceptual hash shrinks an image to this square
HASH_BITS = 14  # of 64: copies differ in at most as many
COSINE = 0.75  # of two embeddings: copies have at least this
_BLOCK = 512  # images compared with all others at a time
_CHUNK = 1024  # images handed to the threads at a time
Progress = Callable[[int], object]


class Doubtful(NamedTuple):
    """A likely wrong label. position: of the image among those of all datasets. label, suggested: classes.
    probabilities: of these two, by a classifier that has not seen the image."""

    position: int
    label: int
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
    try:
        import cleanlab  # noqa: F401
        import imagehash  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"The package {error.name} is not installed. Install it with the others that this command needs: "
            "pip install 'ppcls[clean]'"
        ) from None


def join_datasets(datasets: Sequence[Dataset]) -> Images:
    """Put datasets with the same classes together. Raises DataError for a dataset without labels, for
    different classes, for fewer than two classes, and for a class of fewer than FOLDS images."""
    first = datasets[0]
    for dataset in datasets:
        if dataset.labels is None:
            raise DataError(
                f"{dataset.name(0)} and the other images beside it have no labels. Expected: a list file of "
                "lines 'path label', or a folder with one folder for each class."
            )
        if dataset.class_names != first.class_names:
            raise DataError(
                f"The classes of {dataset.name(0)} are not those of {first.name(0)}. Expected: list files "
                "with the same labels, or folders with the same class folders. Received: "
                + " and ".join(_shown_names(source) for source in (dataset, first))
            )
    sizes = [len(dataset) for dataset in datasets]
    labels = np.concatenate([dataset.labels for dataset in datasets if dataset.labels is not None])
    if len(np.unique(labels)) < 2:
        raise DataError("All images have the same label. A wrong label is found by the images of others.")
    names = first.class_names.names if first.class_names else [str(n) for n in range(labels.max() + 1)]
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


def _shown_names(dataset: Dataset) -> str:
    return first_few(dataset.class_names.folders) if dataset.class_names else "numbers of a list"


def embed(predictor: Predictor, images: Images, progress: Progress) -> np.ndarray:
    """Return the embeddings float32 [N, D], of length 1; NaN for an unreadable image."""
    parts = [predictor.embeddings(d, on_error="skip", progress=progress)[0] for d in images.datasets]
    rows = np.concatenate(parts)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def hash_images(images: Images, num_workers: int, progress: Progress) -> np.ndarray:
    """Return the perceptual hashes bool [N, 64]: the signs of the lowest frequencies. All 64 are False for an
    image that is unreadable or below HASH_SIDE pixels, which has no such frequencies."""
    found = np.zeros((len(images.labels), 64), bool)
    start = 0
    with warnings.catch_warnings(), ThreadPoolExecutor(num_workers) as pool:
        warnings.simplefilter("ignore")  # of damaged files; `check` reports them
        for dataset in images.datasets:
            for first in range(0, len(dataset), _CHUNK):
                chunk = range(first, min(first + _CHUNK, len(dataset)))
                for index, bits in zip(chunk, pool.map(partial(_hash, dataset), chunk), strict=True):
                    found[start + index] = bits
                    progress(1)
            start += len(dataset)
    return found


def _hash(dataset: Dataset, index: int) -> np.ndarray | bool:
    import imagehash

    try:
        pixels = decode(dataset.read(index))
    except (OSError, DataError):
        return False
    if min(pixels.shape[:2]) < HASH_SIDE:
        return False
    return imagehash.phash(Image.fromarray(pixels), highfreq_factor=HASH_SIDE // 8).hash.ravel()


def find_near_duplicates(embeddings: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """Return int64 [N], for each image the first image of its group; its own number if it has no copy.

    embeddings: float32 [N, D], of length 1. Two images are copies if their hashes differ in at most HASH_BITS
    bits and their embeddings' cosine is at least COSINE; copies of copies belong together. The memory is that
    of a block of images times all images.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    count = len(hashes)
    signs = np.where(hashes, np.float32(1), np.float32(-1))
    signs[~hashes.any(axis=1)] = 0  # no hash: 32 bits from every other
    first = np.arange(count)
    for start in range(0, count, _BLOCK):
        block = slice(start, start + _BLOCK)
        close = signs[block] @ signs[start:].T >= 64 - 2 * HASH_BITS
        rows, columns = np.nonzero(np.triu(close, 1))
        rows, columns = rows + start, columns + start
        pieces = range(0, len(rows), 1 << 14)  # of which each gathers some hundred megabytes at most
        cosines = [_cosines(embeddings, rows[i : i + (1 << 14)], columns[i : i + (1 << 14)]) for i in pieces]
        alike = np.concatenate([*cosines, np.empty(0, np.float32)]) >= COSINE
        if not alike.any():
            continue
        one = np.concatenate([rows[alike], np.arange(count)])
        other = np.concatenate([columns[alike], first])  # the groups so far
        graph = coo_matrix((np.ones(len(one), bool), (one, other)), (count, count))
        groups = connected_components(graph, directed=False)[1]
        first = np.unique(groups, return_index=True)[1][groups]
    return first


def _cosines(embeddings: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    return np.einsum("nd,nd->n", embeddings[rows], embeddings[columns])


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
            int(classes[labels[n]]),
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
    groups = np.unique(copies, return_inverse=True)[1]
    return rows, _deal(labels, groups, names)


def _deal(labels: np.ndarray, groups: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Return the fold of each image, int64 [N]: those of a class are dealt out, and copies stay together."""
    random = np.random.RandomState(0)
    _, leaders = np.unique(groups, return_index=True)  # the first image of each group
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
    """Raise ConfigError if a run, by its config, was trained on some of the images. Such a network has learnt
    their wrong labels too: on digits with 5% wrong ones, its features found 0.47 of them in place of 0.92."""
    data = config.data
    try:
        seen = open_split(data, "train", num_classes=config.model.num_classes, class_names=data.class_names)
    except PpclsError as error:
        note(f"whether the run was trained on these images cannot be told: {error}")
        return
    trained = {os.path.realpath(seen.name(index)) for index in range(len(seen))}
    count = sum(
        os.path.realpath(dataset.name(index)) in trained
        for dataset in images.datasets
        for index in range(len(dataset))
    )
    if count:
        raise ConfigError(
            f"The run in {config.output_path} was trained on {count} of the {len(images.labels)} images, so "
            "its features have learnt their labels, the wrong ones too. Give a network that has not seen "
            f"them, such as the published weights: {command_line('data', 'clean', config.model.name, 'LIST')}"
        )
