"""Parts that the tools share: options, errors without tracebacks, and output by one process."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppcls import distributed, files
from ppcls.config import Config, load_config
from ppcls.errors import ConfigError, suggest

if TYPE_CHECKING:
    from ppcls.inference.predictor import Predictor


def config_parser(description: str, needs_config: bool = True) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    add_config_options(parser, needs_config)
    parser.add_argument(
        "--check",
        action="store_true",
        help="resolve the options, build the network, read one batch, and stop",
    )
    return parser


def add_config_options(parser: argparse.ArgumentParser, needs_config: bool = True) -> None:
    parser.add_argument(
        "-c",
        "--config",
        required=needs_config,
        help="YAML file, such as configs/EfficientNetB0.yaml; the bare name of one that comes with ppcls; or "
        "the folder of a training run",
    )
    parser.add_argument(
        "-o",
        "--override",
        action="append",
        default=[],
        metavar="OPTION=VALUE",
        help="replace an option, such as data.batch_size=64; repeatable",
    )


def add_engine_options(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument("--exported", metavar="DIR", help="run an exported model, by its folder")
    parser.add_argument(
        "--engine",
        help="auto, measure, eager, onnxruntime, openvino or paddle. eager runs the network of -c itself. "
        "auto takes the fastest engine that is installed, measured once; measure does so anew (default: auto "
        f"with --exported, {default} with -c)",
    )


def read_config(args: argparse.Namespace) -> Config:
    """Return the config of -c, or of --exported alone. Raises ConfigError if they contradict each other."""
    if args.engine is not None:
        require_engine(args.engine, "auto", "measure", "eager")
    if args.exported is None:
        if args.config is None:
            raise ConfigError("Give a config, -c FILE, or an exported model, --exported DIR.")
        return load_config(args.config, args.override)
    if args.engine == "eager":
        raise ConfigError("--engine eager runs the network itself, and --exported has none: give -c instead.")
    from ppcls.inference.load import export_config

    folder, overrides = Path(args.exported), args.override
    own = export_config(folder).model
    config = load_config(args.config, overrides) if args.config else export_config(folder, overrides)
    for option in ("name", "num_classes"):
        given, expected = getattr(config.model, option), getattr(own, option)
        if given != expected:
            raise ConfigError(
                f"model.{option} is {given}, but {folder} has {expected}. Give the config of the exported "
                "model, or --exported alone."
            )
    if any(override.startswith("model.weights=") for override in args.override):
        log(f"note: model.weights is not used; {args.exported} has its own weights")
    return config


def require_engine(name: str, *others: str) -> None:
    """Raise ConfigError for a name that is neither an engine nor one of the others."""
    from ppcls.inference.engines import ENGINES

    choices = (*others, *ENGINES)
    if name not in choices:
        raise ConfigError(f"Unknown engine. Received: {name}; {suggest(name, choices)}")


def open_requested(
    args: argparse.Namespace, config: Config, default: str, *, topk: int = 5, bulk: bool
) -> "Predictor":
    """Return the predictor that --exported and --engine request. default: the engine with -c."""
    from ppcls.inference.load import open_export, open_predictor

    if args.exported is None:
        return open_predictor(config, args.engine or default, topk=topk, bulk=bulk, log=log)
    if distributed.world_size() > 1:
        distributed.start("cpu")
    engine, folder = args.engine or "auto", Path(args.exported)
    predictor = open_export(folder, engine, config=config, topk=topk, bulk=bulk, log=log)
    license = predictor.description.license or "not stated"
    log(f"{config.model.name}, exported in {folder}; license: {license}")
    return predictor


def log(text: str) -> None:
    """Print a line, once for all processes."""
    if distributed.rank() == 0:
        print(text, flush=True)


def num_workers(config: Config) -> int:
    """Return the number of loading threads of this process."""
    return config.data.num_workers or distributed.cores()


def save_config(config: Config, name: str) -> None:
    """Write the resolved config beside the results. Raises ConfigError if that folder cannot be written."""
    if distributed.rank() == 0:
        try:
            files.write_text(config.output_path / name, config.to_yaml())
        except OSError as error:
            raise ConfigError(
                f"The folder of the results, {config.output_path}, cannot be written: {error.strerror}. "
                "Choose another one: -o output_dir=DIR."
            ) from error


def write_json(path: Path, values: Any) -> None:
    """Write a JSON file atomically, by the first process."""
    if distributed.rank() == 0:
        files.write_json(path, values)
        log(f"written: {path}")
