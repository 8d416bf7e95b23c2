"""Every option, once: its name, type, default, meaning and the values it can have.

A YAML file has one section for each dataclass here. `load_config` reads it, applies overrides, and refuses
what is unknown, of the wrong type or impossible. Imports no Paddle.
"""

import types
from collections.abc import Callable, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from ppcls.architectures import get_variant
from ppcls.errors import ConfigError, suggest
from ppcls.preprocessing import Interpolation, Preprocessing


@dataclass(frozen=True)
class Rule:
    """What a value must fulfil beyond its type, in words and as a test."""

    words: str
    holds: Callable[[Any], bool]


Count = Annotated[int, Rule("at least 1", lambda value: value >= 1)]
NotNegative = Annotated[float, Rule("0 or more", lambda value: value >= 0)]
Positive = Annotated[float, Rule("more than 0", lambda value: value > 0)]
Share = Annotated[float, Rule("from 0 to 1", lambda value: 0 <= value <= 1)]
Rate = Annotated[float, Rule("at least 0 and less than 1", lambda value: 0 <= value < 1)]
Seed = Annotated[int, Rule("from 0 to 2^32 - 1", lambda value: 0 <= value < 2**32)]
Range = Annotated[
    tuple[float, float], Rule("two numbers above 0, the smaller one first", lambda v: 0 < v[0] <= v[1])
]
Area = Annotated[
    tuple[float, float], Rule("two shares, 0 < smallest <= largest <= 1", lambda v: 0 < v[0] <= v[1] <= 1)
]
Magnitude = Annotated[float, Rule("from 0 to 30", lambda value: 0 <= value <= 30)]
Amounts = Annotated[
    tuple[float, float, float], Rule("three numbers of 0 or more", lambda value: all(v >= 0 for v in value))
]
Deviation = Annotated[
    tuple[float, float, float], Rule("three numbers above 0", lambda value: all(v > 0 for v in value))
]


@dataclass(frozen=True)
class ModelConfig:
    name: str
    num_classes: Count = 1000
    weights: str | None = None  # a file, a URL, "pretrained", or null for fresh weights
    variant: str | None = None  # which of the published weights, where the file can't tell
    reset_head: bool = False  # a fresh classifier on the weights' features, as for other classes
    bn_momentum: Rate | None = None  # share of the old statistics kept; null: the network's own
    dropout: Rate | None = None  # null: the network's own
    drop_connect: Rate | None = None  # rate of the last block; null: the network's own

    def network_options(self) -> dict[str, Any]:
        """What replaces the network's own values, for `build_model`."""
        options = {
            "bn_momentum": self.bn_momentum,
            "dropout": self.dropout,
            "drop_connect": self.drop_connect,
        }
        return {name: value for name, value in options.items() if value is not None}


@dataclass(frozen=True)
class DataConfig:
    train_root: str | None = None  # folder below which the list's paths lie, or one folder a class
    train_list: str | None = None  # lines 'path label'; null: train_root holds one folder a class
    eval_root: str | None = None
    eval_list: str | None = None
    class_names: str | None = None  # a file of one class a line, or imagenet1k; null: folders' or weights'
    batch_size: Count = 32  # images of each process
    num_workers: Count | None = None  # loading threads of each process; null: one for each core it may use
    on_error: Literal["fail", "skip"] = "fail"  # an unreadable image ends the run, or is counted and left out
    resize_short: Count | None = None  # null, here and below: as the weights need it
    crop_size: Count | None = None
    interpolation: Interpolation | None = None
    antialias: bool | None = None  # false: OpenCV's sampling; true: Pillow's filter over the shrunk area
    mean: tuple[float, float, float] | None = None
    std: Deviation | None = None

    def preprocessing(self, own: Preprocessing | None) -> Preprocessing:
        """The values given here, and `own`, those that the weights came with, where none is given."""
        given = {item.name: getattr(self, item.name) for item in fields(Preprocessing)}
        missing = [f"data.{name}" for name, value in given.items() if value is None]
        if own is not None:
            spec = replace(own, **{name: value for name, value in given.items() if value is not None})
        elif missing:
            raise ConfigError(f"{', '.join(missing)} must be given: no weights say what they should be.")
        else:
            spec = Preprocessing(**given)
        require_crop_inside(spec.crop_size, spec.resize_short)
        return spec


@dataclass(frozen=True)
class AugmentConfig:
    center_crop: bool = False  # the evaluation's resize and crop instead of a random one, as FixRes tunes
    crop_area: Area = (0.08, 1.0)  # share of the image's area that a training crop takes
    crop_ratio: Range = (3 / 4, 4 / 3)  # its width over its height
    flip: Share = 0.5  # probability
    auto_augment: Literal["v0"] | None = None  # the policy that TensorFlow trains EfficientNet with
    rand_augment: Literal["timm", "tf"] | None = None  # whose operators: tf has Cutout too, and skips none
    rand_layers: Count = 2  # of rand_augment: operators for each image ...
    rand_magnitude: Magnitude = 9.0  # ... how strong they are, up to 10 with timm's ...
    rand_magnitude_std: NotNegative = 0.0  # ... and by how much that varies
    color_jitter: Amounts = (0.0, 0.0, 0.0)  # brightness, contrast, saturation: factors up to 1 +- these
    random_erasing: Share = 0.0  # probability
    random_erasing_mode: Literal["zero", "pixel"] = "pixel"  # the mean colour, or noise
    mixup: NotNegative = 0.0  # alpha of the beta distribution, 0: none. With cutmix too each batch has either
    cutmix: NotNegative = 0.0


@dataclass(frozen=True)
class TrainConfig:
    epochs: Count = 100
    label_smoothing: Rate = 0.0
    freeze: tuple[str, ...] = ()  # patterns of parameters' names that keep their values, such as "blocks.*"
    ema_decay: Rate | None = None  # evaluate and save a moving average of the weights; null: the weights
    accumulate: Count = 1  # batches of each process that make one update
    on_nan: Literal["fail", "skip"] = (
        "fail"  # a loss that is not finite ends the run, or its update is left out
    )
    patience: Count | None = None  # stop after so many epochs without a better one; null: never
    sync_bn: bool = False  # batch norm over the images of all processes
    recompute: bool = False  # blocks run again in the backward pass: less memory, more time
    amp: Literal["bf16", "fp16"] | None = None  # half precision, on GPUs only
    amp_level: Literal["O1", "O2"] = "O1"  # where it is safe, or wherever there is a kernel for it
    keep_last: Count = 2  # newest states to resume from; one is written after each epoch ...
    keep_best: bool = True  # ... and that of the best epoch is kept as well
    checkpoint_minutes: Positive | None = 30.0  # a state within an epoch after so long; null: none
    checkpoint_steps: Count | None = None  # a state after each so many updates; null: none
    histograms: bool = False  # of weights and gradients after each epoch, in VisualDL
    log_seconds: Positive = 10.0  # between progress lines where the output is no terminal


@dataclass(frozen=True)
class OptimConfig:
    name: Literal["sgd", "adamw", "rmsprop"] = "sgd"  # sgd with momentum; rmsprop as TensorFlow's
    lr: Positive = 0.1  # for 256 images; scaled by the global batch
    lr_factors: dict[str, Positive] = field(
        default_factory=dict
    )  # {"fc.*": 10} for names like this; last wins
    momentum: Rate = 0.9  # of sgd and rmsprop
    nesterov: bool = False  # of sgd
    betas: tuple[Rate, Rate] = (0.9, 0.999)  # of adamw
    rho: Rate = 0.9  # of rmsprop: share of the old mean square kept
    epsilon: Positive | None = None  # null: 1e-8 of adamw; 1e-3 of rmsprop, inside the root
    weight_decay: NotNegative = 1e-4  # not on batch norm
    clip_norm: Positive | None = None  # largest norm of all gradients together; null: any
    schedule: Literal["cosine", "step", "exponential"] = "cosine"
    warmup_epochs: NotNegative = 0.0  # linear from 0; the schedule counts on meanwhile
    decay_epochs: Positive | None = (
        None  # not of cosine: so many epochs a stair; null: step 30, exponential 2.4
    )
    decay_factor: Positive | None = None  # what a stair multiplies by; null: step 0.1, exponential 0.97


@dataclass(frozen=True)
class Config:
    model: ModelConfig
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    device: Literal["auto", "cpu", "gpu"] = "auto"  # auto: a GPU where Paddle has one
    seed: Seed = 0
    output_dir: str | None = None  # null: output/ and the model's name

    @property
    def output_path(self) -> Path:
        return Path(self.output_dir or f"output/{self.model.name}")

    def to_yaml(self) -> str:
        return yaml.safe_dump(_plain(asdict(self)), sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    """SafeLoader takes the last of two equal keys without a word; this one refuses them."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the option {key} stands there twice", node.start_mark
                )
        return super().construct_mapping(node, deep)


def find_config(name: str | Path) -> Path:
    """The file itself, or one of the project's own by its bare name: "EfficientNetB4"."""
    if Path(name).exists() or Path(name).name != str(name):
        return Path(name)
    home = Path(__file__).parent
    for folder in (home / "configs", home.parent / "configs"):  # of an installed package, of a clone
        own = folder / f"{str(name).removesuffix('.yaml')}.yaml"
        if own.is_file():
            return own
        if folder.is_dir():
            known = [path.stem for path in folder.glob("*.yaml")]
            raise ConfigError(
                f"There is no config file {name}, and no config of this name comes with ppcls. Received: "
                f"{name}; {suggest(str(name), known)}"
            )
    return Path(name)


def load_config(name: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, or one of the project's own by its bare name, and apply overrides such as
    "data.batch_size=64", later ones last.

    Raises ConfigError for a file that cannot be read, an unknown option (with the nearest valid name), a
    value of the wrong type, an impossible value, or options that contradict each other.
    """
    path = find_config(name)
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise ConfigError(f"The config file {path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is no valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold sections such as 'model:' and 'data:'. Received: {tree!r}")
    return config_of(tree, overrides)


def config_of(tree: dict, overrides: Sequence[str] = ()) -> Config:
    """What a YAML file of this content, with overrides, says. Raises ConfigError as load_config does."""
    for override in overrides:
        _apply(tree, override)
    config = _build(Config, tree, "")
    _check(config)
    return config


def _apply(tree: dict, override: str) -> None:
    option, equals, text = override.partition("=")
    if not equals or not option.strip():
        raise ConfigError(f"An override has the form section.option=value. Received: {override!r}")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"The value of {override!r} is no valid YAML: {error}") from error
    *sections, name = option.strip().split(".")
    for section in sections:
        inner = tree.setdefault(section, {})
        if inner is None:
            inner = tree[section] = {}
        if not isinstance(inner, dict):
            raise ConfigError(f"{option}: {section} is a value, not a section.")
        tree = inner
    tree[name] = value


def _build(section: type, tree: dict, prefix: str) -> Any:
    hints = get_type_hints(section, include_extras=True)
    values = {}
    for name, value in tree.items():
        if name not in hints:
            names = [prefix + known for known in hints]
            raise ConfigError(f"unknown option {prefix}{name}; {suggest(f'{prefix}{name}', names)}")
        values[name] = _convert(hints[name], value, prefix + name)
    for known in fields(section):
        required = known.default is MISSING and known.default_factory is MISSING
        if required and known.name not in values:
            raise ConfigError(f"{prefix}{known.name} is missing.")
    return section(**values)


def _convert(hint: Any, value: Any, option: str) -> Any:
    """The value as the hint's type; raises ConfigError where it is another or breaks a rule."""
    if is_dataclass(hint) and isinstance(hint, type):
        if value is None:
            value = {}
        if not isinstance(value, dict):
            raise ConfigError(f"{option} is a section of options. Received: {value!r}")
        return _build(hint, value, option + ".")
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        return _convert(next(a for a in arguments if a is not type(None)), value, option)
    if origin is Annotated:
        value = _convert(arguments[0], value, option)
        rule = arguments[1]
        if not rule.holds(value):
            raise ConfigError(f"{option} must be {rule.words}. Received: {value!r}")
        return value
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(
                f"{option} must be one of {', '.join(arguments)}. Received: {value!r}; "
                f"{suggest(str(value), arguments)}"
            )
        return value
    if origin is tuple:
        is_open = arguments[-1] is Ellipsis  # of any length
        if not isinstance(value, (list, tuple)) or not (is_open or len(value) == len(arguments)):
            words = "a list" if is_open else f"a list of {len(arguments)} numbers"
            raise ConfigError(f"{option} must be {words}. Received: {value!r}")
        hints = arguments[:1] * len(value) if is_open else arguments
        return tuple(_convert(inner, item, option) for inner, item in zip(hints, value, strict=True))
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{option} must be pairs such as {{name: value}}. Received: {value!r}")
        key_hint, inner = arguments
        return {
            _convert(key_hint, key, f"a name in {option}"): _convert(inner, item, f"{option}[{key}]")
            for key, item in value.items()
        }
    return _convert_scalar(hint, value, option)


def _convert_scalar(kind: type, value: Any, option: str) -> Any:
    if kind is float and isinstance(value, str):  # YAML 1.1 reads 1e-5 as a string
        try:
            value = float(value)
        except ValueError:
            pass
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 2**63 else float("inf")
    if kind is float and isinstance(value, float) and value - value != 0:
        raise ConfigError(f"{option} must be a finite number. Received: {value!r}")
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[kind]
        raise ConfigError(f"{option} must be {words}. Received: {value!r}")
    return value


def _check(config: Config) -> None:
    """Rules that tie options together."""
    get_variant(config.model.name, **config.model.network_options())
    if config.data.crop_size is not None and config.data.resize_short is not None:
        require_crop_inside(config.data.crop_size, config.data.resize_short)
    augment = config.augment
    if augment.auto_augment is not None and augment.rand_augment is not None:
        raise ConfigError(
            "augment.auto_augment and augment.rand_augment exclude each other. Received: "
            f"{augment.auto_augment!r} and {augment.rand_augment!r}; set one of them to null."
        )
    if augment.rand_augment == "timm" and augment.rand_magnitude > 10:
        raise ConfigError(
            f"augment.rand_magnitude must be at most 10 with timm's operators. Received: "
            f"{augment.rand_magnitude!r}; lower it, or take -o augment.rand_augment=tf."
        )
    if (augment.mixup or augment.cutmix) and config.data.batch_size == 1:
        raise ConfigError(
            "augment.mixup and augment.cutmix mix the images of a batch, but data.batch_size is 1. Raise it, "
            "or set them to 0."
        )


def require_crop_inside(crop_size: int, resize_short: int) -> None:
    if crop_size > resize_short:
        raise ConfigError(
            f"data.crop_size ({crop_size}) must not exceed data.resize_short ({resize_short}): "
            "the crop would reach beyond the image."
        )


def _plain(value: Any) -> Any:
    """Tuples as lists, which YAML writes without tags."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, tuple) else value
