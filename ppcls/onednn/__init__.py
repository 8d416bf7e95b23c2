"""The networks on oneDNN, out of the library that comes with Paddle for Linux: several times as fast as
Paddle's own kernels in training on a CPU. Importing this imports no Paddle.

`resolve_kernels` says whether they can be used, and gives a network that runs on them.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ppcls.errors import ConfigError

if TYPE_CHECKING:
    from paddle import nn

PADDLE = "Paddle's"


@dataclass(frozen=True)
class Kernels:
    """The kernels that a network runs on.

    name: "oneDNN" and its version, or "Paddle's"; states record it. reason: why the latter. bf16: multiply in
    bfloat16.
    """

    name: str
    reason: str | None = None
    bf16: bool = False

    def __str__(self) -> str:
        return f"kernels: {self.name}" + (f" ({self.reason})" if self.reason else "")

    def network(self, model: "nn.Layer") -> "nn.Layer":
        """Return what runs the model on these kernels: the model itself, or a layer around it."""
        if self.name == PADDLE:
            return model
        from ppcls.onednn.networks import OneDNNNetwork

        return OneDNNNetwork(model, self.bf16)


def resolve_kernels(requested: str, model: "nn.Layer", obstacle: str | None = None) -> Kernels:
    """Return the kernels for a network of `build_model`.

    requested: a value of the option `kernels`. obstacle: why oneDNN's cannot be used, as the caller knows.
    Raises ConfigError if oneDNN's are requested and cannot be used.
    """
    if requested == "paddle":
        return Kernels(PADDLE, "kernels=paddle")
    from ppcls.onednn.usable import version, why_not

    bf16 = requested == "onednn-bf16"
    reason = obstacle or why_not(model, bf16)
    if reason is None:
        return Kernels(f"oneDNN {version()}" + (", bf16" if bf16 else ""), bf16=bf16)
    if requested != "auto":
        raise ConfigError(f"kernels={requested} is not possible here: {reason}. Use -o kernels=auto.")
    return Kernels(PADDLE, reason)
