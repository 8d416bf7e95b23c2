"""A model behind the server: its predictor, its queue, and the threads that compute."""

import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from ppcls.data.decode import count_pixels
from ppcls.data.loader import empty_batch
from ppcls.errors import DataError, ExportError, PpclsError, counted
from ppcls.inference.engines.engine import Engine
from ppcls.inference.predictions import Prediction
from ppcls.inference.predictor import Predictor
from ppcls.serving.jobs import Job, JobQueue, Outputs
from ppcls.serving.limits import Limits
from ppcls.serving.memory import free_memory, used_memory
from ppcls.serving.metrics import Metrics
from ppcls.serving.protocol import INPUTS, VERSION, RequestError, Tensor

WARM_UP_SECONDS = 300.0
# Makes of a normalised image [1, 3, S, S] a JPEG with what speaks for its class.
Explain = Callable[[np.ndarray], bytes]
SHARE = 2  # the streams are opened if this many times the first engine's memory is free


@dataclass(frozen=True)
class Engines:
    """The engines of a model. wide: one stream of all threads, the quickest for a single batch. many: streams
    of one thread each, which do more in all; or the same engine."""

    wide: Engine
    many: Engine


class ServedModel:
    """One model of the server.

    A single request is computed on an engine that uses all threads. While others wait, each worker computes
    on a stream of a second engine, which does more in all. A model is loading until `ready` is true. It is
    false again when the model has failed, for the reason `failure`, until `reopen` succeeds.
    """

    def __init__(self, name: str, limits: Limits, metrics: Metrics) -> None:
        self.name, self.limits, self.metrics = name, limits, metrics
        self.queue = JobQueue(limits.queue)
        self.ready = False
        self.failure: str | None = None
        self.predictor: Predictor
        self.explain: Explain | None = None
        self._engines: Engines | None = None
        self._first = 0  # bytes of memory that the predictor's own engine takes
        self._workers: list[threading.Thread] = []
        self._seconds = 0.0  # that a job took a worker, a running mean
        metrics.watch_queue(name, lambda: len(self.queue))

    def start(self, predictor: Predictor, memory: int) -> str:
        """Open the engines, answer a warm-up request, and return a line about the model. memory: of the
        process before the predictor was opened. Raises PpclsError."""
        self.predictor, self._first = predictor, used_memory() - memory
        engines = self._open_engines()
        streams = f"1 stream of all threads and {engines.many.streams} of one each"
        if engines.many is engines.wide:
            streams = counted(engines.wide.streams, "stream")
        megabytes = (used_memory() - memory) / 2**20
        return f"{self.name}: {engines.wide.name}, {streams}, {megabytes:.0f} MiB of memory"

    def reopen(self) -> None:
        """Open the engines anew after a failure, and answer a warm-up request. Raises PpclsError."""
        self.predictor.reopen()
        self._open_engines()

    def _open_engines(self) -> Engines:
        engines = Engines(self.predictor.engine, self._open_streams())
        for engine in {id(engine): engine for engine in (engines.wide, engines.many)}.values():
            self._warm_up(engine)
        self._engines = engines
        if not self._workers:
            count = max(2, engines.many.streams)  # one decodes while another one computes
            names = [f"{self.name}-{number}" for number in range(count)]
            self._workers = [threading.Thread(target=self._work, name=name, daemon=True) for name in names]
            for worker in self._workers:
                worker.start()
        self._answer_one()
        self.ready, self.failure = True, None
        return engines

    def _open_streams(self) -> Engine:
        """Open the engine of several streams if it is one of its own and memory has room for it."""
        wide, wished = self.predictor.engine, self.limits.streams or self.predictor.streams
        free = free_memory()
        if wished == wide.streams or (free is not None and free < SHARE * self._first):
            return wide
        return self.predictor.open_engine(wished)

    def _fail(self, engine: Engine, reason: str) -> None:
        """Let go of the engines, of which this one failed, unless others have replaced them already."""
        if self._engines is not None and engine in (self._engines.wide, self._engines.many):
            self.ready, self.failure, self._engines = False, reason, None

    def _failed(self) -> RequestError:
        """Return the answer to all requests while the model has failed."""
        pause = math.ceil(self.limits.reopen)
        reason = f"The model {self.name} failed: {self.failure} It is opened again."
        return RequestError(503, reason, {"Retry-After": str(pause)})

    def _warm_up(self, engine: Engine) -> None:
        """Run each batch size once on each stream: engines allocate when they meet one."""
        for count in sorted({1, self.batch_size}):
            images = empty_batch(count, self.predictor.preprocessing)
            images[:] = 0
            with ThreadPoolExecutor(engine.streams) as pool:
                list(pool.map(self.predictor.run_on, [engine] * engine.streams, [images] * engine.streams))

    def _answer_one(self) -> None:
        """Send a request through the queue, as clients do, but beside their places."""
        size = self.predictor.preprocessing.crop_size
        images = np.zeros((1, 3, size, size), np.float32)
        job = Job(images, lambda outputs: outputs, time.monotonic() + WARM_UP_SECONDS)
        self.queue.put(job, has_place=False)
        try:
            outputs = job.future.result(WARM_UP_SECONDS)
        except RequestError as error:
            raise ExportError(f"{self.name} did not answer its first request: {error}") from error
        if not np.isfinite(outputs[0]).all():
            raise ExportError(f"{self.name} returns values that are not finite: its weights are damaged.")

    @property
    def batch_size(self) -> int:
        """Images that are computed together."""
        return min(self.limits.batch, self.predictor.description.batch_size or self.limits.batch)

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """The outputs that a request may name, the default first."""
        description = self.predictor.description
        names = {"probabilities": description.num_classes, "logits": description.num_classes}
        if description.embeddings is not None:
            names["embeddings"] = description.embeddings
        return tuple(Tensor(name, "FP32", (-1, size)) for name, size in names.items())

    @property
    def labels(self) -> Sequence[str] | None:
        """The classes' names."""
        names = self.predictor.class_names
        return names.names if names else None

    @property
    def seconds_to_wait(self) -> int:
        """Whole seconds in which the queue of now may be done."""
        return max(1, math.ceil(len(self.queue) * self._seconds / max(1, len(self._workers))))

    def predict(self, outputs: Outputs, topk: int | None) -> Prediction:
        """Return the Prediction of one image's outputs."""
        return self.predictor.to_prediction(None, self.predictor.to_probabilities(outputs[0])[0], topk=topk)

    def metadata(self) -> dict[str, Any]:
        """Return the model's metadata as the protocol has it."""
        return {
            "name": self.name,
            "versions": [VERSION],
            "platform": f"ppcls_{self.predictor.engine.name}",
            "inputs": [tensor.to_dict() for tensor in INPUTS],
            "outputs": [tensor.to_dict() for tensor in self.outputs],
        }

    def require_ready(self) -> None:
        """Raise RequestError if the model is loading or has failed."""
        if self.failure is not None:
            raise self._failed()
        if not self.ready:
            raise RequestError(503, f"The model {self.name} is loading.", {"Retry-After": "1"})

    def values(self, outputs: Outputs, names: Iterable[str]) -> dict[str, np.ndarray]:
        """Return the named outputs of what the engine returned."""
        make = {
            "probabilities": lambda: self.predictor.to_probabilities(outputs[0]),
            "logits": lambda: self.predictor.to_logits(outputs[0]),
            "embeddings": lambda: outputs[1],
        }
        return {name: make[name]().astype(np.float32, copy=False) for name in names}

    def close(self) -> None:
        """Let the workers end when nothing waits."""
        self.ready = False
        self.queue.close()

    def _work(self) -> None:
        while (taken := self.queue.take(self.batch_size, self.limits.wait / 1000)) is not None:
            jobs, is_alone = taken
            try:
                engines = self._engines
                if engines is None:
                    raise self._failed()
                self._compute(jobs, engines.wide if is_alone else engines.many)
            except Exception as error:  # noqa: BLE001 - the requests report it, and the worker goes on
                for job in jobs:
                    if not job.future.done():
                        job.future.set_exception(error)
            finally:
                self.queue.done()
                took = (time.monotonic() - jobs[0].taken) / len(jobs)
                self._seconds += (took - self._seconds) / 16

    def _compute(self, jobs: Sequence[Job], engine: Engine) -> None:
        """Compute the jobs whose images have the same size together."""
        groups: dict[tuple[int, ...], list[tuple[Job, np.ndarray]]] = {}
        for job in jobs:
            try:
                images = self.load(job.inputs)
            except RequestError as error:
                job.future.set_exception(error)
            else:
                groups.setdefault(images.shape[1:], []).append((job, images))
        for group in groups.values():
            try:
                outputs = self._run([images for _, images in group], engine)
            except RequestError as error:
                for job, _ in group:
                    job.future.set_exception(error)
                continue
            start = 0
            for job, images in group:
                self._finish(job, tuple(output[start : start + len(images)] for output in outputs))
                start += len(images)

    def _finish(self, job: Job, outputs: Outputs) -> None:
        try:
            job.future.set_result(job.finish(outputs))
        except PpclsError as error:  # outputs that are not finite
            job.future.set_exception(RequestError(400, str(error)))
        except Exception as error:  # noqa: BLE001 - it is reported by this request, not by all of its batch
            job.future.set_exception(error)

    def load(self, inputs: Sequence[bytes] | np.ndarray) -> np.ndarray:
        """Return the images, decoded and prepared, float32 [N, 3, H, W]. Raises RequestError."""
        if isinstance(inputs, np.ndarray):
            return inputs
        images = empty_batch(len(inputs), self.predictor.preprocessing)
        for number, data in enumerate(inputs):
            where = f"image {number + 1} of {len(inputs)}: " if len(inputs) > 1 else ""
            pixels = count_pixels(data) or 0
            if pixels > 1e6 * self.limits.pixels:
                raise RequestError(
                    413,
                    f"{where}a picture may have {self.limits.pixels:g} million pixels. Received: "
                    f"{pixels / 1e6:.1f} million",
                )
            try:
                self.predictor.fill(data, images[number])
            except DataError as error:
                raise RequestError(422, f"{where}not a readable image: {error}") from error
        return images

    def _run(self, images: list[np.ndarray], engine: Engine) -> Outputs:
        """Run images [N, 3, H, W] in batches. Raises RequestError."""
        joined = images[0] if len(images) == 1 else np.concatenate(images)
        if not len(joined):  # work of another kind, without images
            return ()
        size = self.predictor.preprocessing.crop_size
        is_usual = joined.shape[2:] == (size, size)
        parts = []
        for start in range(0, len(joined), self.batch_size):
            batch = joined[start : start + self.batch_size]
            try:
                parts.append(self.predictor.run_on(engine if is_usual else current_of(engine), batch))
            except DataError as error:
                raise RequestError(400, str(error)) from error
            except ExportError as error:
                if not is_usual:
                    raise RequestError(400, f"{list(joined.shape)} cannot be computed: {error}") from error
                self._fail(engine, str(error))
                raise self._failed() from error
            self.metrics.computed(self.name, len(batch))
        return parts[0] if len(parts) == 1 else tuple(map(np.concatenate, zip(*parts, strict=True)))


def current_of(engine: Engine) -> Engine:
    """Return the engine itself, so that its failure on an input of odd size does not replace it."""
    return getattr(engine, "current", engine)


def extras_of(prediction: Any) -> dict[str, Any]:
    """Return what a Prediction says of the image beyond its classes, by name: fields and properties that are
    not None."""
    known = {"file", "class_ids", "labels", "probabilities", "error", "embedding"}
    kind = type(prediction)
    names = [item.name for item in fields(kind)]
    names += [name for name, value in vars(kind).items() if isinstance(value, property)]
    values = {name: getattr(prediction, name) for name in names if name not in known}
    return {name: value for name, value in values.items() if value is not None}
