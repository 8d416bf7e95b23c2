"""The eager Paddle network as an engine."""

from typing import TYPE_CHECKING

import numpy as np

from ppcls.inference.engines.engine import LoadedEngine
from ppcls.onednn import resolve_kernels

if TYPE_CHECKING:
    from paddle import nn


class EagerEngine(LoadedEngine):
    """A network of `build_model`, in evaluation mode. It gives logits and embeddings. kernels: see Config; by
    default Paddle's, which are the reference of an export."""

    def __init__(self, model: "nn.Layer", kernels: str = "paddle") -> None:
        import paddle

        model.eval()
        self.model = model
        self.kernels = resolve_kernels(kernels, model)
        network = self.kernels.network(model)

        def run(images: np.ndarray) -> tuple[np.ndarray, ...]:
            with paddle.no_grad():
                embeddings = network.embed(paddle.to_tensor(images))
                return model.fc(embeddings).numpy(), embeddings.numpy()

        super().__init__("eager", [run])
