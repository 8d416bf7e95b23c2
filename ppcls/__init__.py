"""EfficientNet and ResNeXt101 WSL on Paddle. Importing this imports no Paddle: networks do, when built."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["MODELS", "Predictor", "build_model", "load", "load_weights"]

if TYPE_CHECKING:
    from ppcls.architectures import MODELS, build_model
    from ppcls.inference.load import load
    from ppcls.inference.predictor import Predictor
    from ppcls.weights import load_weights

_HOMES = {
    "MODELS": "architectures",
    "Predictor": "inference.predictor",
    "build_model": "architectures",
    "load": "inference.load",
    "load_weights": "weights",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ppcls' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"ppcls.{_HOMES[name]}"), name)
