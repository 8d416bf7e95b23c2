"""The optimizer, its state under the parameters' structured names, and the clipping of gradients."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ppcls.config import OptimConfig
from ppcls.errors import PpclsError
from ppcls.training.parameters import batch_norms, matching

if TYPE_CHECKING:
    from paddle import Tensor, nn
    from paddle.optimizer import Optimizer

# The tensors that each class of optimizer keeps for a parameter: of its shape, "pow" of one element.
# The 0 counts the optimizers that a parameter has had in this process: give each network one.
STATE = {
    "Momentum": ("velocity_0",),
    "AdamW": ("moment1_0", "moment2_0", "beta1_pow_acc_0", "beta2_pow_acc_0"),
    "RMSProp": ("momentum_0", "mean_square_0", "mean_grad_0"),
}


def build_optimizer(config: OptimConfig, model: "nn.Layer", lr: float) -> "Optimizer":
    """Return SGD with momentum, AdamW, or RMSProp as TensorFlow's: epsilon inside the root, the learning rate
    inside the momentum, and a mean square that starts at 1 where Paddle's starts at 0.

    Weight decay is on everything but batch norm, biases included. Raises ConfigError for a pattern of
    optim.lr_factors that matches nothing.
    """
    from paddle.optimizer import AdamW, Momentum, RMSProp

    groups = _groups(config, model)
    if config.name == "adamw":
        beta1, beta2 = config.betas
        return AdamW(lr, beta1=beta1, beta2=beta2, epsilon=config.epsilon or 1e-8, parameters=groups)
    if config.name == "sgd":
        return Momentum(lr, momentum=config.momentum, use_nesterov=config.nesterov, parameters=groups)
    optimizer = RMSProp(
        lr, rho=config.rho, epsilon=config.epsilon or 1e-3, momentum=config.momentum, parameters=groups
    )
    parts = _parts(optimizer, trainable(model))
    optimizer.set_state_dict({part.own_name: part.starting_value() for part in parts.values()})
    return optimizer


def trainable(model: "nn.Layer") -> "dict[str, Tensor]":
    """Return the parameters that are trained, by their structured names."""
    return {name: p for name, p in model.named_parameters() if not p.stop_gradient}


class Part(NamedTuple):
    """A tensor that an optimizer keeps for a parameter. own_name: Paddle's. start: its value before the first
    update of the parameter."""

    own_name: str
    parameter: str
    shape: list[int]
    dtype: Any
    start: float

    def starting_value(self) -> "Tensor":
        import paddle

        return paddle.full(self.shape, self.start, self.dtype)


def _parts(optimizer: "Optimizer", parameters: "Mapping[str, Tensor]") -> dict[str, Part]:
    """Return what an optimizer keeps for these parameters: {"fc.weight.velocity_0": Part(...), ...}"""
    starts = {"mean_square_0": 1.0}  # the others start at 0
    if type(optimizer).__name__ == "AdamW":
        starts = {"beta1_pow_acc_0": optimizer._beta1, "beta2_pow_acc_0": optimizer._beta2}
    return {
        f"{name}.{part}": Part(
            f"{parameter.name}_{part}",
            name,
            [1] if "pow" in part else list(parameter.shape),
            parameter.dtype,
            starts.get(part, 0.0),
        )
        for name, parameter in parameters.items()
        for part in STATE[type(optimizer).__name__]
    }


def _groups(config: OptimConfig, model: "nn.Layer") -> list[dict[str, Any]]:
    """Return groups of parameters that share their weight decay and the factor of their learning rate."""
    names = [name for name, _ in model.named_parameters()]
    factors: dict[str, float] = {}
    for pattern, factor in config.lr_factors.items():
        factors |= dict.fromkeys(matching(pattern, names, "optim.lr_factors"), factor)
    norm_ids = {id(parameter) for norm in batch_norms(model) for parameter in norm.parameters()}
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in trainable(model).items():
        decay = 0.0 if id(parameter) in norm_ids else config.weight_decay
        groups.setdefault((decay, factors.get(name, 1.0)), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, "learning_rate": factor}
        for (decay, factor), parameters in groups.items()
    ]


def optimizer_state(optimizer: "Optimizer", model: "nn.Layer") -> "dict[str, Tensor]":
    """Return the optimizer's tensors, such as {"fc.weight.velocity_0": [1280, 1000]}, not copies of them.
    Those of a parameter exist after its first update; none before an update in this process."""
    if not optimizer._accumulators:  # then Paddle 3 returns what was loaded, with starting values
        return {}
    structured = {parameter.name: name for name, parameter in model.named_parameters()}
    state = {}
    for key, tensor in optimizer.state_dict().items():
        name = key
        while name and name not in structured:
            name = name.rpartition("_")[0]
        if name:
            state[f"{structured[name]}.{key.removeprefix(name + '_')}"] = tensor
    return state


def load_optimizer_state(
    optimizer: "Optimizer",
    model: "nn.Layer",
    state: "Mapping[str, Tensor]",
    frozen_at_first: "Mapping[str, Tensor] | None" = None,
) -> None:
    """Take over what `optimizer_state` returned, in this process or another, before the first step.

    frozen_at_first: parameters that may not have been updated yet, by their names; then they have no tensors
    in the state, and start afresh.
    Raises PpclsError for a state of other parameters, shapes, or another optimizer.
    """
    late = dict(frozen_at_first or {})
    expected = _parts(optimizer, trainable(model) | late)
    updated = {name.rpartition(".")[0] for name in state}
    problems = [
        f"{name} is missing"
        for name, part in expected.items()
        if name not in state and (part.parameter in updated or part.parameter not in late)
    ]
    problems += [f"{name} is unknown" for name in state if name not in expected]
    problems += [
        f"{name} must have the shape {part.shape}. Received: {list(state[name].shape)}"
        for name, part in expected.items()
        if name in state and list(state[name].shape) != part.shape
    ]
    if problems:
        raise PpclsError(
            f"This optimizer's state does not fit: {problems[0]} ({len(problems)} such problems). It must "
            "come from the same network, optim.name and train.freeze."
        )
    optimizer.set_state_dict(
        {
            part.own_name: state[name] if name in state else part.starting_value()
            for name, part in expected.items()
        }
    )


def clip_gradients(parameters: "Sequence[Tensor]", limit: float | None) -> float:
    """Scale all gradients down together, in place, so that their common norm is at most `limit`.

    Returns the norm before that. Paddle's ClipGradByGlobalNorm would clip each group of an optimizer alone.
    """
    import paddle

    norm = paddle.nn.utils.clip_grad_norm_(parameters, float("inf") if limit is None else limit)
    return norm.item()
