"""Collect the tensors of a checkpoint from its dictionaries, and leave all other things out."""

import re
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from ppcls.errors import first_few
from ppcls.weights.readers.entries import Refused
from ppcls.weights.readers.pickles import Name, Namespace, Opaque

SAVE_STATE_DICT = (
    "Where its code is, load it and save the weights alone: torch.save(model.state_dict(), FILE)."
)
_MAX_DEPTH = 8
_NAME_TABLE = "StructuredToParameterName@@"  # written by paddle.save: a layer's key to its parameter's name
_SLICES = "UnpackBigParamInfor@@"  # written by paddle.save for arrays of over 1 GB with protocols 2 and 3
_OPTIMIZER_KEYS = ("LR_Scheduler", "master_weights", "param_groups")
_OPTIMIZER_NAMES = re.compile(
    r"_(velocity|moment|moment1|moment2|moment2_max|beta1_pow_acc|beta2_pow_acc|inf_norm"
    r"|momentum|mean_square|mean_grad)_0$"
)

Tensor = TypeVar("Tensor")


def tensors_of(
    top: Any, as_tensor: Callable[[Any], Tensor | Opaque | None]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return all tensors of a checkpoint, by the keys that lead to them, joined by "/".

    The metadata has "values" (the texts and numbers by their keys) and "skipped" (by their keys, what the
    other values are). An optimizer's state is left out.
    Raises Refused if no tensors are left.
    """
    if type(top) in (list, tuple):
        top = {str(index): value for index, value in enumerate(top) if type(value) is dict}
    if type(top) is not dict:
        cure = {"cure": SAVE_STATE_DICT} if isinstance(top, Opaque) else {}
        what = f"a whole object of {top.what}, which is code" if cure else f"a {type(top).__name__}"
        raise Refused(f"it holds {what}; expected: a dictionary of tensors", **cure)
    tensors: dict[str, Tensor] = {}
    values: dict[str, str | float] = {}
    skipped: dict[str, str] = {}
    optimizer: list[str] = []
    waiting: deque[tuple[str, dict, int]] = deque([("", top, 0)])
    seen = {id(top)}  # a dictionary may hold itself, or be in many places
    while waiting:
        path, level, depth = waiting.popleft()
        for key, value in level.items():
            is_optimizer = key in _OPTIMIZER_KEYS or _OPTIMIZER_NAMES.search(str(key)) is not None
            if is_optimizer:
                optimizer.append(str(key))
            if type(key) is not str or key == _NAME_TABLE or is_optimizer:
                continue
            if key == _SLICES:
                raise Refused(
                    "it holds arrays cut into slices: paddle.save with protocol 2 or 3 does this above 1 GB",
                    "Load it with Paddle and save it with protocol=4.",
                )
            tensor = as_tensor(value)
            inner = value.attributes if type(value) is Namespace else value
            if type(inner) is dict:
                if id(inner) not in seen and depth < _MAX_DEPTH:
                    seen.add(id(inner))
                    waiting.append((f"{path}{key}/", inner, depth + 1))
            elif isinstance(tensor, Opaque):
                skipped[path + key] = tensor.what
            elif tensor is not None:
                tensors[path + key] = tensor
            elif isinstance(value, Opaque | Name):
                skipped[path + key] = value.what
            elif type(value) in (str, int, float):
                values[path + key] = value
    if not tensors and optimizer:
        raise Refused(
            f"it looks like an optimizer's state, not weights: it has {first_few(optimizer)}",
            "Take the file of weights beside it (.pdparams).",
        )
    if not tensors and skipped:
        named = [f"{key[:80]} ({what})" for key, what in skipped.items()]
        raise Refused(f"it holds no tensors, but objects that are code: {first_few(named)}", SAVE_STATE_DICT)
    if not tensors:
        found = first_few(list(top)) if top else "an empty dictionary"
        raise Refused(f"it holds no tensors, only {found}", "Take the file that holds the weights.")
    return tensors, {"values": values, "skipped": skipped}
