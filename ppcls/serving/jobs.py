"""The work of one model: a bounded queue of jobs, and what a worker takes from it."""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Outputs = tuple[np.ndarray, ...]  # float32 [N, C], and the embeddings [N, D] where the network gives them


@dataclass(eq=False)
class Job:
    """The computation of one request.

    inputs: image files; or normalised images float32 [N, 3, H, W]; or nothing, for work of another kind.
    finish: makes the answer of the engine's outputs, or of none, in the worker's thread. deadline: by
    `time.monotonic`; a job that no worker has taken by then is cancelled. queued, taken: when that happened.
    """

    inputs: Sequence[bytes] | np.ndarray
    finish: Callable[[Outputs], Any]
    deadline: float
    future: Future = field(default_factory=Future)
    queued: float = 0.0
    taken: float = 0.0


class JobQueue:
    """A bounded queue of jobs. A place is reserved before a request's body is read, so that a full queue is
    known by then."""

    def __init__(self, length: int) -> None:
        self.length = length
        self._waiting: deque[Job] = deque()
        self._reserved = 0
        self._busy = self._idle = 0  # workers that compute, and that wait for jobs
        self._is_closed = False
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def is_full(self) -> bool:
        return len(self._waiting) + self._reserved >= self.length

    def reserve(self) -> bool:
        """Reserve a place, and return whether there was one. `put` fills it, `release` gives it back."""
        with self._changed:
            is_free = len(self._waiting) + self._reserved < self.length
            self._reserved += is_free
            return is_free

    def release(self) -> None:
        with self._changed:
            self._reserved -= 1

    def put(self, job: Job, has_place: bool = True) -> None:
        """Put a job into a reserved place; without one, beside them, whatever the length."""
        job.queued = time.monotonic()
        with self._changed:
            self._reserved -= has_place
            self._waiting.append(job)
            self._changed.notify()

    def cancel(self, job: Job) -> bool:
        """Take a job out, and return whether it was in time: no worker computes it."""
        is_cancelled = job.future.cancel()
        with self._changed:
            if is_cancelled and job in self._waiting:
                self._waiting.remove(job)
        return is_cancelled

    def take(self, images: int, wait: float) -> tuple[list[Job], bool] | None:
        """Wait for jobs, and return those of about this number of images, and whether a worker has the
        machine for itself: nothing else waits or is computed. None: the queue is closed and empty. While
        other workers wait for jobs, these have their share: only what all workers leave is batched.

        wait: seconds in which further jobs may come to fill the batch. `done` must be called behind the work.
        """
        with self._changed:
            jobs: list[Job] = []
            while not jobs:
                self._idle += 1
                self._changed.wait_for(lambda: self._waiting or self._is_closed)
                self._idle -= 1
                if not self._waiting:
                    return None
                share = math.ceil(len(self._waiting) / (self._idle + 1))
                self._take_some(jobs, min(images, share))
            until = time.monotonic() + wait
            while (missing := images - _count(jobs)) > 0 and (left := until - time.monotonic()) > 0:
                if self._is_closed:
                    break
                self._changed.wait_for(lambda: self._waiting or self._is_closed, left)
                self._take_some(jobs, missing)
            self._busy += 1
            return jobs, self._busy == 1 and not self._waiting

    def _take_some(self, jobs: list[Job], images: int) -> None:
        """Move jobs that are still wanted to `jobs`, up to this number of images but at least one."""
        now = time.monotonic()
        count = 0
        while self._waiting and (not count or count + len(self._waiting[0].inputs) <= images):
            job = self._waiting.popleft()
            if now > job.deadline:
                job.future.cancel()
            elif job.future.set_running_or_notify_cancel():
                job.taken = now
                jobs.append(job)
                count += len(job.inputs)

    def done(self) -> None:
        """Say that a worker has finished what it took."""
        with self._changed:
            self._busy -= 1

    def close(self) -> None:
        """Let the workers end when the queue is empty."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()


def _count(jobs: Sequence[Job]) -> int:
    return sum(len(job.inputs) for job in jobs)
