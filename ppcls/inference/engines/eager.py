"""The eager Paddle network as an engine."""

from typing import TYPE_CHECKING

import numpy as np

from ppcls.inference.engines.engine import LoadedEngine

if TYPE_CHECKING:
    from paddle import nn


class EagerEngine(LoadedEngine):
    """A network of `build_model`, in evaluation mode. It gives logits and embeddings."""

    def __init__(self, model: "nn.Layer") -> None:
        import paddle

        model.eval()
        self.model = model

        def run(images: np.ndarray) -> tuple[np.ndarray, ...]:
            with paddle.no_grad():
                embeddings = model.embed(paddle.to_tensor(images))
                return model.fc(embeddings).numpy(), embeddings.numpy()

        super().__init__("eager", [run])
