"""Parts that the tools share: options, errors without tracebacks, and output by one process."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppcls import distributed, files
from ppcls.config import Config
from ppcls.config_files import about_folder
from ppcls.errors import ConfigError, suggest

if TYPE_CHECKING:
    from ppcls.inference.fastest import Precision
    from ppcls.inference.predictor import Predictor
    from ppcls.inference.resolve import Resolved


def config_parser(description: str, *, takes_exports: bool = False) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    add_config_options(parser, takes_exports=takes_exports)
    parser.add_argument(
        "--check",
        action="store_true",
        help="resolve the options, build the network, read one batch, and stop",
    )
    return parser


def add_config_options(parser: argparse.ArgumentParser, *, takes_exports: bool = False) -> None:
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        help="a model that comes with ppcls by its name, such as EfficientNetB0; a YAML file; "
        + ("the folder of a training run; or of an exported model" if takes_exports else "or a run's folder"),
    )
    parser.add_argument("-c", "--config", metavar="MODEL", help="the same as MODEL without -c")
    add_override_option(
        parser, "replace an option, such as data.batch_size=64; repeatable; `ppcls options` lists all"
    )
    if takes_exports:
        parser.add_argument(
            "--exported", metavar="DIR", help="an exported model, if MODEL gives the options of its data"
        )
    else:
        parser.set_defaults(exported=None)


def add_override_option(parser: argparse.ArgumentParser, words: str) -> None:
    """Add -o, which may be given more than once. words: its help."""
    parser.add_argument("-o", "--override", action="append", default=[], metavar="OPTION=VALUE", help=words)


def add_engine_option(parser: argparse.ArgumentParser, default: str) -> None:
    """Add --engine and --precision. default: the engine of models that are not exported, in words."""
    words = default if default == "auto" else f"auto for an exported model, {default} for others"
    parser.add_argument(
        "--engine",
        help="auto, measure, eager, onnxruntime, openvino or paddle. eager runs the network itself. auto "
        "takes the fastest engine that is installed, measured once; measure does so anew; onnxruntime-int8 "
        f"and openvino-int8 run int8 forms (default: {words})",
    )
    add_precision_option(parser)


def add_precision_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--precision",
        choices=("float", "int8", "fastest"),
        default="float",
        help="of an export with int8 forms: int8 and fastest let auto take one of them where it is faster "
        "here; int8 refuses an export that has none (default: float)",
    )


def read_model(args: argparse.Namespace, *, to_train: bool = False) -> "Resolved":
    """Return what MODEL, -c and --exported name together. to_train: see resolve_model. Raises ConfigError or
    ExportError."""
    from ppcls.inference.resolve import resolve_model

    if args.model is None or args.config is None:
        return resolve_model(args.model or args.config, args.override, args.exported, to_train=to_train)
    raise ConfigError(f"MODEL and -c are the same. Received: {args.model} and -c {args.config}. Give one.")


def read_config(args: argparse.Namespace, *, to_train: bool = False) -> Config:
    """Return the config of a command that needs the network itself. Raises ConfigError for an export."""
    config, export = read_model(args, to_train=to_train)
    if export is not None:
        raise ConfigError(about_folder(export))
    return config


def require_engine(name: str, *others: str) -> None:
    """Raise ConfigError for a name that is neither an engine nor one of the others."""
    from ppcls.inference.engines import ENGINES

    choices = (*others, *ENGINES)
    if name not in choices:
        raise ConfigError(f"Unknown engine. Received: {name}; {suggest(name, choices)}")


def open_model(
    resolved: "Resolved",
    engine: str | None,
    default: str,
    *,
    precision: "Precision" = "float",
    topk: int = 5,
    bulk: bool,
) -> "Predictor":
    """Return the predictor over what MODEL names. default: the engine for all but exports."""
    from ppcls.inference.load import open_export, open_predictor

    if engine is not None:
        require_engine(engine, "auto", "measure", "eager")
    config, export = resolved
    if export is None:
        engine = engine or (default if precision == "float" else "auto")
        return open_predictor(config, engine, precision=precision, topk=topk, bulk=bulk, log=log)
    if distributed.world_size() > 1:
        distributed.start("cpu")
    predictor = open_export(
        export, engine or "auto", precision=precision, config=config, topk=topk, bulk=bulk, log=log
    )
    license = predictor.description.license or "not stated"
    log(f"{config.model.name}, exported in {export}; license: {license}")
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
