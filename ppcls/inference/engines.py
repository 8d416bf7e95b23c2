"""What runs a network: float32 [N, 3, H, W] to float32 [N, num_classes]. Importing this imports no engine."""

import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ppcls.errors import DataError, ExportError, suggest
from ppcls.inference.artifact import Artifact, network_file

if TYPE_CHECKING:
    from paddle import nn

Runner = Callable[[np.ndarray], np.ndarray]

# Each engine with the format it runs best, then others that it can read; and the extra that brings it.
READS = {
    "onnxruntime": ("onnx",),
    "openvino": ("openvino", "onnx", "paddle"),
    "paddle": ("paddle",),
}
EXTRAS = {"onnxruntime": "onnx", "openvino": "openvino", "paddle": "cpu"}


class Engine(Protocol):
    """Runs batches, as many side by side as it has streams; `run` may be called from as many threads.

    batch_size: images a batch with which it is fastest; None: the larger, the better.
    """

    @property
    def name(self) -> str: ...

    @property
    def streams(self) -> int: ...

    @property
    def batch_size(self) -> int | None: ...

    def run(self, images: np.ndarray) -> np.ndarray:
        """float32 [N, 3, H, W] to float32 [N, num_classes]. Raises DataError for an array of another kind,
        ExportError where the engine fails."""
        ...


class LoadedEngine:
    """An Engine of one runner a stream."""

    def __init__(self, name: str, runners: Sequence[Runner], batch_size: int | None = None) -> None:
        self.name, self.streams, self.batch_size = name, len(runners), batch_size
        self._idle: SimpleQueue[Runner] = SimpleQueue()
        for runner in runners:
            self._idle.put(runner)

    def run(self, images: np.ndarray) -> np.ndarray:
        if images.dtype != np.float32 or images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
            raise DataError(
                "An engine takes float32 [N, 3, H, W], normalised, with N, H and W at least 1. Received: "
                f"{images.dtype} {list(images.shape)}"
            )
        runner = self._idle.get()
        try:
            return runner(np.ascontiguousarray(images))
        except Exception as error:  # each engine has exceptions of its own
            raise ExportError(
                f"The engine {self.name} failed on a batch of {list(images.shape)}: {first_line(error)} "
                "If memory ran out, lower the batch size; otherwise try another engine."
            ) from error
        finally:
            self._idle.put(runner)


class EagerEngine(LoadedEngine):
    """The plain Paddle network, in evaluation mode."""

    def __init__(self, model: "nn.Layer") -> None:
        import paddle

        model.eval()
        self.model = model

        def run(images: np.ndarray) -> np.ndarray:
            with paddle.no_grad():
                return model(paddle.to_tensor(images)).numpy()

        super().__init__("eager", [run])


def candidates(artifact: Artifact) -> list[str]:
    """The engines that are installed here and can read one of the artifact's formats."""
    return [name for name in READS if _is_installed(name) and _format_for(name, artifact) is not None]


def open_engine(
    folder: Path, artifact: Artifact, name: str, *, threads: int, streams: int = 1, onednn: bool = True
) -> Engine:
    """Load an exported model into an engine: "onnxruntime", "openvino" or "paddle".

    threads: of each stream; streams: batches that run side by side. onednn: for "paddle" on a CPU; False
    is Paddle's own default.
    Raises ExportError for an unknown engine, one that is not installed or has nothing to read here, and
    where it cannot load the files.
    """
    if name not in READS:
        raise ExportError(f"Unknown engine. Received: {name}; {suggest(name, [*READS, 'auto'])}")
    if not _is_installed(name):
        raise ExportError(
            f"The engine {name} is not installed: pip install 'ppcls[{EXTRAS[name]}]', in a clone of the "
            f"project pip install -e '.[{EXTRAS[name]}]'."
        )
    kind = _format_for(name, artifact)
    if kind is None:
        raise ExportError(
            f"{folder} holds nothing that {name} reads. Expected: {' or '.join(READS[name])}. Received: "
            f"{', '.join(artifact.files)}. Export with --formats {READS[name][0]}, or take another engine."
        )
    file = folder / str(network_file(artifact.files, kind))
    opener = {"onnxruntime": _open_onnxruntime, "openvino": _open_openvino, "paddle": _open_paddle}[name]
    options = {"onednn": onednn} if name == "paddle" else {}
    try:
        runners, on_cpu = opener(file, threads, streams, **options)
    except Exception as error:  # each engine has exceptions of its own
        raise ExportError(f"The engine {name} cannot load {file}: {first_line(error)}") from error
    return LoadedEngine(name, runners, CPU_BATCH if on_cpu else None)


def load_paddle_program(file: Path, threads: int) -> Engine:
    """A program that another project has exported, in Paddle's engine. Raises ExportError."""
    try:
        runners, _ = _open_paddle(file, threads, streams=1)
    except Exception as error:  # Paddle has many
        raise ExportError(f"Paddle cannot load {file}: {first_line(error)}") from error
    return LoadedEngine("paddle", runners)


CPU_BATCH = 4  # larger batches leave the processor's caches and are slower, up to a fifth


def first_line(error: BaseException) -> str:
    """What an engine's error says, without its stack; it ends in a full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if "Error" in line or "error" in line or "fail" in line.lower()]
    text = (told or lines or [type(error).__name__])[0][:300]
    return text if text.endswith(".") else text + "."


def _is_installed(name: str) -> bool:
    return find_spec(name) is not None


def _format_for(name: str, artifact: Artifact) -> str | None:
    for kind in READS[name]:
        if kind not in artifact.files:
            continue
        is_json = kind == "paddle" and "inference.json" in artifact.files[kind]
        if not (name == "openvino" and is_json):  # OpenVINO reads the programs of Paddle 2 only
            return kind
    return None


def _open_onnxruntime(file: Path, threads: int, streams: int) -> tuple[list[Runner], bool]:
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

    def run(images: np.ndarray) -> np.ndarray:
        return session.run(None, {name: images})[0]

    return [run] * streams, session.get_providers()[0] == "CPUExecutionProvider"


def _open_openvino(file: Path, threads: int, streams: int) -> tuple[list[Runner], bool]:
    import openvino

    options = {
        "NUM_STREAMS": streams,
        "INFERENCE_NUM_THREADS": threads * streams,
        "INFERENCE_PRECISION_HINT": "f32",  # not bf16, on processors that have it
    }
    compiled = openvino.Core().compile_model(str(file), "CPU", options)

    def runner() -> Runner:
        request = compiled.create_infer_request()

        def run(images: np.ndarray) -> np.ndarray:
            return request.infer({0: images}, share_inputs=True, share_outputs=True)[0].copy()

        return run

    return [runner() for _ in range(streams)], True


def _open_paddle(file: Path, threads: int, streams: int, onednn: bool = True) -> tuple[list[Runner], bool]:
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # else Paddle sets it to 1
    from ppcls.distributed import import_paddle

    paddle = import_paddle()
    from paddle.inference import Config, create_predictor

    config = Config(str(file), str(file.with_suffix(".pdiparams")))
    on_cpu = not (paddle.is_compiled_with_cuda() and paddle.device.cuda.device_count())
    if on_cpu:
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

    def runner(predictor: Any) -> Runner:
        images_in = predictor.get_input_handle(predictor.get_input_names()[0])
        logits_out = predictor.get_output_handle(predictor.get_output_names()[0])

        def run(images: np.ndarray) -> np.ndarray:
            images_in.reshape(images.shape)
            images_in.copy_from_cpu(images)
            predictor.run()
            return logits_out.copy_to_cpu()

        return run

    return [runner(first), *(runner(first.clone()) for _ in range(streams - 1))], on_cpu
