"""OpenVINO on the CPU, in float32; an int8 form of a network in both."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from ppcls.inference.engines.engine import EngineType, RunBatch

KEPT_KERNELS = 32  # of earlier input sizes; OpenVINO's 5000 take 0.3 to 0.7 MB for each new size


def _open(file: Path, threads: int, streams: int) -> tuple[list[RunBatch], bool]:
    import openvino

    # The first call fills a table. Two threads in it at once wait for each other forever (OpenVINO 2026.4).
    openvino.Type.f32.to_dtype()
    options = {
        "NUM_STREAMS": streams,
        "INFERENCE_NUM_THREADS": threads * streams,
        "INFERENCE_PRECISION_HINT": "f32",  # not bf16, on processors that have it
        "CPU_RUNTIME_CACHE_CAPACITY": KEPT_KERNELS,
    }
    compiled = openvino.Core().compile_model(str(file), "CPU", options)

    def stream() -> RunBatch:
        request = compiled.create_infer_request()

        def run(images: np.ndarray) -> tuple[np.ndarray, ...]:
            outputs = request.infer({0: images}, share_inputs=True, share_outputs=True)
            return tuple(outputs[number].copy() for number in range(len(outputs)))

        return run

    return [stream() for _ in range(streams)], True


OPENVINO = EngineType(
    name="openvino",
    reads=(".xml", ".onnx", ".pdmodel"),  # of Paddle's programs only those of Paddle 2
    extra="openvino",
    packages=("openvino",),
    open=_open,
)
OPENVINO_INT8 = replace(OPENVINO, name="openvino-int8", reads=(".xml",), is_int8=True)
