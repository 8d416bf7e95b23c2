"""Paddle Inference: on a GPU if Paddle has one, else on the CPU with oneDNN."""

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ppcls.inference.engines.engine import EngineType, RunBatch


def _open(file: Path, threads: int, streams: int, *, onednn: bool) -> tuple[list[RunBatch], bool]:
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # else Paddle sets it to 1
    from ppcls.distributed import import_paddle

    paddle = import_paddle()
    from paddle.inference import Config, create_predictor

    config = Config(str(file), str(file.with_suffix(".pdiparams")))
    is_on_cpu = not (paddle.is_compiled_with_cuda() and paddle.device.cuda.device_count())
    if is_on_cpu:
        config.disable_gpu()
        config.set_cpu_math_library_num_threads(threads)
        if onednn:
            config.enable_mkldnn()
        elif hasattr(config, "disable_mkldnn"):
            config.disable_mkldnn()
    else:
        config.enable_use_gpu(256, 0)
    if file.suffix == ".json":
        config.enable_new_ir(True)
        config.enable_new_executor(True)
    config.enable_memory_optim()
    config.disable_glog_info()
    first = create_predictor(config)
    others = [first.clone() for _ in range(streams - 1)]
    return [_stream(predictor) for predictor in (first, *others)], is_on_cpu


def _stream(predictor: Any) -> RunBatch:
    images_in = predictor.get_input_handle(predictor.get_input_names()[0])
    outputs = [predictor.get_output_handle(name) for name in predictor.get_output_names()]

    def run(images: np.ndarray) -> tuple[np.ndarray, ...]:
        images_in.reshape(images.shape)
        images_in.copy_from_cpu(images)
        predictor.run()
        return tuple(output.copy_to_cpu() for output in outputs)

    return run


PADDLE = EngineType(
    name="paddle",
    reads=(".json", ".pdmodel"),
    extra="cpu",
    packages=("paddlepaddle", "paddlepaddle-gpu"),
    open=partial(_open, onednn=True),
)
# Paddle's own default on a CPU, which the benchmark shows beside it.
PADDLE_WITHOUT_ONEDNN = replace(PADDLE, open=partial(_open, onednn=False))
