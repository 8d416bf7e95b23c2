"""Figures of a server for Prometheus. Those that Triton's dashboards show have Triton's names."""

import threading
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from ppcls.serving.protocol import VERSION

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
TRITON = {
    "nv_inference_request_success": "Requests for inference that were answered",
    "nv_inference_request_failure": "Requests for inference that ended with an error",
    "nv_inference_count": "Images that were computed",
    "nv_inference_exec_count": "Batches that were computed",
    "nv_inference_request_duration_us": "Time from a request to its answer, summed, in microseconds",
    "nv_inference_queue_duration_us": "Time that requests waited in the queue, summed, in microseconds",
}
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)


class _TritonCounters(Collector):
    """Counters whose names do not end in _total, as Prometheus's own must."""

    def __init__(self, models: Iterable[str]) -> None:
        self._counts = {model: dict.fromkeys(TRITON, 0.0) for model in models}
        self._lock = threading.Lock()

    def add(self, model: str, **values: float) -> None:
        with self._lock:
            for name, value in values.items():
                self._counts[model][f"nv_inference_{name}"] += value

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            counts = {model: dict(values) for model, values in self._counts.items()}
        for name, words in TRITON.items():
            metric = Metric(name, words, "untyped")
            for model, values in counts.items():
                metric.add_sample(name, {"model": model, "version": VERSION}, values[name])
            yield metric


class Metrics:
    """The figures. models: all names that appear as labels, so that no client can invent one."""

    def __init__(self, models: Iterable[str]) -> None:
        self._registry = CollectorRegistry()
        self._counters = _TritonCounters(models)
        self._registry.register(self._counters)
        registry = self._registry
        self._queue = Gauge("ppcls_queue_depth", "Requests that wait", ["model"], registry=registry)
        self._batches = Histogram(
            "ppcls_batch_size", "Images of a batch", ["model"], registry=registry, buckets=BATCH_SIZES
        )
        self._rejected = Counter(
            "ppcls_rejected", "Requests without an answer, by cause", ["model", "cause"], registry=registry
        )

    def watch_queue(self, model: str, depth: Callable[[], int]) -> None:
        self._queue.labels(model).set_function(depth)

    def computed(self, model: str, images: int) -> None:
        """Count a batch."""
        self._counters.add(model, count=images, exec_count=1)
        self._batches.labels(model).observe(images)

    def answered(self, model: str, seconds: float, waited: float) -> None:
        """Count a request that was answered. waited: seconds in the queue."""
        self._counters.add(
            model, request_success=1, request_duration_us=1e6 * seconds, queue_duration_us=1e6 * waited
        )

    def failed(self, model: str, cause: str) -> None:
        """Count a request that ended with an error."""
        self._counters.add(model, request_failure=1)
        self._rejected.labels(model, cause).inc()

    def to_text(self) -> bytes:
        """Return Prometheus's text format."""
        return generate_latest(self._registry).replace(b" untyped\n", b" counter\n")
