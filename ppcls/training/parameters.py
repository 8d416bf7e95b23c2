"""Parameters selected by patterns of their structured names, and those of batch norm."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from ppcls.errors import ConfigError

if TYPE_CHECKING:
    from paddle import Tensor, nn


def matching(pattern: str, names: Iterable[str], option: str) -> list[str]:
    """Return the names that a shell pattern such as "blocks.1?.*" matches.

    Raises ConfigError, with the nearest name or part of the network, if there is none.
    """
    names = list(names)
    found = [name for name in names if fnmatchcase(name, pattern)]
    if not found:
        parents = {
            ".".join(name.split(".")[:depth]) for name in names for depth in range(1, name.count(".") + 1)
        }
        known = names + sorted(f"{parent}.*" for parent in parents)
        near = get_close_matches(pattern, known, n=1, cutoff=0.0)
        raise ConfigError(
            f"{option}: no parameter of the network has a name like {pattern!r}; did you mean {near[0]}?"
        )
    return found


def freeze(model: "nn.Layer", patterns: Sequence[str]) -> "list[nn.Layer]":
    """Stop training the parameters that the patterns match. Returns the layers whose parameters, batch-norm
    statistics among them, are all frozen: they belong in eval mode, where their statistics do not move and
    nothing is dropped. If nothing before them is trained, they keep no activations.

    A batch norm whose weight and bias are frozen, but not `_mean` and `_variance`, moves its statistics.
    Raises ConfigError for a pattern that matches nothing, or if nothing is left to train.
    """
    parameters = dict(model.named_parameters())
    frozen = set()
    for pattern in patterns:
        for name in matching(pattern, parameters, "train.freeze"):
            parameters[name].stop_gradient = True
            frozen.add(id(parameters[name]))
    if all(parameter.stop_gradient for parameter in parameters.values()):
        raise ConfigError(f"train.freeze leaves nothing to train. Received: {list(patterns)}")
    layers = [(layer, layer.parameters()) for layer in model.sublayers()]
    return [layer for layer, own in layers if own and all(id(parameter) in frozen for parameter in own)]


def is_in_classifier(name: str) -> bool:
    """Return whether this layer, or the one with this parameter, is the classifier, `fc` in each network."""
    return name.partition(".")[0] == "fc"


def batch_norms(model: "nn.Layer") -> "list[nn.Layer]":
    """Return the batch-norm layers of a network."""
    from paddle import nn

    kinds = (nn.BatchNorm2D, nn.SyncBatchNorm)
    return [layer for layer in model.sublayers() if isinstance(layer, kinds)]


def batch_norm_statistics(model: "nn.Layer") -> "list[Tensor]":
    """Return the running means and variances, float32 [C] each."""
    return [statistic for norm in batch_norms(model) for statistic in (norm._mean, norm._variance)]
