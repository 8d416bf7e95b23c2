"""From a config to a network with its weights, preprocessing and class names: to run it, or to train it."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ppcls import distributed
from ppcls.architectures import MODELS, are_same_network, build_model
from ppcls.commands import command_line, same_command
from ppcls.config import Config, PreprocessingConfig
from ppcls.config_files import RUN_CONFIG, best_weights, find_run
from ppcls.data.class_names import ClassNames, read_class_names
from ppcls.errors import ConfigError, WeightsError, suggest
from ppcls.preprocessing import Preprocessing

if TYPE_CHECKING:
    from paddle import nn

    from ppcls.weights import WeightsInfo

Log = Callable[[str], None]


class Network(NamedTuple):
    """A network on its device. weights: the origin of its weights, None for fresh ones."""

    model: "nn.Layer"
    weights: "WeightsInfo | None"
    preprocessing: Preprocessing
    class_names: ClassNames | None


def require_weights(config: Config) -> str:
    """Return model.weights. Raises WeightsError, with where to get some, if it is null or no file."""
    if config.model.weights is not None:
        _require_file(config.model.weights, "model.weights", ["pretrained"])
        return config.model.weights
    run = config.output_path
    if best_weights(run).is_file():
        cure = f"{run} is a run of this config: give its folder in place of the config: {same_command(run)}"
    else:
        cure = (
            f"Train it, `{command_line('train')}` with the same config, and give the run's folder in place "
            f"of the config: {run}; or give a file, -o model.weights=FILE"
        )
    raise WeightsError(f"model.weights is null, and a network of random weights predicts nothing. {cure}.")


def _require_file(weights: str, option: str, names: list[str]) -> None:
    """Raise WeightsError unless this is "pretrained", a URL, a file or a folder. names: those that `option`
    takes. `load_weights` looks into a folder, unless it is a run's."""
    path = Path(weights)
    if weights == "pretrained" or weights.startswith(("http://", "https://")) or path.is_file():
        return
    if path.is_dir() and find_run(path) is None:
        return
    run = next((parent for parent in path.parents if best_weights(parent) == path), None)
    if run is not None and (run / RUN_CONFIG).is_file():
        raise WeightsError(
            f"The run in {run} has no best weights: there is no file {path}. A run has them after its first "
            f"epoch; resume it: {command_line('train', run, '--resume', 'auto')}"
        )
    received = weights
    if find_run(path):
        received += f", the folder of a training run: give it in place of the config: {same_command(path)}"
    elif path.name == weights and not path.suffix:  # as a name is written
        received += f"; {suggest(weights, names)}"
    raise WeightsError(
        f"There is no file {weights} ({option}). Expected: a file of weights, a URL, or a name such as "
        f'"pretrained" for the published weights. Received: {received}'
    )


def build_to_run(config: Config, log: Log) -> Network:
    """Start Paddle and build the network with model.weights, to evaluate, export or run it.

    Raises ConfigError, WeightsError or DataError.
    """
    weights = require_weights(config)
    given_names = given_class_names(config, log)
    _start(config, log)
    model = _empty_model(config)
    from ppcls.weights import load_weights

    info = load_weights(model, weights, config.model.variant, averaged=config.model.averaged)
    log_weights(info, log)
    return _complete(config, model, info, given_names, log)


def build_fresh(config: Config, log: Log) -> Network:
    """Start Paddle and build the network with random weights, to measure it. The first published weights
    complete data.preprocessing, as nobody will look at its answers."""
    from ppcls.weights.published import PUBLISHED

    given_names = given_class_names(config, log)
    _start(config, log)
    preprocessing = config.data.preprocessing.resolve(PUBLISHED[config.model.name][0].preprocessing)
    return Network(_fresh_model(config), None, preprocessing, resolve_class_names(given_names, None, log))


def build_to_train(config: Config, log: Log, start: "WeightsInfo | None" = None) -> Network:
    """Start Paddle and build the network with the weights of train.start_from.

    start: the record in the state of a run that is resumed. The state has the weights, so the network is only
    given the record's epsilon and padding, and train.start_from is not read.
    Raises ConfigError, WeightsError or DataError.
    """
    given_names = given_class_names(config, log)
    source, source_model = (None, None) if start else _resolve_start(config)
    _start(config, log)
    train = config.train
    if start is not None:
        from ppcls.architectures.blocks import set_conventions

        model = _fresh_model(config)
        set_conventions(model, start.bn_epsilon, start.padding)
        log(f"training started from {start.path}, {start.source}; sha256 {start.sha256[:16]}")
        return _complete(config, model, start, given_names, log)
    if source is None:
        log("training starts from random weights (train.start_from is null)")
        return _complete(config, _fresh_model(config), None, given_names, log)
    model = _fresh_model(config) if train.reset_head else _empty_model(config)
    from ppcls.weights import load_weights
    from ppcls.weights.identify import START

    info = load_weights(
        model,
        source,
        train.start_variant,
        train.reset_head,
        source_model=source_model,
        averaged=train.start_averaged,
        options=START,
    )
    log(f"training starts from {train.start_from} (train.start_from)")
    log_weights(info, log)
    return _complete(config, model, info, given_names, log)


def _resolve_start(config: Config) -> tuple[str | None, str | None]:
    """Return train.start_from as `load_weights` takes it, and the model that it names or None."""
    name = config.train.start_from
    if name is None:
        return None, None
    if name in MODELS:
        if not are_same_network(name, config.model.name):
            raise ConfigError(
                f"train.start_from names {name}, whose layers are not those of {config.model.name}. Give "
                "pretrained, a file, a URL or a run's folder."
            )
        return "pretrained", name
    run = find_run(name)
    source = name if run is None else str(best_weights(run))
    _require_file(source, "train.start_from", ["pretrained", *MODELS])
    return source, None


def _start(config: Config, log: Log) -> None:
    device = distributed.start(config.device)
    log(f"{config.model.name} on the {device.upper()}, {distributed.world_size()} process(es)")


def _fresh_model(config: Config) -> "nn.Layer":
    import paddle

    paddle.seed(config.seed)
    model = config.model
    return build_model(model.name, model.num_classes, **model.network_options())


def _empty_model(config: Config) -> "nn.Layer":
    """Return the network without values: weights will replace them all."""
    import paddle

    with paddle.LazyGuard():
        return _fresh_model(config)


def _complete(
    config: Config, model: "nn.Layer", info: "WeightsInfo | None", given: ClassNames | None, log: Log
) -> Network:
    own = info.preprocessing if info else None
    assumed = info.assumed if info else None
    preprocessing = resolve_preprocessing(config.data.preprocessing, own, log, assumed)
    if info is not None and own is None:
        compare_size(preprocessing, config.model.name, log)
    carried = ClassNames.of_pairs(info.class_names) if info and info.class_names else None
    return Network(model, info, preprocessing, resolve_class_names(given, carried, log))


def log_weights(info: "WeightsInfo", log: Log) -> None:
    log(f"weights: {info.path}, {info.source}; sha256 {info.sha256[:16]}")
    log(f"license of the weights: {info.license or 'not stated'}")
    for note in info.notes:
        log(f"note: {note}")


def compare_size(preprocessing: Preprocessing, name: str, log: Log) -> None:
    """Log a difference to the published size of a model, for weights that do not state their own."""
    size, published = preprocessing.crop_size, MODELS[name].image_size
    if size != published:
        log(f"note: data.preprocessing.crop_size is {size}; {name} was published for {published}")


def resolve_preprocessing(
    given: PreprocessingConfig, own: Preprocessing | None, log: Log, assumed: Preprocessing | None = None
) -> Preprocessing:
    """Return the options given, completed by those that the weights were made for; log each difference.

    assumed: what completes them if the weights do not state their own, which is logged.
    """
    preprocessing = given.resolve(own or assumed)
    open_values = [
        f"{item.name} {getattr(preprocessing, item.name)}"
        for item in fields(Preprocessing)
        if own is None and getattr(given, item.name) is None
    ]
    if open_values:
        log(
            f"note: the weights do not state their preprocessing; assumed: {', '.join(open_values)} "
            "(data.preprocessing replaces it)"
        )
    for item in fields(Preprocessing) if own is not None else ():
        made_for, used = getattr(own, item.name), getattr(preprocessing, item.name)
        if made_for != used:
            log(f"note: data.preprocessing.{item.name} is {used}; the weights were made for {made_for}")
    return preprocessing


def given_class_names(config: Config, log: Log) -> ClassNames | None:
    """Return the names of data.class_names."""
    name = config.data.class_names
    return None if name is None else read_class_names(name, config.model.num_classes)


def resolve_class_names(given: ClassNames | None, carried: ClassNames | None, log: Log) -> ClassNames | None:
    """Return the names given, else those that the weights carry."""
    if given is not None and carried is not None and given != carried:
        log("note: data.class_names differ from the names that the weights carry, and are used")
    return given or carried
