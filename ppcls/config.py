"""All options: names, types, defaults, meanings and allowed values. Imports no Paddle.

A YAML file has one section for each dataclass here; `config_files.load_config` reads it. The comment behind a
field is the option's meaning, which `ppcls options` prints.
"""

from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml

from ppcls.errors import ConfigError
from ppcls.preprocessing import Interpolation, Preprocessing
from ppcls.typed import Rule

Count = Annotated[int, Rule("at least 1", lambda value: value >= 1)]
# The likeliest of one class is always that class: loss 0, accuracy 1.
Classes = Annotated[int, Rule("at least 2: for one class, take its images and all others", lambda v: v >= 2)]
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


Activation = Literal["softmax", "sigmoid"]  # makes probabilities of logits: of all together, or of each
KernelsOption = Literal["auto", "onednn", "onednn-bf16", "paddle"]


@dataclass(frozen=True)
class ModelConfig:
    name: str  # the network, such as EfficientNetB0
    num_classes: Classes = 1000  # outputs of the classifier
    weights: str | None = None  # to evaluate, export and run: a file, a URL, "pretrained", or null
    variant: str | None = None  # tag of the published weights, if the file does not identify them
    averaged: bool = True  # of a checkpoint with a moving average of the weights: take it, not the raw ones
    bn_momentum: Rate | None = None  # weight of the old statistics; null: the network's own
    dropout: Rate | None = None  # rate before the classifier; null: the network's own
    drop_connect: Rate | None = None  # share of skipped blocks, in the last block; null: the network's own

    def network_options(self) -> dict[str, Any]:
        """Return the options for `build_model` that replace the network's own values."""
        options = {
            "bn_momentum": self.bn_momentum,
            "dropout": self.dropout,
            "drop_connect": self.drop_connect,
        }
        return {name: value for name, value in options.items() if value is not None}


@dataclass(frozen=True)
class PreprocessingConfig:
    """Preprocessing options. A value that is null, or missing, comes from the weights."""

    resize_short: Count | None = None  # pixels of the short side
    crop_size: Count | None = None  # pixels of the square that the network sees
    interpolation: Interpolation | None = None  # of resizing
    antialias: bool | None = None  # false: OpenCV's sampling; true: Pillow's filter over the shrunk area
    mean: tuple[float, float, float] | None = None  # of red, green and blue, for pixels from 0 to 1
    std: Deviation | None = None  # what the pixels less the mean are divided by

    def resolve(self, weights: Preprocessing | None) -> Preprocessing:
        """Return the values given here, completed by those of the weights.

        Raises ConfigError if a value is missing, or if the crop exceeds the image.
        """
        given = {item.name: getattr(self, item.name) for item in fields(Preprocessing)}
        given = {name: value for name, value in given.items() if value is not None}
        missing = [f"data.preprocessing.{i.name}" for i in fields(Preprocessing) if i.name not in given]
        if weights is not None:
            preprocessing = replace(weights, **given)
        elif missing:
            raise ConfigError(f"Without weights {', '.join(missing)} must be given. Received: null.")
        else:
            preprocessing = Preprocessing(**given)
        require_crop_inside(preprocessing.crop_size, preprocessing.resize_short)
        return preprocessing


@dataclass(frozen=True)
class DataConfig:
    train_root: str | None = None  # folder of the list's paths, or of one folder for each class
    train_list: str | None = None  # lines 'path label'; null: train_root has one folder for each class
    eval_root: str | None = None  # as train_root, of the images for evaluation
    eval_list: str | None = None  # as train_list, of the images for evaluation
    class_names: str | None = (
        None  # imagenet1k, or a file with one class on each line; null: from folders or weights
    )
    batch_size: Count = 32  # images of each process
    sampling: Literal["natural", "sqrt", "balanced"] = (
        "natural"  # use classes of n images in proportion to n, to sqrt(n), or all equally often
    )
    num_workers: Count | None = None  # loading threads of each process; null: one for each core it may use
    cache_gb: Positive | None = None  # disk space to keep parts of remote shards; null: none is kept
    on_error: Literal["fail", "skip"] = (
        "fail"  # for an unreadable image: end the run, or count it and go without
    )
    max_unreadable: Annotated[int, Rule("0 or more", lambda value: value >= 0)] | None = (
        None  # of on_error=skip: end the run at more unreadable images, of each split; null: any number
    )
    allow_overlap: bool = False  # train even if evaluation images are training images too
    preprocessing: PreprocessingConfig = field(default_factory=PreprocessingConfig)


@dataclass(frozen=True)
class AugmentConfig:
    center_crop: bool = False  # crop as in evaluation, not at random, as FixRes fine-tunes
    crop_area: Area = (0.08, 1.0)  # share of the image's area that a training crop takes
    crop_ratio: Range = (3 / 4, 4 / 3)  # width over height of a training crop
    flip: Share = 0.5  # probability of a mirrored image
    auto_augment: Literal["v0"] | None = None  # the policy with which TensorFlow trains EfficientNet
    rand_augment: Literal["timm", "tf"] | None = (
        None  # source of the operators: tf has Cutout too, and applies each one
    )
    rand_layers: Count = 2  # of rand_augment: operators for each image
    rand_magnitude: Magnitude = 9.0  # strength of the operators, up to 10 with timm's
    rand_magnitude_std: NotNegative = 0.0  # standard deviation of rand_magnitude
    color_jitter: Amounts = (0.0, 0.0, 0.0)  # brightness, contrast, saturation: factors up to 1 +- these
    random_erasing: Share = 0.0  # probability of an erased rectangle
    random_erasing_mode: Literal["zero", "pixel"] = "pixel"  # fill with the mean colour, or with noise
    mixup: NotNegative = (
        0.0  # alpha of the beta distribution, 0: off; if cutmix is on too, each batch has one
    )
    cutmix: NotNegative = 0.0  # alpha of the beta distribution, 0: off


@dataclass(frozen=True)
class TrainConfig:
    epochs: Count | None = 100  # passes over the training images; null: train.images is the length
    images: Count | None = None  # length of the run, where train.epochs is null: as many images, some again
    epoch_images: Count | None = None  # with train.images, those between two evaluations; null: one pass
    min_steps_per_epoch: Count | None = (
        None  # updates; an epoch of fewer images uses each more than once; null: once, and fill a batch
    )
    start_from: str | None = None  # pretrained, a model's name, a file, a URL, a run's folder; null: random
    start_variant: str | None = None  # tag of its published weights, if the file does not identify them
    start_averaged: bool = True  # as model.averaged, of train.start_from
    reset_head: bool = False  # replace the classifier of train.start_from, as for other classes
    loss: Literal["softmax", "binary"] = (
        "softmax"  # an image's labels divide 1 among them, or each class is a yes or no (sigmoid)
    )
    label_smoothing: Rate = 0.0  # share of the target that all classes divide among them
    class_weights: str | None = None  # in the loss: balanced, a file, or null for equal ones
    freeze: tuple[str, ...] = ()  # parameters that are not trained, by patterns such as "blocks.*"
    freeze_epochs: Annotated[int, Rule("0 or more", lambda value: value >= 0)] = (
        0  # first epochs, in which the classifier alone is trained
    )
    ema_decay: Rate | None = None  # evaluate and save a moving average of the weights; null: the weights
    accumulate: Count = 1  # batches of each process for one update
    on_nan: Literal["fail", "skip"] = "fail"  # for a loss that is not finite: end the run, or skip the update
    best_by: Literal["top1", "balanced_accuracy", "macro_f1", "map"] | None = (
        None  # measure that decides which epoch is the best, then the lower loss; null: top1, of binary map
    )
    patience: Count | None = None  # stop after this number of epochs without a better one; null: never
    sync_bn: bool = False  # batch norm over the images of all processes
    recompute: bool = False  # compute blocks again in the backward pass: less memory, more time
    amp: Literal["bf16", "fp16"] | None = None  # half precision, on GPUs only
    amp_level: Literal["O1", "O2"] = "O1"  # half precision where it is safe, or wherever a kernel exists
    keep_last: Count = 2  # newest states to resume from; each epoch writes one
    keep_best: bool = True  # also save the state of the best epoch
    checkpoint_minutes: Positive | None = 30.0  # write a state after this time within an epoch; null: never
    checkpoint_steps: Count | None = None  # write a state after this number of updates; null: never
    histograms: bool = False  # of weights and gradients after each epoch, in VisualDL
    log_seconds: Positive = 10.0  # between progress lines if the output is not a terminal

    @property
    def activation(self) -> Activation:
        """The function that turns the network's logits into probabilities."""
        return "sigmoid" if self.loss == "binary" else "softmax"

    @property
    def measure(self) -> str:
        """The measure that best_by means."""
        return self.best_by or ("map" if self.loss == "binary" else "top1")


@dataclass(frozen=True)
class OptimConfig:
    name: Literal["sgd", "adamw", "rmsprop"] = "sgd"  # sgd with momentum; rmsprop as TensorFlow's
    lr: Positive = 0.1  # learning rate for 256 images; scaled by the global batch
    lr_factors: dict[str, Positive] = field(
        default_factory=dict
    )  # by patterns of names, {"fc.*": 10}; the last one wins
    momentum: Rate = 0.9  # weight of the earlier updates, for sgd and rmsprop
    nesterov: bool = False  # Nesterov's momentum, for sgd
    betas: tuple[Rate, Rate] = (0.9, 0.999)  # weights of the old mean and mean square, for adamw
    rho: Rate = 0.9  # for rmsprop: weight of the old mean square
    epsilon: Positive | None = None  # of the divisor; null: 1e-8 in adamw, 1e-3 in rmsprop, inside the root
    weight_decay: NotNegative = 1e-4  # L2 penalty, in adamw decoupled; not for batch norm
    clip_norm: Positive | None = None  # largest norm of all gradients together; null: no limit
    schedule: Literal["cosine", "step", "exponential", "halving"] = "cosine"  # how the learning rate falls
    warmup_epochs: NotNegative = 0.0  # linear from warmup_lr; these epochs are part of the schedule
    warmup_lr: NotNegative = 0.0  # rate from which the warm-up begins; unlike lr not scaled
    halvings: Count = 10  # of schedule halving: how often the rate is halved, at equal distances
    decay_epochs: Positive | None = None  # epochs of a stair; null: step 30, exponential 2.4; not for others
    decay_factor: Positive | None = None  # factor of a stair; null: step 0.1, exponential 0.97


@dataclass(frozen=True)
class Config:
    model: ModelConfig
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    device: Literal["auto", "cpu", "gpu"] = "auto"  # auto: a GPU if Paddle has one
    kernels: KernelsOption = (
        "auto"  # of eager runs; auto: oneDNN's, if usable; onednn-bf16: training multiplies in bfloat16
    )
    seed: Seed = 0  # of all random choices
    output_dir: str | None = None  # folder of the results; null: output/ and the model's name

    @property
    def output_path(self) -> Path:
        return Path(self.output_dir or f"output/{self.model.name}")

    @property
    def exact_kernels(self) -> KernelsOption:
        """The kernels outside of training, which compute in float32."""
        return "onednn" if self.kernels == "onednn-bf16" else self.kernels

    def to_yaml(self) -> str:
        """Return all options as the text of a YAML file."""
        return yaml.safe_dump(_plain(asdict(self)), sort_keys=False, allow_unicode=True)


def require_crop_inside(crop_size: int, resize_short: int) -> None:
    """Raise ConfigError if the crop is larger than the short side."""
    if crop_size > resize_short:
        raise ConfigError(
            f"data.preprocessing.crop_size ({crop_size}) must not exceed data.preprocessing.resize_short "
            f"({resize_short}): the crop would reach beyond the image."
        )


def _plain(value: Any) -> Any:
    """Return the value with lists in place of tuples, because YAML writes lists without tags."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, tuple) else value


def as_yaml(value: Any) -> str:
    """Return a value as YAML has it, in one line, such as behind the = of an override."""
    text = yaml.safe_dump(value, default_flow_style=True, width=1 << 20, allow_unicode=True)
    return text.removesuffix("...\n").strip()
