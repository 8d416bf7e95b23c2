"""A moving average of the weights, which is often more accurate than the weights themselves."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ppcls.errors import PpclsError

if TYPE_CHECKING:
    from paddle import Tensor, nn


class ModelEma:
    """Averages of all parameters and batch-norm statistics of a network, by their structured names.

    After update t, counted from 1, an average keeps min(decay, (1 + t) / (10 + t)) of itself, as TensorFlow's
    ExponentialMovingAverage with num_updates, so that the random start is soon forgotten.
    """

    def __init__(self, model: "nn.Layer", decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.parameters: dict[str, Tensor] = dict(model.named_parameters())
        self.averages = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    def update(self) -> None:
        """Update the averages with the present weights."""
        import paddle

        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        weights: dict = {}  # lerp_ with a tensor is ten times as fast as with a number
        with paddle.no_grad():
            for name, parameter in self.parameters.items():
                if parameter.dtype not in weights:
                    weights[parameter.dtype] = paddle.to_tensor(1 - decay, parameter.dtype)
                self.averages[name].lerp_(parameter, weights[parameter.dtype])

    @contextmanager
    def swapped(self) -> "Iterator[None]":
        """Inside, the network has the averages as its weights; afterwards its own again."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        """Swap one parameter at a time, so that no third copy of the network is made."""
        import paddle

        with paddle.no_grad():
            for name, parameter in self.parameters.items():
                own = parameter.clone()
                parameter.copy_(self.averages[name], True)
                self.averages[name].copy_(own, True)

    def state_dict(self) -> "dict[str, Tensor]":
        """Return the averages themselves, not copies."""
        return dict(self.averages)

    def load_state_dict(self, state: "Mapping[str, Tensor]", updates: int) -> None:
        """Take over the averages after so many updates. Raises PpclsError for those of another network."""
        wrong = sorted(state.keys() ^ self.averages.keys())
        wrong += [
            name for name in state if name in self.averages and state[name].shape != self.averages[name].shape
        ]
        if wrong:
            raise PpclsError(
                f"These averages belong to another network: {len(wrong)} names or shapes differ, the first "
                f"{wrong[0]}. Build the network that they were saved from."
            )
        for name, tensor in state.items():
            self.averages[name].set_value(tensor)
        self.updates = updates
