"""The networks: `MODELS` lists them, and `build_model` builds one."""

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from ppcls.architectures.variants import MODELS, EfficientNetVariant, ResNeXtVariant
from ppcls.errors import ConfigError, suggest

if TYPE_CHECKING:
    from paddle import nn

__all__ = ["MODELS", "EfficientNetVariant", "ResNeXtVariant", "build_model"]

OPTIONS = ("bn_epsilon", "bn_momentum", "padding", "dropout", "drop_connect")


def get_variant(name: str, **options: Any) -> EfficientNetVariant | ResNeXtVariant:
    """Return the published variant, with the given options in place of its own values.

    Raises ConfigError for an unknown name, and for an option that the family does not have.
    """
    if name not in MODELS:
        raise ConfigError(f"Unknown model. Received: {name}; {suggest(name, MODELS)}")
    variant = MODELS[name]
    names = {field.name for field in fields(variant)}
    allowed = ["num_classes", *(option for option in OPTIONS if option in names)]
    for option in options:
        if option not in allowed[1:]:
            raise ConfigError(f"{name} has no option {option!r}; {suggest(option, allowed)}")
    return replace(variant, **options)


def are_same_network(name: str, other: str) -> bool:
    """Return whether two models differ in the size of their images alone, so that weights fit both."""
    if name not in MODELS or other not in MODELS:
        return False
    return replace(MODELS[name], image_size=MODELS[other].image_size) == MODELS[other]


def build_model(name: str, num_classes: int = 1000, **options: Any) -> "nn.Layer":
    """Build a network with new weights, initialised as in the original code.

    Under `paddle.LazyGuard()` nothing is allocated. Options that replace the published values:
    `bn_epsilon`, `bn_momentum` (share of the old statistics that a training step keeps) and, for
    EfficientNet, `padding` ("same" as in TensorFlow, or "symmetric"), `dropout`, `drop_connect`.

    The network takes normalised images of any size, float32 [N, 3, H, W], and returns logits
    [N, num_classes]. It has the attributes `model_name`, `num_classes`, `bn_epsilon` and `padding`.
    Raises ConfigError for an unknown name, an unknown option or an invalid value.
    """
    if num_classes < 2:
        raise ConfigError(
            f"num_classes must be at least 2: for one class, take its images and all others. Received: "
            f"{num_classes}"
        )
    variant = get_variant(name, **options)
    if isinstance(variant, EfficientNetVariant):
        from ppcls.architectures.efficientnet import EfficientNet

        network: nn.Layer = EfficientNet(variant, num_classes)
    else:
        from ppcls.architectures.resnext101_wsl import ResNeXt101

        network = ResNeXt101(variant, num_classes)
    network.model_name, network.num_classes = name, num_classes
    network.bn_epsilon, network.padding = variant.bn_epsilon, variant.padding
    return network
