"""What eval.py and infer.py run: the network itself, its export in the cache, or an export that was given."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ppcls import distributed
from ppcls.cli.common import (
    Prepared,
    given_class_names,
    num_workers,
    prepare,
    say,
    settle_class_names,
    settle_preprocessing,
)
from ppcls.config import Config, config_of, load_config
from ppcls.errors import ConfigError, PpclsError, suggest

if TYPE_CHECKING:
    from ppcls.data.class_names import ClassNames
    from ppcls.inference.artifact import Artifact
    from ppcls.inference.engines import Engine
    from ppcls.preprocessing import Preprocessing

ENGINES = ("auto", "eager", "onnxruntime", "openvino", "paddle")


class Runner(NamedTuple):
    """batch_size, num_workers: how to feed the engine. parameters: what tells one network from another."""

    engine: "Engine"
    spec: "Preprocessing"
    class_names: "ClassNames | None"
    is_softmax_inside: bool
    batch_size: int
    num_workers: int
    parameters: str


def add_engine_options(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument("--exported", metavar="DIR", help="run what tools/export_model.py has written")
    parser.add_argument(
        "--engine",
        help=f"{', '.join(ENGINES)}; eager is the plain network of -c; auto the fastest that is installed "
        f"(default: auto with --exported, {default} with -c)",
    )


def read_config(args: argparse.Namespace) -> Config:
    """Of -c, or of --exported alone. Raises ConfigError where they contradict each other."""
    if args.engine is not None and args.engine not in ENGINES:
        raise ConfigError(f"Unknown engine. Received: {args.engine}; {suggest(args.engine, ENGINES)}")
    if args.exported is None:
        if args.config is None:
            raise ConfigError("Give a config, -c FILE, or an exported model, --exported DIR.")
        return load_config(args.config, args.override)
    if args.engine == "eager":
        raise ConfigError("--engine eager runs the plain network, and --exported has none: give -c instead.")
    from ppcls.inference.artifact import read_artifact

    artifact = read_artifact(args.exported)
    own = {"name": artifact.model, "num_classes": artifact.num_classes}
    config = (
        load_config(args.config, args.override)
        if args.config
        else config_of({"model": dict(own)}, args.override)
    )
    for option, value in own.items():
        if getattr(config.model, option) != value:
            raise ConfigError(
                f"model.{option} is {getattr(config.model, option)}, but {args.exported} holds {value}. "
                "Give the config of the exported model, or --exported alone."
            )
    if config.model.weights is not None:
        say(f"note: model.weights is not used; {args.exported} has its own")
    return config


def open_runner(config: Config, exported: str | None, wanted: str, is_many: bool) -> Runner:
    """is_many: whether there are images enough to run several batches side by side."""
    if exported is None:
        prepared = prepare(config, needs_weights=True)
        if wanted == "eager" or (wanted == "auto" and prepared.device == "gpu"):
            return _run_eager(config, prepared)
        try:
            folder = export_to_cache(prepared)
        except PpclsError as error:
            if wanted != "auto":
                raise
            say(f"note: {error}")
            say("engine: eager, the plain network, as it could not be exported")
            return _run_eager(config, prepared)
        spec, names = prepared.spec, prepared.class_names
        del prepared  # the network's memory
        return run_exported(config, folder, spec, names, wanted, is_many=is_many)
    from ppcls.inference.artifact import read_artifact

    if distributed.world_size() > 1:
        distributed.start("cpu")
    folder = Path(exported)
    artifact = read_artifact(folder)
    own = artifact.class_names
    pairs = list(zip(own.folders, own.names, strict=True)) if own else None
    spec = settle_preprocessing(config, artifact.preprocessing)
    names = settle_class_names(given_class_names(config), pairs)
    say(f"{artifact.model}, exported in {folder}; licence: {artifact.licence or 'not stated'}")
    return run_exported(config, folder, spec, names, wanted, is_many=is_many)


def run_exported(
    config: Config,
    folder: Path,
    spec: "Preprocessing",
    names: "ClassNames | None",
    wanted: str,
    *,
    is_many: bool,
) -> Runner:
    """Open the engine that is wanted; for "auto" all processes take the first one's choice."""
    from ppcls.inference.artifact import read_artifact
    from ppcls.inference.engines import open_engine
    from ppcls.inference.fastest import FallingBack, streams_for

    artifact = read_artifact(folder)
    engines = [wanted]
    if wanted == "auto":
        engines = _rank_on_first(folder, artifact)
    else:
        say(f"engine: {wanted}, as asked for")
    cores = distributed.cores()
    streams = streams_for(artifact, cores) if is_many else 1

    def opener(name: str) -> "Engine":
        return open_engine(folder, artifact, name, threads=cores // streams, streams=streams)

    engine = FallingBack(engines, opener, say)
    return Runner(
        engine,
        spec,
        names,
        artifact.output == "probabilities",
        min(config.data.batch_size, engine.batch_size or config.data.batch_size),
        num_workers(config),
        artifact.parameters_sha256,
    )


def _run_eager(config: Config, prepared: Prepared) -> Runner:
    from ppcls.inference.engines import EagerEngine
    from ppcls.weights import hash_parameters

    engine, batch_size = EagerEngine(prepared.model), config.data.batch_size
    digest = hash_parameters(prepared.model)
    return Runner(engine, prepared.spec, prepared.class_names, False, batch_size, num_workers(config), digest)


def export_to_cache(prepared: Prepared) -> Path:
    """By the first process of each machine, for all there."""
    from ppcls.inference.cache import cached_export
    from ppcls.inference.export import export_model
    from ppcls.inference.formats import writable_formats
    from ppcls.inference.versions import versions
    from ppcls.weights import hash_parameters

    formats, missing = writable_formats(prepared.model)
    digest = hash_parameters(prepared.model)
    names = prepared.class_names
    facts = [digest, versions(), formats, prepared.spec.to_dict(), names and [*names.folders, *names.names]]

    def export(folder: Path) -> None:
        say(
            "engine: exporting the network to the cache, once for these weights (--engine eager does without)"
        )
        for kind, reason in missing.items():
            say(f"note: without {kind}: {reason}")
        export_model(
            prepared.model,
            folder,
            preprocessing=prepared.spec,
            class_names=names,
            info=prepared.info,
            formats=formats,
            threads=distributed.cores(),
            say=lambda line: say(f"  {line}"),
        )

    is_first_here = distributed.local_rank() == 0
    distributed.run_together(lambda: cached_export(facts, export) if is_first_here else None)
    return cached_export(facts, export)


def _rank_on_first(folder: Path, artifact: "Artifact") -> list[str]:
    """The first process measures while the others wait, and all take its choice."""
    from ppcls.inference.fastest import rank_engines

    def rank() -> list[str]:
        if distributed.rank() > 0:
            return []
        return rank_engines(folder, artifact, threads=distributed.cores(), say=say)

    return distributed.gather(distributed.run_together(rank))[0]
