"""What the tools share: options, errors without tracebacks, and the way from a config to a network."""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import fields
from typing import TYPE_CHECKING, NamedTuple

from ppcls import distributed
from ppcls.architectures import MODELS
from ppcls.config import Config
from ppcls.errors import ConfigError, PpclsError, Stopped, WeightsError

if TYPE_CHECKING:
    from paddle import nn

    from ppcls.data.class_names import ClassNames
    from ppcls.preprocessing import Preprocessing
    from ppcls.weights import WeightsInfo

WRONG_INPUT = 2


def config_parser(description: str, needs_config: bool = True) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "-c",
        "--config",
        required=needs_config,
        help="YAML file, such as configs/EfficientNetB0.yaml, or the bare name of one that comes with ppcls",
    )
    parser.add_argument(
        "-o",
        "--override",
        action="append",
        default=[],
        metavar="OPTION=VALUE",
        help="replace an option, such as data.batch_size=64; repeatable",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="resolve the options, build the network, read one batch, and stop",
    )
    return parser


def run(main: Callable[[Sequence[str] | None], int]) -> None:
    """Run a tool and leave with its exit code: 2 for wrong input, with the reason and no traceback; 128 and
    the signal's number for a run that a signal ended."""
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
        # Another process of the run failed first: this one only lost the connection. The launcher
        # shows the log of the first to leave, so leave after it.
        if distributed.world_size() > 1:
            time.sleep(5)
        raise
    if "paddle" in sys.modules and distributed.world_size() == 1:
        _leave_at_once(code)
    sys.exit(code)


def _leave_at_once(code: int) -> None:
    """Without taking Paddle to pieces, which would take a third of a second. Files are closed by now."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:  # Python itself reports it when it ends
        return
    os._exit(code)


def say(text: str) -> None:
    """To the screen, once for all processes."""
    if distributed.rank() == 0:
        print(text, flush=True)


class Prepared(NamedTuple):
    """A network on its device, with what its images need."""

    model: "nn.Layer"
    info: "WeightsInfo | None"
    spec: "Preprocessing"
    class_names: "ClassNames | None"
    device: str


def prepare(config: Config, *, needs_weights: bool) -> Prepared:
    """Start Paddle, build the network, load its weights, and settle preprocessing and class names.

    Raises ConfigError, WeightsError or DataError.
    """
    if needs_weights and config.model.weights is None:
        raise WeightsError(
            "model.weights is empty, and a network with random weights tells nothing. Give a file, "
            "-o model.weights=FILE, or take the published ones: -o model.weights=pretrained."
        )
    for option in ("variant", "reset_head"):
        if getattr(config.model, option) and config.model.weights is None:
            raise ConfigError(f"model.{option} is about weights to be loaded, but model.weights is empty.")
    if needs_weights and config.model.reset_head:
        raise ConfigError("model.reset_head starts a random classifier: it is for training only.")
    own_names = given_class_names(config)
    device = distributed.start(config.device)
    say(f"{config.model.name} on the {device.upper()}, {distributed.world_size()} process(es)")
    model, info = _build(config)
    spec = settle_preprocessing(config, info.preprocessing if info else None)
    if info is not None:
        say(f"weights: {info.path}, {info.source}; sha256 {info.sha256[:16]}")
        say(f"licence of the weights: {info.licence or 'not stated'}")
        for note in info.notes:
            say(f"note: {note}")
    names = settle_class_names(own_names, info.class_names if info else None)
    return Prepared(model, info, spec, names, device)


def num_workers(config: Config) -> int:
    """Loading threads of this process."""
    return config.data.num_workers or distributed.cores()


def settle_preprocessing(config: Config, own: "Preprocessing | None") -> "Preprocessing":
    """What the config says, and what the network's weights were made for where it says nothing; a line for
    each difference."""
    spec = config.data.preprocessing(own)
    size = MODELS[config.model.name].image_size
    if own is not None:
        for item in fields(own):
            made_for, used = getattr(own, item.name), getattr(spec, item.name)
            if made_for != used:
                say(f"note: data.{item.name} is {used}; the weights were made for {made_for}")
    elif config.model.weights is not None and spec.crop_size != size:
        say(f"note: data.crop_size is {spec.crop_size}; {config.model.name} was published for {size}")
    return spec


def given_class_names(config: Config) -> "ClassNames | None":
    from ppcls.data.class_names import read_class_names

    if config.data.class_names is None:
        return None
    return read_class_names(config.data.class_names, config.model.num_classes)


def settle_class_names(
    given: "ClassNames | None", own: "Sequence[tuple[str, str]] | None"
) -> "ClassNames | None":
    """Those given, else those that the weights carry as pairs of folder and name."""
    from ppcls.data.class_names import ClassNames

    if own is None:
        return given
    folders, names = zip(*own, strict=True)
    carried = ClassNames(names=names, folders=folders)
    if given not in (None, carried):
        say("note: data.class_names differ from the names that the weights carry, and are used")
    return given or carried


def _build(config: Config) -> "tuple[nn.Layer, WeightsInfo | None]":
    import paddle

    from ppcls.architectures import build_model
    from ppcls.weights import load_weights

    wanted = config.model
    paddle.seed(config.seed)
    is_replaced = wanted.weights is not None and not wanted.reset_head
    # nothing is drawn that the file's values replace
    with paddle.LazyGuard() if is_replaced else nullcontext():
        model = build_model(wanted.name, wanted.num_classes, **wanted.network_options())
    if wanted.weights is None:
        return model, None
    return model, load_weights(model, wanted.weights, wanted.variant, wanted.reset_head)


def save_config(config: Config, name: str) -> None:
    """The resolved config beside what a run writes."""
    if distributed.rank() == 0:
        config.output_path.mkdir(parents=True, exist_ok=True)
        (config.output_path / name).write_text(config.to_yaml(), encoding="utf-8")
