"""Classes and probabilities for image files."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from glob import glob
from pathlib import Path

import numpy as np

from ppcls.data.dataset import IMAGE_SUFFIXES, Dataset, list_images
from ppcls.data.loader import EvalTransform, eval_order, load_batches
from ppcls.errors import DataError
from ppcls.preprocessing import Preprocessing


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of one file, the likeliest first; or why there are none."""

    file: str
    class_ids: tuple[int, ...] = ()
    probabilities: tuple[float, ...] = ()
    error: str | None = None


def find_images(pattern: str) -> list[str]:
    """The files that a file's path, a folder (with all below it) or a glob pattern names, sorted.

    Raises DataError where there is none.
    """
    path = Path(pattern)
    if path.is_file():
        return [pattern]
    if path.is_dir():
        found = list_images(path)
        if not found:
            raise DataError(f"The folder {path} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}).")
        return found
    found = sorted(name for name in glob(pattern, recursive=True) if Path(name).is_file())
    if not found:
        raise DataError(f"There is no image, folder or match for {pattern!r}.")
    return found


def classify(
    run: Callable[[np.ndarray], np.ndarray],
    files: list[str],
    spec: Preprocessing,
    *,
    topk: int,
    batch_size: int,
    num_workers: int,
) -> Iterator[Prediction]:
    """A prediction for each file, in their order; for an unreadable one its reason."""
    order = eval_order(len(files), batch_size)
    batches = load_batches(
        Dataset(files), order, EvalTransform(spec), spec, num_workers=num_workers, on_error="skip"
    )
    for indices, batch in zip(order, batches, strict=True):
        found = {item.path: Prediction(item.path, error=item.reason) for item in batch.unreadable}
        if len(batch.indices):
            probabilities = softmax(run(batch.images))
            best = np.argsort(-probabilities, axis=1, kind="stable")[:, :topk]
            for index, ids, row in zip(batch.indices, best, probabilities, strict=True):
                found[files[index]] = Prediction(files[index], tuple(ids.tolist()), tuple(row[ids].tolist()))
        yield from (found[files[index]] for index in indices)


def softmax(logits: np.ndarray) -> np.ndarray:
    """[N, C] to float64 [N, C]."""
    exponentials = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)
