"""Configs that ppcls wrote in format 1, converted to the present options.

A resolved config of format 1 has model.reset_head, which today's have not. What a run started from was then
model.weights, and the preprocessing stood among the options of `data`.
"""

from typing import Any

PREPROCESSING = ("resize_short", "crop_size", "interpolation", "antialias", "mean", "std")
SECTIONS = ("model", "data", "augment", "train", "optim")


def is_config_of_format1(tree: dict[str, Any]) -> bool:
    """Return whether this is a whole config that ppcls resolved and wrote; hand-written ones are not."""
    has_sections = all(isinstance(tree.get(name), dict) for name in SECTIONS)
    return (
        has_sections and "reset_head" in tree["model"] and all(name in tree["data"] for name in PREPROCESSING)
    )


def convert_config(tree: dict[str, Any], *, of_training: bool) -> dict[str, Any]:
    """Return the config under today's options. of_training: model.weights is what the run started from."""
    model, data, train = dict(tree["model"]), dict(tree["data"]), dict(tree["train"])
    reset_head = model.pop("reset_head")
    if of_training:
        train |= {"start_from": model["weights"], "start_variant": model["variant"], "reset_head": reset_head}
        model |= {"weights": None, "variant": None}
    data["preprocessing"] = {name: data.pop(name) for name in PREPROCESSING}
    return tree | {"model": model, "data": data, "train": train}
