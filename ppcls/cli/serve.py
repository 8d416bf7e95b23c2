"""Serve models: classify pictures that come by HTTP, in the Open Inference Protocol or as curl sends them.
The access log goes to standard output, a line of JSON for each request."""

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ppcls.cli.common import add_engine_option, add_override_option, require_engine
from ppcls.commands import command_line
from ppcls.config import as_yaml
from ppcls.errors import ConfigError
from ppcls.options import comments_of
from ppcls.serving.limits import Limits
from ppcls.typed import build_section

if TYPE_CHECKING:
    from ppcls.inference.predictor import Predictor
    from ppcls.serving.server import OpenExplainer

PACKAGES = ("prometheus_client", "python_multipart", "starlette", "uvicorn")  # of the extra `serve`
LAST_PORT = 65535
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    limits = build_section(Limits, {item.name: getattr(args, item.name) for item in fields(Limits)}, {}, "--")
    if args.engine is not None:
        require_engine(args.engine, "auto", "measure", "eager")
    named = name_models(args.models)
    require_packages()
    from ppcls.inference.fastest import to_stderr
    from ppcls.inference.load import load
    from ppcls.inference.resolve import resolve_model
    from ppcls.serving.server import listen, serve

    def opener(model: str) -> "Callable[[], Predictor]":
        return lambda: load(
            model,
            args.engine or "auto",
            precision=args.precision,
            overrides=args.override,
            topk=args.topk,
            log=to_stderr,
        )

    # a wrong name is an error before the server listens
    resolved = {name: resolve_model(model, args.override) for name, model in named.items()}
    models = {name: opener(model) for name, model in named.items()}
    explainers: dict[str, OpenExplainer] = {}
    if find_spec("paddle") is not None and any(export is None for _, export in resolved.values()):
        # Imports Paddle, here in the main thread: its modes end with the thread that imports it.
        from ppcls.serving.explainer import Explainer

        explainers = {
            name: partial(Explainer, config, log=to_stderr)
            for name, (config, export) in resolved.items()
            if export is None
        }
    return serve(models, listen(args.host, args.port), limits, to_stderr, explainers)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the command's options. Raises ConfigError for impossible values."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="a model that comes with ppcls by its name, such as EfficientNetB0; a YAML file; the folder of "
        "a training run; or of an exported model. NAME=MODEL gives it another name than its file's",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="the address to listen on; 0.0.0.0: all (default 127.0.0.1)"
    )
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free (default 8000)")
    add_override_option(
        parser, "replace an option of all models, such as data.preprocessing.crop_size=288; repeatable"
    )
    add_engine_option(parser, default="auto")
    parser.add_argument("--topk", type=int, default=5, help="classes that /predict returns (default 5)")
    group = parser.add_argument_group("limits")
    words = comments_of(Limits)
    for item in fields(Limits):
        kind = type(item.default) if item.default is not None else int
        default = "" if item.default is None else f" (default {as_yaml(item.default)})"
        group.add_argument(
            f"--{item.name}",
            type=kind,
            default=item.default,
            metavar="N",
            help=f"{words[item.name]}{default}",
        )
    args = parser.parse_args(argv)
    if args.topk < 1:
        raise ConfigError(f"--topk must be at least 1. Received: {args.topk}")
    if not 0 <= args.port <= LAST_PORT:  # the system would take the remainder
        raise ConfigError(f"--port must be from 0 to {LAST_PORT}. Received: {args.port}")
    return args


def name_models(models: Sequence[str]) -> dict[str, str]:
    """Return the models by the names under which they are served. Raises ConfigError for a name that is not
    one, or is given twice."""
    named: dict[str, str] = {}
    for model in models:
        name, given, source = model.partition("=")
        if not given or Path(model).exists():
            name, source = default_name(model), model
        if not NAME.fullmatch(name):
            raise ConfigError(
                f"A model's name has letters, digits and . _ - only. Received: {name!r}. Give one: "
                f"{command_line('serve', f'NAME={source}')}"
            )
        if name in named:
            raise ConfigError(
                f"Two models have the name {name}: {named[name]} and {source}. Give one of them another: "
                f"{command_line('serve', f'NAME={source}')}"
            )
        named[name] = source
    return named


def default_name(model: str) -> str:
    """Return the name of a model's file or folder; for an export in a run's folder, the run's."""
    path = Path(model)
    if path.suffix in (".yaml", ".yml"):
        return path.stem
    path = path.absolute()
    return path.parent.name if path.name == "exported" else path.name


def require_packages() -> None:
    """Raise ConfigError if the packages of a server are missing."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise ConfigError(f"{', '.join(missing)} is not installed: pip install 'ppcls[serve]'")
