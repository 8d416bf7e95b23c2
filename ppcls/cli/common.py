"""Parts that the tools share: options, errors without tracebacks, and output by one process."""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppcls import distributed
from ppcls.config import Config, load_config
from ppcls.errors import ConfigError, PpclsError, Stopped, suggest
from ppcls.files import write_aside

if TYPE_CHECKING:
    from ppcls.inference.predictor import Predictor

WRONG_INPUT = 2


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
    parser.add_argument(
        "--exported",
        metavar="DIR",
        help="run an exported model, a folder that tools/export_model.py has written",
    )
    parser.add_argument(
        "--engine",
        help="auto, eager, onnxruntime, openvino or paddle. eager runs the network of -c itself, auto the "
        f"fastest engine that is installed (default: auto with --exported, {default} with -c)",
    )


def read_config(args: argparse.Namespace) -> Config:
    """Return the config of -c, or of --exported alone. Raises ConfigError if they contradict each other."""
    if args.engine is not None:
        require_engine(args.engine, "auto", "eager")
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


def run(main: Callable[[Sequence[str] | None], int]) -> None:
    """Run a tool and exit with its code: 2 for wrong input, with the reason and no traceback; 128 plus the
    number of the signal that stopped a run."""
    try:
        code = main(None)
    except PpclsError as error:
        print(f"error: {error}", file=sys.stderr)
        code = WRONG_INPUT
    except OSError as error:
        if error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        code = WRONG_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except Stopped as stop:
        code = 128 + stop.number
    except RuntimeError:
        # Another process of the run failed first, and this one lost the connection. The launcher shows the
        # log # of the process that exits first, so exit later.
        if distributed.world_size() > 1:
            time.sleep(5)
        raise
    if "paddle" in sys.modules and distributed.world_size() == 1:
        _leave_at_once(code)
    sys.exit(code)


def _leave_at_once(code: int) -> None:
    """Exit without Paddle's cleanup, which takes a third of a second. All files are closed by now."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:  # Python itself reports it at its end
        return
    os._exit(code)


def log(text: str) -> None:
    """Print a line, once for all processes."""
    if distributed.rank() == 0:
        print(text, flush=True)


def num_workers(config: Config) -> int:
    """Return the number of loading threads of this process."""
    return config.data.num_workers or distributed.cores()


def save_config(config: Config, name: str) -> None:
    """Write the resolved config beside the results."""
    if distributed.rank() == 0:
        config.output_path.mkdir(parents=True, exist_ok=True)
        (config.output_path / name).write_text(config.to_yaml(), encoding="utf-8")


def write_json(path: Path, values: Any) -> None:
    """Write a JSON file atomically, by the first process."""
    if distributed.rank() == 0:
        with write_aside(path) as aside:
            aside.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        log(f"written: {path}")
