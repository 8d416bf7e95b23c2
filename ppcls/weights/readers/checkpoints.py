"""Rules that find the weights in a checkpoint."""

import re
from collections.abc import Callable
from typing import Any, TypeVar

from ppcls.weights.readers.entries import Refused

# FixRes saves its weights under the first key, timm and most training scripts under the second.
_NESTED = ("model", "state_dict")
_PREFIX = "module."  # added by torch's DataParallel
_NAME_TABLE = "StructuredToParameterName@@"  # written by paddle.save: a layer's key to its parameter's name
_SLICES = "UnpackBigParamInfor@@"  # written by paddle.save for arrays of over 1 GB with protocols 2 and 3
_OPTIMIZER_KEYS = ("LR_Scheduler", "master_weights", "param_groups")
_OPTIMIZER_NAMES = re.compile(
    r"_(velocity|moment|moment1|moment2|moment2_max|beta1_pow_acc|beta2_pow_acc|inf_norm"
    r"|momentum|mean_square|mean_grad)_0$"
)

Tensor = TypeVar("Tensor")


def weights_of(
    top: Any, as_tensor: Callable[[Any], Tensor | None]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the weights by key, and their origin: under (a key or None), prefix (removed), others (keys).

    If "model" is a dictionary with tensors, they are the weights; else those of "state_dict"; else those of
    the top level, provided that no other dictionary beside them holds tensors. If all keys have the prefix
    "module.", it is removed.
    Raises Refused for an optimizer's state, and if the rule does not decide.
    """
    if type(top) is not dict:
        raise Refused(f"it holds a {type(top).__name__}; expected: a dictionary of tensors")
    strange = [key for key in top if key in _OPTIMIZER_KEYS or _OPTIMIZER_NAMES.search(str(key))]
    nested = [
        key
        for key, value in top.items()
        if type(value) is dict and any(as_tensor(item) is not None for item in value.values())
    ]
    under = next((key for key in _NESTED if key in nested), None)
    if under is None and strange:
        raise Refused(
            f"it looks like an optimizer's state, not weights: it has {_some(strange)}",
            "Take the file of weights beside it (.pdparams).",
        )
    if under is None and nested:
        raise Refused(
            f"it is not clear which tensors are the weights: some are under {_some(nested)}, and none under "
            f"{' or '.join(_NESTED)}",
            'Save the right ones in a separate file, or under "state_dict".',
        )
    level = top if under is None else top[under]
    if _SLICES in level:
        raise Refused(
            "it holds arrays cut into slices: paddle.save with protocol 2 or 3 does this above 1 GB",
            "Load it with Paddle and save it with protocol=4.",
        )
    tensors: dict[str, Tensor] = {}
    others = [str(key) for key in top if key != under] if under is not None else []
    for key, value in level.items():
        tensor = as_tensor(value)
        if tensor is None:
            others.append(str(key))
        elif type(key) is not str:
            raise Refused(f"a tensor has the key {key}; expected: a string")
        else:
            tensors[key] = tensor
    others = [key for key in others if key != _NAME_TABLE]
    if not tensors:
        raise Refused(f"it holds no tensors, only {_some(others) if others else 'an empty dictionary'}")
    prefix = _PREFIX if all(key.startswith(_PREFIX) for key in tensors) else ""
    weights = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    return weights, {"under": under, "prefix": prefix, "others": others}


def _some(keys: list[Any], count: int = 5) -> str:
    return ", ".join(str(key)[:80] for key in keys[:count]) + (", ..." if len(keys) > count else "")
