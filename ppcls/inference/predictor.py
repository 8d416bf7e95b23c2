"""Images to classes with an exported model, in Python. Imports no Paddle unless Paddle is the engine."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from ppcls.data.loader import empty_batch, fill_slot
from ppcls.data.transforms import EvalTransform, Normalizer
from ppcls.distributed import cores
from ppcls.errors import ConfigError, DataError
from ppcls.inference.artifact import read_artifact
from ppcls.inference.classify import Prediction, best_classes, classify, find_images, softmax
from ppcls.inference.engines import Engine, open_engine
from ppcls.inference.fastest import FallingBack, Say, rank_engines, streams_for, to_stderr

Images = str | Path | np.ndarray | Sequence[str | Path | np.ndarray]
MANY = 16  # files from which a second way of running, several batches side by side, is worth opening


class Predictor:
    """An exported model, ready to run.

    engine: "auto" measures those that are installed, once for each machine and model, and takes the
    fastest; or "onnxruntime", "openvino", "paddle". threads: all that it computes with, by default the
    cores that this process may use. say: gets the lines about which engine was taken and why.
    Raises ExportError where the folder or the engine is not as it should be, ConfigError for a topk or
    threads below 1.
    """

    def __init__(
        self,
        folder: str | Path,
        engine: str = "auto",
        *,
        topk: int = 5,
        threads: int | None = None,
        say: Say = to_stderr,
    ) -> None:
        for option, value in (("topk", topk), ("threads", threads)):
            if value is not None and value < 1:
                raise ConfigError(f"{option} must be at least 1. Received: {value}")
        self.folder, self.topk, self.threads = Path(folder), topk, threads or cores()
        self.artifact = read_artifact(self.folder)
        self._say = say
        engines = [engine]
        if engine == "auto":
            engines = rank_engines(self.folder, self.artifact, threads=self.threads, say=say)
        self._engines = engines
        spec = self.artifact.preprocessing
        self._transform, self._normalize = EvalTransform(spec), Normalizer(spec.mean, spec.std)
        self.engine: Engine = self._open(engines, streams=1)

    @cached_property
    def many_engine(self) -> Engine:
        """What runs many files: several batches side by side, see `streams_for`."""
        streams = streams_for(self.artifact, self.threads)
        left = self._engines[self._engines.index(self.engine.name) :]  # those before it have failed
        return self.engine if streams == 1 else self._open(left, streams)

    def __call__(self, images: Images) -> Prediction | list[Prediction]:
        """images: a file, a uint8 array [H, W, 3] (red first), or a list of these: a Prediction for each.
        A folder or a glob pattern: a list, with all the files that it names.

        Raises DataError for an image that cannot be read. Among several files it does not: its
        Prediction has the reason in `error`, and the others theirs.
        """
        if isinstance(images, np.ndarray):
            if images.ndim == 4:
                return [self._predict_array(image) for image in images]
            return self._predict_array(images)
        if isinstance(images, (str, Path)):
            if Path(images).is_file():
                return self._predict_file(images)
            return list(self.stream(find_images(str(images))))
        for image in images if isinstance(images, Sequence) else [images]:
            if not isinstance(image, (str, Path, np.ndarray)):
                raise DataError(
                    "Expected: a file, a folder, a glob pattern, a uint8 array [H, W, 3], or a list of files "
                    f"and arrays. Received: {type(image).__name__}"
                )
        if all(isinstance(image, (str, Path)) for image in images):
            return list(self.stream([str(image) for image in images]))
        return [
            self._predict_array(i) if isinstance(i, np.ndarray) else self._predict_file(i) for i in images
        ]

    def stream(self, images: str | Path | Sequence[str]) -> Iterator[Prediction]:
        """A Prediction for each file of a folder, a glob pattern or a list, as they come: whatever their
        number, the same memory."""
        files = find_images(str(images)) if isinstance(images, (str, Path)) else images
        engine = self.many_engine if len(files) >= MANY else self.engine
        return classify(
            engine,
            files,
            self.artifact.preprocessing,
            is_softmax_inside=self.artifact.output == "probabilities",
            names=self._names,
            topk=self.topk,
            batch_size=engine.batch_size or 32,
            num_workers=self.threads,
        )

    @property
    def _names(self) -> Sequence[str] | None:
        return self.artifact.class_names.names if self.artifact.class_names else None

    def _open(self, engines: Sequence[str], streams: int) -> Engine:
        def opener(name: str) -> Engine:
            threads = self.threads // streams
            return open_engine(self.folder, self.artifact, name, threads=threads, streams=streams)

        return FallingBack(engines, opener, self._say)

    def _predict_file(self, file: str | Path) -> Prediction:
        slot = empty_batch(1, self.artifact.preprocessing)
        try:
            fill_slot(Path(file).read_bytes(), 0, self._transform, self._normalize, slot[0])
        except OSError as error:
            raise DataError(f"{file} cannot be read: {error.strerror or error}.") from error
        except DataError as error:
            raise DataError(f"unreadable image {file}: {error}") from error
        return self._predict(slot, str(file))

    def _predict_array(self, image: np.ndarray) -> Prediction:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise DataError(
                "An image as an array is uint8 [H, W, 3], red first, not empty (normalised batches go to "
                f"predictor.engine.run). Received: {image.dtype} {list(image.shape)}"
            )
        slot = empty_batch(1, self.artifact.preprocessing)
        self._normalize(self._transform(image, 0), slot[0])
        return self._predict(slot, None)

    def _predict(self, slot: np.ndarray, file: str | None) -> Prediction:
        output = self.engine.run(slot)
        probabilities = output if self.artifact.output == "probabilities" else softmax(output)
        return best_classes(file, probabilities[0], self._names, self.topk)
