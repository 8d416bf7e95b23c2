"""The predictor: classifies images with an eager or an exported network. Imports no Paddle unless the engine
needs it."""

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ppcls.commands import command_line
from ppcls.data.dataset import Dataset
from ppcls.data.folders import find_images
from ppcls.data.loader import (
    Batch,
    announced,
    empty_batch,
    eval_batch_indices,
    fill_slot,
    load_batch,
    load_batches,
)
from ppcls.data.transforms import EvalTransform, Normalizer
from ppcls.distributed import cores
from ppcls.errors import ConfigError, DataError, ExportError
from ppcls.inference.artifact import Artifact
from ppcls.inference.calibration import Calibration
from ppcls.inference.engines.engine import Engine
from ppcls.inference.images import Images, OneImage, as_rgb, bytes_of, list_images
from ppcls.inference.predictions import (
    Prediction,
    best_classes,
    logits_of,
    probabilities_of,
    require_finite,
    softmax,
)
from ppcls.preprocessing import Preprocessing

if TYPE_CHECKING:
    from paddle import nn


BULK = 16  # files; from this number on an engine of several streams, which run batches side by side, pays
BATCH_SIZE = 32
THRESHOLD = 0.5  # probability from which on a network with a sigmoid takes an image for one of a class


class Predictor:
    """A network that is ready to run, with its preprocessing and class names. `ppcls.load` makes one.

    description: of the network, with its resolved preprocessing; its calibration scales all probabilities.
    open_engine: opens an engine of at least one stream; streams: how many it may have for many files.
    num_workers: threads that load images. bulk: many images will come, so the engine of several streams is
    opened at once, and no other. model: the eager network, None for an export. The attribute `activation` is
    "sigmoid" for a network that was trained with train.loss=binary. Then a Prediction has all classes whose
    probability is at least the attribute `threshold`, which may be set, and topk does not matter. Raises
    ExportError if the engine cannot be opened, ConfigError for a topk, num_workers or batch_size below 1.
    """

    def __init__(
        self,
        description: Artifact,
        open_engine: Callable[[int], Engine],
        *,
        streams: int = 1,
        topk: int = 5,
        num_workers: int | None = None,
        batch_size: int = BATCH_SIZE,
        bulk: bool = False,
        model: "nn.Layer | None" = None,
    ) -> None:
        for option, value in (("topk", topk), ("num_workers", num_workers), ("batch_size", batch_size)):
            if value is not None and value < 1:
                raise ConfigError(f"{option} must be at least 1. Received: {value}")
        if description.preprocessing is None:
            raise ConfigError("A predictor needs the preprocessing of its images.")
        self.description, self.topk, self.model = description, topk, model
        self.num_workers = num_workers or cores()
        self.num_classes, self.class_names = description.num_classes, description.class_names
        self.activation, self.threshold = description.activation, THRESHOLD
        self.open_engine, self.streams, self._batch_size = open_engine, streams, batch_size
        self._set_preprocessing(description.preprocessing)
        self._first_streams = streams if bulk else 1
        self.engine = open_engine(self._first_streams)

    def __getstate__(self) -> dict[str, Any]:
        """Return all but the engines, which are opened anew where the predictor is unpickled."""
        if self.model is not None:
            raise TypeError(
                "A Predictor over the eager network cannot be pickled. Load it with another engine, such as "
                "auto, or open it in each process."
            )
        return {k: v for k, v in self.__dict__.items() if k not in ("engine", "bulk_engine")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self.reopen()

    def reopen(self) -> None:
        """Open the engine anew, as after a failure. The old one is let go before. Raises ExportError."""
        for name in ("engine", "bulk_engine"):
            self.__dict__.pop(name, None)
        self.engine = self.open_engine(self._first_streams)

    def _set_preprocessing(self, preprocessing: Preprocessing) -> None:
        if self.description.image_size not in (None, preprocessing.crop_size):
            raise ConfigError(
                f"This export takes images of {self.description.image_size} pixels only (--image-size). "
                f"Received: data.preprocessing.crop_size={preprocessing.crop_size}"
            )
        self.preprocessing = preprocessing
        is_own = preprocessing == self.description.preprocessing  # a calibration is of images prepared so
        self._calibration = self.description.calibration if is_own else None
        self._transform = EvalTransform(preprocessing)
        self._normalize = Normalizer(preprocessing.mean, preprocessing.std)

    def with_preprocessing(self, preprocessing: Preprocessing) -> "Predictor":
        """Return a predictor with the same engines for images that are prepared otherwise."""
        other = object.__new__(type(self))
        other.__dict__ |= self.__dict__
        other._set_preprocessing(preprocessing)
        return other

    @cached_property
    def bulk_engine(self) -> Engine:
        """The engine for many files: it runs several batches side by side if the network is small."""
        return self.engine if self.engine.streams == self.streams else self.open_engine(self.streams)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the network's parameters and conventions, as `weights.hash_parameters` returns it."""
        if self.model is None:
            return self.description.parameters_sha256
        from ppcls.weights import hash_parameters

        return hash_parameters(self.model)

    @property
    def precision(self) -> str:
        """Precision of the network: "float32", "float16" for weights in half precision, or the name of the
        engine that runs an int8 form."""
        return self.engine.name if self.engine.name.endswith("-int8") else self.description.precision

    @property
    def calibration(self) -> Calibration | None:
        """The export's calibration, if it is of this preprocessing and precision."""
        found = self._calibration
        return found if found is not None and found.precision == self.precision else None

    @property
    def temperature(self) -> float | None:
        """Divisor of the logits that the calibration has; None without one."""
        return None if self.calibration is None else self.calibration.temperature

    @property
    def batch_size(self) -> int:
        """Images of a batch: as many as requested, or fewer if the engine is then faster; or as many as an
        export of a fixed batch size takes."""
        return self.description.batch_size or min(
            self._batch_size, self.engine.batch_size or self._batch_size
        )

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Return logits float32 [N, C] of normalised images float32 [N, 3, H, W]."""
        return self.to_logits(self.run_on(self.engine, images)[0])

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Return probabilities [N, C] of normalised images float32 [N, 3, H, W]."""
        return self.to_probabilities(self.run_on(self.engine, images)[0])

    def run_on(self, engine: Engine, images: np.ndarray) -> tuple[np.ndarray, ...]:
        """Run a batch on one of this predictor's engines. If an export of a fixed batch size needs more
        images, black ones fill it."""
        missing = (self.description.batch_size or 0) - len(images)
        if missing <= 0:
            return engine.run_all(images)
        filled = np.concatenate([images, np.zeros((missing, *images.shape[1:]), images.dtype)])
        return tuple(output[: len(images)] for output in engine.run_all(filled))

    def to_logits(self, outputs: np.ndarray) -> np.ndarray:
        """Return the logits of the engine's outputs, which are probabilities if it has the softmax inside; as
        they are, without the calibration."""
        return logits_of(outputs, self.activation) if self.description.output == "probabilities" else outputs

    def to_probabilities(self, outputs: np.ndarray) -> np.ndarray:
        """Return the probabilities of the engine's outputs, calibrated if the export has a calibration. The
        order of the classes is the same. Raises PpclsError for outputs that are not finite."""
        require_finite(outputs)
        if self.temperature is not None:
            return softmax(self.to_logits(outputs).astype(np.float64) / self.temperature)
        if self.description.output == "probabilities":
            return outputs
        return probabilities_of(outputs, self.activation)

    def __call__(self, images: Images) -> Prediction | list[Prediction]:
        """Return a Prediction for a file's path or its bytes, a PIL image, or an array, uint8 [H, W, 3] (red
        first) or [H, W] (grey); a list of them for a list of these, and for all files of a folder or a glob
        pattern. A PIL image is prepared as its file would be, so it is turned by its EXIF data.

        Raises DataError for an image that cannot be read. Among several files, without arrays, it does not:
        the Prediction of such a file has the reason in `error`.
        """
        listed, is_one = list_images(images)
        if is_one:
            return self._predict(listed[0])
        files = [image for image in listed if isinstance(image, str)]
        return list(self.stream(files)) if len(files) == len(listed) else list(map(self._predict, listed))

    def embed(self, images: Images) -> np.ndarray:
        """Return the embedding float32 [D] of an image: what the network's classifier sees. For several
        images, in the forms that a call takes: float32 [N, D].

        Raises DataError for an image that cannot be read, also among several (`stream` does not), and
        ExportError for an export that does not give embeddings.
        """
        listed, is_one = list_images(images)
        rows = np.empty((len(listed), self.require_embeddings()), np.float32)
        files = [image for image in listed if isinstance(image, str)]
        if len(files) == len(listed) and not is_one:
            for row, prediction in zip(rows, self.stream(files, embeddings=True), strict=True):
                if prediction.embedding is None:
                    raise DataError(f"unreadable image {prediction.file}: {prediction.error}")
                row[:] = prediction.embedding
        else:
            for row, image in zip(rows, listed, strict=True):
                row[:] = self._run_one(image)[1]
        return rows[0] if is_one else rows

    def require_embeddings(self) -> int:
        """Return how many values an embedding has. Raises ExportError for an export without embeddings."""
        if self.description.embeddings is None:
            export = command_line("export", "-c", "CONFIG_OR_RUN", "--output", "DIR", "--embeddings")
            raise ExportError(
                f"This export of {self.description.model} gives no embeddings. Export it with them: {export}"
            )
        return self.description.embeddings

    def stream(
        self, images: str | Path | Sequence[str] | Dataset, *, embeddings: bool = False
    ) -> Iterator[Prediction]:
        """Yield a Prediction for each image of a folder, a glob pattern, a list of files, or a dataset, in
        their order. Memory does not grow with their number; an unreadable file's Prediction has the reason.
        embeddings: each other one has the image's embedding too. Raises ExportError for an export that does
        not give them."""
        if embeddings:
            self.require_embeddings()
        if isinstance(images, (str, Path)):
            images = find_images(str(images))
        dataset = images if isinstance(images, Dataset) else Dataset.of_files(images)
        all_indices = eval_batch_indices(len(dataset), self.batch_size)
        results = self.run(dataset, all_indices, on_error="skip")
        for indices, (batch, outputs) in zip(all_indices, results, strict=True):
            found = {item.index: Prediction(item.name, error=item.reason) for item in batch.unreadable}
            if len(batch.indices):
                probabilities = self.to_probabilities(outputs[0])
                rows = outputs[1] if embeddings else [None] * len(probabilities)
                for index, *result in zip(batch.indices.tolist(), probabilities, rows, strict=True):
                    found[index] = self.to_prediction(dataset.name(index), *result)
            yield from (found[int(index)] for index in indices)

    def run(
        self, dataset: Dataset, batch_indices: Collection[np.ndarray], *, on_error: str
    ) -> Iterator[tuple[Batch, tuple[np.ndarray, ...]]]:
        """Yield each batch with the engine's outputs for it and, if it gives them, the embeddings. Reading
        and running overlap.

        An engine of one stream is fed by loading threads. With several streams, as many threads each load and
        run their own batches: nothing waits, and no more threads compute than there are cores.
        """
        engine = self.bulk_engine if len(dataset) >= BULK else self.engine
        if engine.streams == 1:
            yield from self._run_one_stream(engine, dataset, batch_indices, on_error)
        else:
            yield from self._run_streams(engine, dataset, batch_indices, on_error)

    def _run_one_stream(
        self, engine: Engine, dataset: Dataset, batch_indices: Collection[np.ndarray], on_error: str
    ) -> Iterator[tuple[Batch, tuple[np.ndarray, ...]]]:
        for batch in load_batches(
            dataset,
            batch_indices,
            self._transform,
            self.preprocessing,
            num_workers=self.num_workers,
            on_error=on_error,
        ):
            yield batch, self._run_batch(engine, batch)

    def _run_streams(
        self, engine: Engine, dataset: Dataset, batch_indices: Collection[np.ndarray], on_error: str
    ) -> Iterator[tuple[Batch, tuple[np.ndarray, ...]]]:
        def load_and_run(indices: np.ndarray) -> tuple[Batch, tuple[np.ndarray, ...]]:
            batch = load_batch(dataset, indices, self._transform, self.preprocessing, on_error=on_error)
            outputs = self._run_batch(engine, batch)
            return batch._replace(images=batch.images[:0]), outputs

        pending: deque[Future] = deque()
        pool = ThreadPoolExecutor(engine.streams, thread_name_prefix="infer")
        try:
            for indices in announced(batch_indices, dataset):
                pending.append(pool.submit(load_and_run, indices))
                if len(pending) > 2 * engine.streams:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _run_batch(self, engine: Engine, batch: Batch) -> tuple[np.ndarray, ...]:
        if not len(batch.indices):
            return (np.empty((0, 0), np.float32),)
        return self.run_on(engine, batch.images)

    def fill(self, data: bytes, out: np.ndarray) -> None:
        """Decode and prepare an image file's bytes into `out`, float32 [3, S, S]. Raises DataError."""
        fill_slot(data, 0, self._transform, self._normalize, out)

    def _predict(self, image: OneImage) -> Prediction:
        file = image if isinstance(image, str) else None
        return self.to_prediction(file, self.to_probabilities(self._run_one(image)[0])[0])

    def _run_one(self, image: OneImage) -> tuple[np.ndarray, ...]:
        """Return what the engine returns for a batch of this image."""
        file = image if isinstance(image, str) else None
        slot = empty_batch(1, self.preprocessing)
        if isinstance(image, np.ndarray):
            self._normalize(self._transform(as_rgb(image), 0), slot[0])
        else:
            try:
                self.fill(bytes_of(image), slot[0])
            except OSError as error:
                name = file or "the PIL image"
                raise DataError(f"{name} cannot be read: {error.strerror or error}.") from error
            except DataError as error:
                raise DataError(f"unreadable image{f' {file}' if file else ''}: {error}") from error
        return self.run_on(self.engine, slot)

    def to_prediction(
        self,
        file: str | None,
        probabilities: np.ndarray,
        embedding: np.ndarray | None = None,
        topk: int | None = None,
    ) -> Prediction:
        """Return an image's Prediction, of its probabilities [C]. topk: in place of the predictor's own."""
        names = self.class_names.names if self.class_names else None
        threshold = None if self.calibration is None else self.calibration.threshold
        is_sure = None if threshold is None else bool(probabilities.max() >= threshold)
        limits = (None, self.threshold) if self.activation == "sigmoid" else (topk or self.topk,)
        best = best_classes(file, probabilities, names, *limits)
        return replace(best, embedding=embedding, is_sure=is_sure)
