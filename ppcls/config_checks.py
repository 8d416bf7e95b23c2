"""Checks of options that depend on one another."""

from ppcls.architectures import get_variant
from ppcls.config import Config, TrainConfig, require_crop_inside
from ppcls.errors import ConfigError


def check_config(config: Config) -> None:
    """Check options that depend on one another. Raises ConfigError."""
    get_variant(config.model.name, **config.model.network_options())
    given = config.data.preprocessing
    if given.crop_size is not None and given.resize_short is not None:
        require_crop_inside(given.crop_size, given.resize_short)
    for name in ("start_variant", "reset_head", "freeze_epochs"):
        if getattr(config.train, name) and config.train.start_from is None:
            raise ConfigError(
                f"train.{name} applies to the weights of train.start_from, which is null. Set "
                f"train.start_from, or leave train.{name} out."
            )
    _check_length(config.train)
    augment = config.augment
    if augment.auto_augment is not None and augment.rand_augment is not None:
        raise ConfigError(
            "augment.auto_augment and augment.rand_augment exclude each other. Received: "
            f"{augment.auto_augment!r} and {augment.rand_augment!r}; set one of them to null."
        )
    if augment.rand_augment == "timm" and augment.rand_magnitude > 10:
        raise ConfigError(
            f"augment.rand_magnitude must be at most 10 with timm's operators. Received: "
            f"{augment.rand_magnitude!r}; lower it, or set augment.rand_augment=tf."
        )
    _check_loss(config)
    if (augment.mixup or augment.cutmix) and config.data.batch_size == 1:
        raise ConfigError(
            "augment.mixup and augment.cutmix mix the images of a batch, but data.batch_size is 1. Raise it, "
            "or set them to 0."
        )


def _check_loss(config: Config) -> None:
    """Check options that depend on train.loss and data.on_error. Raises ConfigError."""
    train, data = config.train, config.data
    if train.loss == "binary" and train.class_weights is not None:
        raise ConfigError(
            "train.class_weights weigh an image by its class, but train.loss=binary decides on each class by "
            f"itself. Received: {train.class_weights}. Leave it out; for rare classes: -o data.sampling=sqrt."
        )
    if train.best_by == "map" and train.loss != "binary":
        raise ConfigError(
            "train.best_by=map needs a sigmoid for each class. Set train.loss=binary, or choose another "
            "measure, such as train.best_by=top1."
        )
    if data.max_unreadable is not None and data.on_error != "skip":
        raise ConfigError(
            "data.max_unreadable says how many images data.on_error=skip may leave out. Received: "
            f"data.on_error={data.on_error}; set -o data.on_error=skip, or leave data.max_unreadable out."
        )


def _check_length(train: TrainConfig) -> None:
    """Check the options of a run's length. Raises ConfigError."""
    if (train.epochs is None) == (train.images is None):
        hint = "with train.images set train.epochs=null" if train.images else "set one of them"
        raise ConfigError(
            "The length of a run is either train.epochs or train.images. Received: "
            f"{train.epochs} and {train.images}; {hint}."
        )
    if train.images is None and train.epoch_images is not None:
        raise ConfigError(
            "train.epoch_images divides a run of train.images, which is null. Received: "
            f"{train.epoch_images}; set train.images and train.epochs=null, or leave it out."
        )
    if train.images is not None and train.min_steps_per_epoch is not None:
        raise ConfigError(
            "train.min_steps_per_epoch is for runs of train.epochs. With train.images, an epoch has "
            f"train.epoch_images images, however few there are. Received: {train.min_steps_per_epoch}; set "
            "it to null."
        )
