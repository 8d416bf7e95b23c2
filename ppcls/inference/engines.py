"""What runs a network: float32 [N, 3, H, W] to logits float32 [N, num_classes]."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from paddle import nn


class EagerEngine:
    """The plain Paddle network."""

    def __init__(self, model: "nn.Layer") -> None:
        self.model = model
        model.eval()

    def run(self, images: np.ndarray) -> np.ndarray:
        import paddle

        with paddle.no_grad():
            return self.model(paddle.to_tensor(images)).numpy()
