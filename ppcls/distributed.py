"""Processes of one run, started by `python -m paddle.distributed.launch`, and their device."""

import contextlib
import ctypes
import faulthandler
import io
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from ppcls.errors import ConfigError, PpclsError
from ppcls.processor import use_fast_matrix_products

if TYPE_CHECKING:
    import numpy as np

T = TypeVar("T")
STALL_SECONDS = 25  # gloo ends a collective with an error after 30

_PARENT = os.getppid()  # the launcher, if there is one


def rank() -> int:
    return int(os.environ.get("PADDLE_TRAINER_ID", "0"))


def world_size() -> int:
    return int(os.environ.get("PADDLE_TRAINERS_NUM", "1"))


def local_size() -> int:
    """Return the number of this run's processes on this machine."""
    return int(os.environ.get("PADDLE_LOCAL_SIZE", "1"))


def local_rank() -> int:
    """Return this process's number among those of this machine."""
    return int(os.environ.get("PADDLE_RANK_IN_NODE", "0"))


def cores() -> int:
    """Return the number of processor cores for each process of this run, at least one."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, allowed // local_size())


def import_paddle() -> Any:
    """Import Paddle without its start-up messages, and return it.

    Raises ConfigError if it is not installed.
    """
    os.environ.setdefault("GLOG_minloglevel", "2")  # C++ messages: errors only
    use_fast_matrix_products()
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()) as noise:
        warnings.filterwarnings("ignore", message="No ccache found")
        try:
            import paddle
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"Paddle is not installed ({error}): pip install 'ppcls[cpu]', or a Paddle for your GPU."
            ) from error
    warnings.filterwarnings("ignore", message="When training, we now always track global mean")
    for line in noise.getvalue().splitlines():
        if "OMP_NUM_THREADS" not in line:  # Paddle warns of every value but 1
            print(line, file=sys.stderr)
    return paddle


def uses_gpu(device: str) -> bool:
    """Return whether `start` would choose a GPU. Imports Paddle only if its package is made for GPUs."""
    if device != "auto":
        return device == "gpu"
    from importlib.metadata import PackageNotFoundError, version

    try:
        version("paddlepaddle-gpu")
    except PackageNotFoundError:
        return False
    return _has_gpu(import_paddle())


def _has_gpu(paddle: Any) -> bool:
    return paddle.is_compiled_with_cuda() and paddle.device.cuda.device_count() > 0


def start(device: str) -> str:
    """Import Paddle, choose the device ("auto", "cpu" or "gpu") and join the other processes.

    A single process uses all cores, unless OMP_NUM_THREADS is set; Paddle's default is one. May be called
    twice. Returns "cpu" or "gpu". Raises ConfigError if a GPU is requested and there is none.
    """
    if world_size() == 1:
        os.environ.setdefault("OMP_NUM_THREADS", str(cores()))
    if "PADDLE_TRAINER_ID" in os.environ:
        end_with_launcher()
    paddle = import_paddle()
    has_gpu = _has_gpu(paddle)
    if device == "gpu" and not has_gpu:
        raise ConfigError(
            f"device is gpu, but Paddle {paddle.__version__} has none here. Use -o device=cpu, or install a "
            "Paddle for your GPU."
        )
    chosen = "gpu" if device != "cpu" and has_gpu else "cpu"
    paddle.set_device(chosen)
    if world_size() > 1 and not paddle.distributed.is_initialized():
        paddle.distributed.init_parallel_env()
    return chosen


def end_with_launcher() -> None:
    """Ask Linux to send SIGTERM to this process when its parent ends, killed or not."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # 1: PR_SET_PDEATHSIG
        if os.getppid() != _PARENT:  # it has ended before: without it this process would wait for the others
            os.kill(os.getpid(), signal.SIGTERM)


_shows_stalls = False


@contextlib.contextmanager
def stalls_shown() -> Iterator[None]:
    """Inside this context, a process that exchanges no sum for 25 seconds writes its stack to its log."""
    global _shows_stalls
    _shows_stalls = world_size() > 1
    try:
        yield
    finally:
        _shows_stalls = False
        faulthandler.cancel_dump_traceback_later()


def sum_over_ranks(values: "np.ndarray") -> "np.ndarray":
    """Sum an array, float64 of any shape, over the processes."""
    if world_size() == 1:
        return values
    import paddle

    tensor = paddle.to_tensor(values.astype("float64"))
    paddle.distributed.all_reduce(tensor)
    if _shows_stalls:
        faulthandler.dump_traceback_later(STALL_SECONDS, file=2)
    return tensor.numpy()


def rows_of_ranks(row: "np.ndarray") -> "np.ndarray":
    """Stack one row, float64 [N], from each process to [processes, N]."""
    import numpy as np

    rows = np.zeros((world_size(), len(row)))
    rows[rank()] = row
    return sum_over_ranks(rows)


def gather(item: Any) -> list[Any]:
    """Collect one small object from each process, in the order of the ranks."""
    if world_size() == 1:
        return [item]
    import paddle

    items: list[Any] = []
    paddle.distributed.all_gather_object(items, item)
    return items


def run_together(work: Callable[[], T]) -> T:
    """Run `work` in each process, and return its result when all processes have finished.

    It may take longer in one process than in another. If it fails in one, all raise an error: that process
    its own, the others a PpclsError with the same message.

    gloo ends a collective after 30 seconds. So `work` runs in a thread, and the processes check twice a
    second whether all have finished.
    """
    if world_size() == 1:
        return work()
    import numpy as np

    results: list[T] = []
    errors: list[BaseException] = []

    def attempt() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001 - raised again below, in the calling thread
            errors.append(error)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    while True:
        thread.join(0.5)
        is_done = not thread.is_alive()
        finished, failed = sum_over_ranks(np.array([is_done, is_done and bool(errors)], np.float64))
        if failed:
            reasons = gather(str(errors[0]) if errors else None)
            if errors:
                raise errors[0]
            raise PpclsError(next(reason for reason in reasons if reason is not None))
        if finished == world_size():
            return results[0]
