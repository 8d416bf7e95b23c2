"""Classes and probabilities for image files."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from ppcls.data.dataset import Dataset
from ppcls.data.files import find_images as find_images
from ppcls.data.loader import Batch, eval_batch_indices, load_batch, load_batches
from ppcls.data.transforms import EvalTransform
from ppcls.inference.engines import Engine
from ppcls.preprocessing import Preprocessing


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of one image, the likeliest first; or why there are none.

    file: None for an array. labels: the classes' names, or their numbers as text where they have none.
    """

    file: str | None
    class_ids: tuple[int, ...] = ()
    labels: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    error: str | None = None


def run_batches(
    engine: Engine,
    dataset: Dataset,
    order: Iterable[np.ndarray],
    spec: Preprocessing,
    *,
    num_workers: int,
    on_error: str,
) -> Iterator[tuple[Batch, np.ndarray]]:
    """Each batch with the engine's output for it, in the order given. Reading and running overlap.

    An engine of one stream is fed by `num_workers` loading threads. With several, as many threads each
    load and run batches of their own: nothing waits, and no more threads compute than there are cores.
    """
    transform = EvalTransform(spec)

    def run(batch: Batch) -> np.ndarray:
        return engine.run(batch.images) if len(batch.indices) else np.empty((0, 0), np.float32)

    if engine.streams == 1:
        for batch in load_batches(
            dataset, order, transform, spec, num_workers=num_workers, on_error=on_error
        ):
            yield batch, run(batch)
        return

    def load_and_run(indices: np.ndarray) -> tuple[Batch, np.ndarray]:
        batch = load_batch(dataset, indices, transform, spec, on_error=on_error)
        output = run(batch)
        return batch._replace(images=batch.images[:0]), output

    pending: deque[Future] = deque()
    pool = ThreadPoolExecutor(engine.streams, thread_name_prefix="infer")
    try:
        for indices in order:
            pending.append(pool.submit(load_and_run, indices))
            if len(pending) > 2 * engine.streams:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def classify(
    engine: Engine,
    files: Sequence[str],
    spec: Preprocessing,
    *,
    is_softmax_inside: bool = False,
    names: Sequence[str] | None,
    topk: int,
    batch_size: int,
    num_workers: int,
) -> Iterator[Prediction]:
    """A prediction for each file, in their order; for an unreadable one its reason."""
    order = eval_batch_indices(len(files), batch_size)
    outputs = run_batches(
        engine, Dataset.of_files(files), order, spec, num_workers=num_workers, on_error="skip"
    )
    for indices, (batch, output) in zip(order, outputs, strict=True):
        found = {item.index: Prediction(item.name, error=item.reason) for item in batch.unreadable}
        if len(batch.indices):
            probabilities = output if is_softmax_inside else softmax(output)
            for index, row in zip(batch.indices, probabilities, strict=True):
                found[int(index)] = best_classes(files[index], row, names, topk)
        yield from (found[int(index)] for index in indices)


def best_classes(
    file: str | None, probabilities: np.ndarray, names: Sequence[str] | None, topk: int
) -> Prediction:
    """The likeliest of one image's [C] probabilities; of equal ones the lower class comes first."""
    best = np.argsort(-probabilities, kind="stable")[:topk].tolist()
    return Prediction(
        file,
        class_ids=tuple(best),
        labels=tuple(str(i) if names is None else names[i] for i in best),
        probabilities=tuple(float(probabilities[i]) for i in best),
    )


def softmax(logits: np.ndarray) -> np.ndarray:
    """[N, C] to float64 [N, C]."""
    exponentials = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)
