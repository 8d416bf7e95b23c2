"""ONNX Runtime: on a GPU if its package has a provider for it, else on the CPU."""

from pathlib import Path

import numpy as np

from ppcls.inference.engines.engine import EngineType, RunBatch


def _open(file: Path, threads: int, streams: int) -> tuple[list[RunBatch], bool]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # errors are raised, and need not be printed as well
    available = onnxruntime.get_available_providers()
    providers = [f"{kind}ExecutionProvider" for kind in ("Tensorrt", "CUDA", "CPU")]
    session = onnxruntime.InferenceSession(
        str(file), options, providers=[name for name in providers if name in available]
    )
    name = session.get_inputs()[0].name

    def run(images: np.ndarray) -> tuple[np.ndarray, ...]:
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
