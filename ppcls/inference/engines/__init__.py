"""Engines: each runs float32 [N, 3, H, W] to float32 [N, num_classes], and to embeddings if the network gives
them. Importing this imports none of them.

Another engine is a file here and a line in ENGINES.
"""

from pathlib import Path

from ppcls.errors import ExportError, suggest
from ppcls.inference.artifact import Artifact
from ppcls.inference.engines.engine import Engine
from ppcls.inference.engines.onnxruntime import ONNXRUNTIME, ONNXRUNTIME_INT8
from ppcls.inference.engines.openvino import OPENVINO, OPENVINO_INT8
from ppcls.inference.engines.paddle import PADDLE
from ppcls.inference.formats import FORMATS, INT8_FORMATS

ENGINES = {engine.name: engine for engine in (ONNXRUNTIME, OPENVINO, PADDLE, ONNXRUNTIME_INT8, OPENVINO_INT8)}


def int8_engine(name: str) -> str:
    """Return the engine that runs an int8 form."""
    return f"{INT8_FORMATS[name].checked_with}-int8"


def installed_engines(artifact: Artifact) -> list[str]:
    """Return the engines that are installed here and can read one of the artifact's formats."""
    return [name for name, kind in ENGINES.items() if kind.is_installed and _find_file(name, artifact)]


def open_engine(folder: Path, artifact: Artifact, name: str, *, threads: int, streams: int = 1) -> Engine:
    """Load an exported network into an engine of ENGINES.

    threads: of each stream. streams: batches that run side by side.
    Raises ExportError for an unknown engine, one that is not installed or has nothing to read here, and if
    it cannot load the files.
    """
    if name not in ENGINES:
        raise ExportError(f"Unknown engine. Received: {name}; {suggest(name, [*ENGINES, 'auto', 'measure'])}")
    engine = ENGINES[name]
    if not engine.is_installed:
        raise ExportError(f"The engine {name} is not installed: pip install 'ppcls[{engine.extra}]'.")
    file = _find_file(name, artifact)
    if file is None:
        if engine.is_int8:
            raise ExportError(
                f"{folder} holds no int8 file that {name} reads. Received: {', '.join(artifact.files)}. "
                "Export with --int8 FOLDER, a folder of your pictures, or choose another engine."
            )
        best = next(kind.name for kind in FORMATS.values() if engine.reads[0] in kind.endings)
        raise ExportError(
            f"{folder} holds no file that {name} reads. Expected: {' or '.join(engine.reads)}. Received: "
            f"{', '.join(artifact.files)}. Export with --formats {best}, or choose another engine."
        )
    return engine.load(folder / file, threads, streams, artifact.input_shape)


def _find_file(name: str, artifact: Artifact) -> str | None:
    """Return the file that the engine reads best, None if there is no such file."""
    is_int8 = ENGINES[name].is_int8
    formats = [kind for kind in artifact.files if (kind in INT8_FORMATS) == is_int8]
    files = [file for kind in formats for file in artifact.files[kind]]
    for ending in ENGINES[name].reads:
        for file in files:
            if file.endswith(ending):
                return file
    return None
