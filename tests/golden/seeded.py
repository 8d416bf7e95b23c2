"""Weights and inputs from seeds, the same in every environment. Needs numpy and the networks' tables only.

Seeds are crc32 of names, and only `RandomState.uniform` is drawn: numpy keeps that stream as it is, and
unlike the normal distribution it involves no function of the platform's C library.
"""

import math
import re
from zlib import crc32

import numpy as np

from ppcls.architectures import MODELS, EfficientNetVariant

ODD_SIZE = (193, 161)  # height, width: odd at the image, and odd and even further in
SECOND_MOMENTS = {"swish": 0.45, "relu": 0.5, "relu6": 0.5}  # of the activation of a standard normal
GATE = 0.7  # what squeeze-excite scales by, about


def nominal_size(name: str) -> tuple[int, int]:
    return MODELS[name].image_size, MODELS[name].image_size


def list_keys(name: str) -> list[str]:
    """This project's names of a network's parameters and statistics, without building it."""
    variant = MODELS[name]
    convs, biased = ["stem"], ["fc"]
    for block, (stage, repeat) in enumerate(_blocks(name)):
        if isinstance(variant, EfficientNetVariant):
            layers = ["depthwise", "project"] if stage.expand_ratio == 1 else ["expand", "depthwise", "project"]
            if variant.squeeze_excite:
                biased += [f"blocks.{block}.se.reduce", f"blocks.{block}.se.expand"]
        else:
            layers = ["reduce", "grouped", "expand"] if repeat else ["reduce", "grouped", "expand", "shortcut"]
        convs += [f"blocks.{block}.{layer}" for layer in layers]
    if isinstance(variant, EfficientNetVariant):
        convs.append("head")
    norms = [f"{conv}.bn.{leaf}" for conv in convs for leaf in ("weight", "bias", "_mean", "_variance")]
    weights = [f"{conv}.conv.weight" for conv in convs]
    return weights + norms + [f"{layer}.{leaf}" for layer in biased for leaf in ("weight", "bias")]


def list_stage_starts(name: str) -> list[int]:
    """The first block of each stage: the ones that change the shape, so without an identity shortcut."""
    return [block for block, (_, repeat) in enumerate(_blocks(name)) if repeat == 0]


def draw(name: str, key: str, shape: tuple[int, ...]) -> np.ndarray:
    """One parameter of the network `name`, float32, in Paddle's layout.

    The values come from the key's seed. Only their scale depends on the network: layers keep the second
    moment near 1 whatever comes before them, so that a mistake anywhere reaches the logits undiminished
    and nothing overflows.
    """
    random = np.random.RandomState(crc32(key.encode()))
    layer, leaf = key.rsplit(".", 1)
    if layer.endswith(".bn"):
        center, spread = {"weight": (1, 0.3), "bias": (0, 0.3), "_mean": (0, 0.3), "_variance": (1, 0.5)}[leaf]
        scale = _branch_scale(name, layer) if leaf in ("weight", "bias") else 1.0
    elif leaf == "bias":
        center, spread, scale = 1.0 if layer.endswith("se.expand") else 0.0, 0.3, 1.0
    else:
        fan_in = shape[0] if layer == "fc" else math.prod(shape[1:])
        center, spread, scale = 0.0, math.sqrt(3 / fan_in), 0.9 * _gain(name, layer)
    values = random.uniform(center - spread, center + spread, shape)
    values *= scale
    return values.astype(np.float32)


def draw_input(*shape: int) -> np.ndarray:
    """float32 [N, C, H, W] of order one: a coarse pattern, which averages keep apart, under noise."""
    random = np.random.RandomState(crc32(repr(shape).encode()))
    n, channels, height, width = shape
    coarse = random.uniform(-2, 2, (n, channels, 4, 4))
    rows, columns = np.arange(height) * 4 // height, np.arange(width) * 4 // width
    noise = random.uniform(-1, 1, shape)
    return (coarse[:, :, rows][:, :, :, columns] + noise).astype(np.float32)


def _blocks(name: str) -> list[tuple]:
    return [(stage, repeat) for stage in MODELS[name].stages for repeat in range(stage.repeats)]


def _branch_scale(name: str, layer: str) -> float:
    """The last batch norm before an identity shortcut's sum is scaled so that all sums at most triple the
    variance; any other keeps its scale."""
    last = "project" if isinstance(MODELS[name], EfficientNetVariant) else "expand"
    match = re.fullmatch(rf"blocks\.(\d+)\.{last}\.bn", layer)
    starts = list_stage_starts(name)
    if match is None or int(match[1]) in starts:
        return 1.0
    return 1 / math.sqrt(len(_blocks(name)) - len(starts))


def _gain(name: str, layer: str) -> float:
    """What makes up for the activation, or the gate, that a layer's input went through."""
    variant = MODELS[name]
    is_efficientnet = isinstance(variant, EfficientNetVariant)
    activation = 1 / math.sqrt(SECOND_MOMENTS[variant.activation if is_efficientnet else "relu"])
    if layer.endswith(("depthwise.conv", "grouped.conv")):
        return activation
    if layer.endswith("project.conv"):
        return activation / GATE if variant.squeeze_excite else activation
    if layer.endswith("expand.conv") and not is_efficientnet:
        return activation
    if layer.endswith(("se.reduce", "se.expand", "fc")):
        return 2.0  # their inputs are averages
    return 1.0
