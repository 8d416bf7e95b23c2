"""Networks for Paddle's hub: paddle.hub.load(FOLDER, "EfficientNetB4", source="local", pretrained=True)."""

from collections.abc import Callable as _Callable
from typing import Any as _Any

import ppcls as _ppcls

dependencies = ["paddle", "numpy"]


def _entry(name: str) -> _Callable[..., _Any]:
    def build(pretrained: bool = False, num_classes: int = 1000, **options: _Any) -> _Any:
        model = _ppcls.build_model(name, num_classes, **options)
        if pretrained:
            _ppcls.load_weights(model, "pretrained", reset_head=num_classes != 1000)
        return model

    build.__name__ = name
    build.__doc__ = (
        f"Return {name}: float32 [N, 3, H, W] to logits [N, num_classes]. pretrained: load the published "
        "weights. They have 1,000 classes; with another number the classifier stays random. options: see "
        "ppcls.build_model."
    )
    return build


globals().update({name: _entry(name) for name in _ppcls.MODELS})
