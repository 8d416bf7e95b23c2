"""Speed of reading images: decoding alone, and the whole pipeline as the loader runs it."""

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from ppcls.errors import DataError
from ppcls.processor import processor

if TYPE_CHECKING:
    from ppcls.data.dataset import Dataset
    from ppcls.preprocessing import Preprocessing

RunBatch = Callable[[Sequence[bytes]], None]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def read_images(dataset: "Dataset") -> tuple[list[bytes], int]:
    """Return the bytes of the images that OpenCV decodes, so that all runs read the same ones, and the number
    of the others. Raises DataError for a file that cannot be read, and if no image can be decoded."""
    import numpy as np

    from ppcls.data.opencv import cv2

    files = []
    for index in range(len(dataset)):
        try:
            content = dataset.read(index)
        except OSError as error:
            raise DataError(f"{dataset.where(index)} cannot be read: {error.strerror or error}.") from error
        if content and cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB) is not None:
            files.append(content)
    if not files:
        raise DataError(
            f"OpenCV can decode none of the {len(dataset)} images; the first: {dataset.where(0)}."
        )
    return files, len(dataset) - len(files)


def measure_data(
    files: Sequence[bytes], resize_short: int, crop_size: int, batch_size: int, rounds: int
) -> dict[str, Any]:
    """Measure "decode alone" and the pipelines "bilinear" and "bicubic, antialias", which take turns.

    Returns for each of them the images per second of CPU time, and the ratio to decoding alone in the same
    round, as median, min and max over the rounds.
    """
    import numpy as np
    import PIL

    from ppcls.data.opencv import cv2
    from ppcls.preprocessing import Preprocessing

    runs = {
        "decode alone": _decode_alone,
        "bilinear": _pipeline(Preprocessing(resize_short, crop_size, "bilinear", False, MEAN, STD)),
        "bicubic, antialias": _pipeline(Preprocessing(resize_short, crop_size, "bicubic", True, MEAN, STD)),
    }
    batches = [files[start : start + batch_size] for start in range(0, len(files), batch_size)]
    seconds = _time_rounds(runs, batches, rounds)
    alone = seconds["decode alone"]
    return {
        "machine": processor(),
        "opencv": cv2.__version__,
        "pillow": PIL.__version__,
        "numpy": np.__version__,
        "resize_short": resize_short,
        "crop_size": crop_size,
        "batch_size": batch_size,
        "rounds": rounds,
        "rows": {
            name: {
                "images_per_second": spread([len(files) / value for value in values]),
                "share": spread([base / value for base, value in zip(alone, values, strict=True)]),
            }
            for name, values in seconds.items()
        },
    }


def _decode_alone(batch: Sequence[bytes]) -> None:
    import numpy as np

    from ppcls.data.opencv import cv2

    for content in batch:
        cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)


def _pipeline(preprocessing: "Preprocessing") -> RunBatch:
    """Return a function that reads a batch as the loader does: from bytes to a normalised float32 array."""
    from ppcls.data.loader import empty_batch, fill_slot
    from ppcls.data.transforms import EvalTransform, Normalizer

    transform, normalize = EvalTransform(preprocessing), Normalizer(preprocessing.mean, preprocessing.std)

    def run(batch: Sequence[bytes]) -> None:
        images = empty_batch(len(batch), preprocessing)
        for index, content in enumerate(batch):
            fill_slot(content, index, transform, normalize, images[index])

    return run


def _time_rounds(
    runs: dict[str, RunBatch], batches: Sequence[Sequence[bytes]], rounds: int
) -> dict[str, list[float]]:
    """Return the CPU seconds of each run in each round. In a round they take turns batch by batch."""
    for run in runs.values():
        run(batches[0])
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        spent = dict.fromkeys(runs, 0.0)
        for batch in batches:
            for name, run in runs.items():
                start = time.thread_time()
                run(batch)
                spent[name] += time.thread_time() - start
        for name, value in spent.items():
            seconds[name].append(value)
    return seconds


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return the median and the range of a measurement."""
    return {"median": median(values), "min": min(values), "max": max(values)}
