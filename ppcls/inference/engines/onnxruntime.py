"""ONNX Runtime: on a GPU if its package has a provider for it, else on the CPU."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ppcls.inference.engines.engine import EngineType, RunBatch
from ppcls.processor import flushed_denormals

if TYPE_CHECKING:
    import onnxruntime


def session_options(threads: int) -> "onnxruntime.SessionOptions":
    """Return the options of a session of so many threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Threads that wait for a next run by spinning take a core from those that read and decode.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 4  # errors are raised, and need not be printed as well
    # of the threads that it starts; `run` does so in its caller's
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    return options


def _open(file: Path, threads: int, streams: int) -> tuple[list[RunBatch], bool]:
    import onnxruntime

    available = onnxruntime.get_available_providers()
    providers = [f"{kind}ExecutionProvider" for kind in ("Tensorrt", "CUDA", "CPU")]
    with flushed_denormals():  # the first session changes this thread's setting for good
        session = onnxruntime.InferenceSession(
            str(file), session_options(threads), providers=[name for name in providers if name in available]
        )
    name = session.get_inputs()[0].name

    def run(images: np.ndarray) -> tuple[np.ndarray, ...]:
        with flushed_denormals():
            return tuple(session.run(None, {name: images}))

    return [run] * streams, session.get_providers()[0] == "CPUExecutionProvider"


ONNXRUNTIME = EngineType(
    name="onnxruntime",
    reads=(".onnx",),
    extra="onnx",
    packages=("onnxruntime",),
    open=_open,
    survives_fork=True,
)
ONNXRUNTIME_INT8 = replace(ONNXRUNTIME, name="onnxruntime-int8", is_int8=True)
