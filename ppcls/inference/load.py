"""Open a Predictor for a published model, a config, a run's folder or an export's folder."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from ppcls import distributed
from ppcls.build import (
    Log,
    Network,
    build_to_run,
    compare_size,
    given_class_names,
    require_weights,
    resolve_class_names,
    resolve_preprocessing,
)
from ppcls.commands import command_line
from ppcls.config import Config, DataConfig
from ppcls.data.class_names import ClassNames
from ppcls.errors import ConfigError, ExportError, PpclsError
from ppcls.inference.artifact import Artifact, read_artifact
from ppcls.inference.cache import cached_export, export_key, find_cached
from ppcls.inference.eager import describe, eager_predictor
from ppcls.inference.engines import ENGINES, open_engine
from ppcls.inference.engines.engine import Engine
from ppcls.inference.engines.fallback import FallbackEngine
from ppcls.inference.fastest import Precision, rank_engines, streams_for, to_stderr, wrong_processor
from ppcls.inference.formats import writable_formats
from ppcls.inference.formats.format import ExportOptions
from ppcls.inference.predictor import Predictor
from ppcls.inference.resolve import resolve_model
from ppcls.onednn import resolve_kernels


def load(
    source: str | Path,
    engine: str = "auto",
    *,
    precision: Precision = "float",
    overrides: Sequence[str] = (),
    topk: int = 5,
    threads: int | None = None,
    log: Log = to_stderr,
) -> Predictor:
    """Return a Predictor for a published model by its name, such as "EfficientNetLite0", for a YAML file, for
    the folder of a training run (its best weights) or other weights in its checkpoints, or for the folder of
    an export.

    engine: "auto" measures the installed engines, once for each machine and model, and takes the fastest;
    "measure" does so anew; "eager" runs the network itself; or "onnxruntime", "openvino", "paddle". Weights
    are exported to the cache once; from then on this needs no Paddle. precision: of an export with int8
    forms, "int8" or "fastest" takes one of these where it is faster here. overrides: of the config, such as
    "data.preprocessing.crop_size=288"; one of the network of an export is refused. threads: for computing,
    by default the cores that this process may use. log: receives a line for each choice.
    Raises ExportError, ConfigError, WeightsError or DataError.
    """
    for option, value in (("topk", topk), ("threads", threads)):
        if value is not None and value < 1:
            raise ConfigError(f"{option} must be at least 1. Received: {value}")
    config, export = resolve_model(source, overrides)
    if export is not None:
        return open_export(
            export, engine, precision=precision, config=config, topk=topk, threads=threads, log=log
        )
    return open_predictor(config, engine, precision=precision, topk=topk, threads=threads, log=log)


def open_predictor(
    config: Config,
    engine: str,
    *,
    precision: Precision = "float",
    topk: int = 5,
    threads: int | None = None,
    bulk: bool = False,
    log: Log = to_stderr,
) -> Predictor:
    """Return a Predictor for model.weights of a config: over the eager network, or its export in the cache.

    "auto" takes the eager network on a GPU, and if it cannot be exported. bulk: see Predictor. All processes
    of a run call this together. Raises ConfigError, WeightsError, DataError or ExportError.
    """
    require_weights(config)
    _require_auto(engine, precision)
    if precision == "int8":
        raise ConfigError(
            f"precision int8 needs an export with int8 forms. Received: {config.model.name}. Export it: "
            f"{command_line('export', 'MODEL', '--output', 'DIR', '--int8', 'FOLDER')}. Then give DIR."
        )
    log = _without_repeats(log)  # the network and its export have the same notes
    if distributed.world_size() > 1:
        distributed.start(config.device)
    if engine == "eager" or (engine == "auto" and distributed.uses_gpu(config.device)):
        return over_network(config, build_to_run(config, log), topk, threads, log)
    key = export_key(config)
    folder = find_cached(key)
    is_cached = all(distributed.gather(folder is not None))
    if folder is None or not is_cached:
        network = build_to_run(config, log)
        try:
            folder = export_to_cache(key, network, log)
        except PpclsError as error:
            if engine not in ("auto", "measure"):
                raise
            log(f"note: {error}")
            log("engine: eager, as the network could not be exported")
            return over_network(config, network, topk, threads, log)
        del network  # its memory
    else:
        artifact = read_artifact(folder)
        log(f"weights: {artifact.weights}; exported in {folder}")
        log(f"license of the weights: {artifact.license or 'not stated'}")
        for note in artifact.notes:
            log(f"note: {note}")
    return open_export(folder, engine, config=config, topk=topk, threads=threads, bulk=bulk, log=log)


def open_export(
    folder: Path,
    engine: str,
    *,
    precision: Precision = "float",
    config: Config | None = None,
    topk: int = 5,
    threads: int | None = None,
    bulk: bool = False,
    log: Log = to_stderr,
) -> Predictor:
    """Return a Predictor for an exported network.

    config: its preprocessing and class names replace the export's own, and it gives batch size and loading
    threads. All processes of a run call this together. Raises ExportError, ConfigError or DataError.
    """
    artifact = read_artifact(folder)
    _require_auto(engine, precision)
    if precision == "int8" and not artifact.int8:
        raise ExportError(
            f"{folder} has no int8 form. Export it with --int8 FOLDER, or use --precision float."
        )
    data = config.data if config else DataConfig()
    preprocessing = resolve_preprocessing(data.preprocessing, artifact.preprocessing, log, artifact.assumed)
    if artifact.weights and artifact.preprocessing is None:
        compare_size(preprocessing, artifact.model, log)
    given = given_class_names(config, log) if config else None
    class_names = resolve_class_names(given, artifact.class_names, log)
    threads = threads or distributed.cores()
    names = _engines_to_try(folder, artifact, engine, precision, threads, log)
    calibration = artifact.calibration if preprocessing == artifact.preprocessing else None
    predictor = Predictor(
        replace(artifact, preprocessing=preprocessing, class_names=class_names, calibration=calibration),
        _ExportOpener(folder, artifact, names, threads, log),
        streams=streams_for(artifact, threads),
        topk=topk,
        num_workers=data.num_workers or threads,
        batch_size=data.batch_size,
        bulk=bulk,
    )
    if (own := artifact.calibration) is not None and predictor.calibration is None:
        log(f"note: not calibrated: that is for {own.precision} and the export's own preprocessing alone")
    return predictor


@dataclass(frozen=True)
class _ExportOpener:
    """Opens an engine of `streams` for an export: the first of `names` that works."""

    folder: Path
    artifact: Artifact
    names: list[str]
    threads: int
    log: Log

    def __call__(self, streams: int) -> Engine:
        def open_one(name: str) -> Engine:
            share = max(1, self.threads // streams)
            return open_engine(self.folder, self.artifact, name, threads=share, streams=streams)

        return FallbackEngine(self.names, open_one, self.log)

    def __reduce__(self) -> tuple[type, tuple]:
        """Pickle without the caller's `log`, which may be of any kind."""
        return type(self), (self.folder.absolute(), self.artifact, self.names, self.threads, to_stderr)


def _without_repeats(log: Log) -> Log:
    """Return a log that leaves out lines that it has received before."""
    had: set[str] = set()

    def log_new(line: str) -> None:
        if line not in had:
            had.add(line)
            log(line)

    return log_new


def over_network(
    config: Config, network: Network, topk: int = 5, threads: int | None = None, log: Log | None = None
) -> Predictor:
    """Return a Predictor over an eager network. log: is told its kernels."""
    data = config.data
    if log is not None:
        log(f"engine: eager, {resolve_kernels(config.exact_kernels, network.model)}")
    return eager_predictor(
        network.model,
        network.preprocessing,
        network.class_names,
        topk=topk,
        num_workers=data.num_workers or threads,
        batch_size=data.batch_size,
        kernels=config.exact_kernels,
        activation=network.weights.activation if network.weights else "softmax",
    )


def _require_auto(engine: str, precision: Precision) -> None:
    """Raise ConfigError if a precision is to be chosen, but the engine has been."""
    if precision not in get_args(Precision):
        raise ConfigError(f"precision must be one of {', '.join(get_args(Precision))}. Received: {precision}")
    if precision != "float" and engine not in ("auto", "measure"):
        raise ConfigError(
            f"--precision chooses among engines, but --engine has chosen. Received: --precision {precision} "
            f"--engine {engine}. Leave one out; int8 alone: onnxruntime-int8, openvino-int8."
        )


def _engines_to_try(
    folder: Path, artifact: Artifact, engine: str, precision: Precision, threads: int, log: Log
) -> list[str]:
    """Return the requested engine. For "auto" and "measure", the first process measures while the others
    wait, and all take its ranking."""
    if engine == "eager":
        raise ExportError(
            f"The engine eager runs the network itself, which an exported model does not have. Received: "
            f"{folder}. Give the config or the run, or another engine: auto, {', '.join(ENGINES)}."
        )
    if engine not in ("auto", "measure"):
        log(f"engine: {engine}, as requested")
        if engine in ENGINES and ENGINES[engine].is_int8 and (note := wrong_processor(artifact)):
            log(f"note: {note}")
        return [engine]

    def rank() -> list[str]:
        if distributed.rank() > 0:
            return []
        anew = engine == "measure"
        return rank_engines(folder, artifact, threads=threads, log=log, anew=anew, precision=precision)

    return list(distributed.gather(distributed.run_together(rank))[0])


def export_to_cache(key: str, network: Network, log: Log) -> Path:
    """Return the folder of the network's export in the cache. The first process of each machine writes it for
    all there, with embeddings, and with the preprocessing and the class names of the weights alone. Raises
    ExportError."""
    from ppcls.inference.export import export_model

    weights = network.weights
    own = weights.preprocessing if weights else None
    carried = ClassNames.of_pairs(weights.class_names) if weights and weights.class_names else None
    description = describe(network.model, own, carried, weights)
    formats, missing = writable_formats(network.model)

    def export(folder: Path) -> None:
        log("engine: exporting the network to the cache, once for these weights (--engine eager avoids it)")
        for name, reason in missing.items():
            log(f"note: without {name}: {reason}")
        export_model(
            network.model,
            folder,
            description,
            formats=formats,
            options=ExportOptions(embeddings=True),
            threads=distributed.cores(),
            log=lambda line: log(f"  {line}"),
        )

    is_first_here = distributed.local_rank() == 0
    distributed.run_together(lambda: cached_export(key, export) if is_first_here else None)
    return cached_export(key, export)
