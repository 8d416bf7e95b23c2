"""Weights and inputs from seeds, the same in every environment. Needs numpy and the tables of the networks.

A seed is the crc32 of a name, and only `RandomState.uniform` is drawn: numpy keeps that stream as it is,
and unlike a normal distribution it takes nothing from the platform's C library.
"""

import math
import re
from zlib import crc32

import numpy as np

from ppcls.architectures import MODELS, EfficientNetVariant

# Height 199 halves to 100, 50, 25, 13, width 153 to 77, 39, 20, 10. Only an even size pads unevenly, so each
# strided layer behind the stem does in one direction. At 193x161, say, "same" and symmetric agree.
ODD_SIZE = (199, 153)
BLOCK_SIZE = (9, 7)

NORMS = {"weight": (1, 0.3), "bias": (0, 0.3), "_mean": (0, 0.3), "_variance": (1, 0.5)}  # center, spread
# What an activation leaves of its input's second moment: swish 0.36 of a small one, up to 0.5 of a large one
SECOND_MOMENTS = {"swish": 0.45, "relu": 0.5, "relu6": 0.5}
GATE = 0.7  # what squeeze-excite scales by, about
AVERAGES_GAIN = 2.0  # of layers that see channels' averages, which vary less than what they average
CONTRACTION = 0.9  # of every layer: growth would feed itself, as swish leaves a larger share of larger inputs


def list_keys(name: str) -> list[str]:
    """This project's names of a network's parameters and statistics, without building it."""
    variant = MODELS[name]
    convs, biased = ["stem"], ["fc"]
    for block, (stage, repeat) in enumerate(_list_blocks(name)):
        if isinstance(variant, EfficientNetVariant):
            layers = ["expand"] * (stage.expand_ratio != 1) + ["depthwise", "project"]
            if variant.squeeze_excite:
                biased += [f"blocks.{block}.se.reduce", f"blocks.{block}.se.expand"]
        else:
            layers = ["reduce", "grouped", "expand"] + ["shortcut"] * (repeat == 0)
        convs += [f"blocks.{block}.{layer}" for layer in layers]
    if isinstance(variant, EfficientNetVariant):
        convs.append("head")
    leaves = ("conv.weight", "bn.weight", "bn.bias", "bn._mean", "bn._variance")
    keys = [f"{layer}.{leaf}" for layer in convs for leaf in leaves]
    return keys + [f"{layer}.{leaf}" for layer in biased for leaf in ("weight", "bias")]


def list_stage_starts(name: str) -> list[int]:
    """The first block of each stage, which changes the shape and so has no identity shortcut."""
    return [block for block, (_, repeat) in enumerate(_list_blocks(name)) if repeat == 0]


def draw(name: str, key: str, shape: tuple[int, ...]) -> np.ndarray:
    """One parameter of the network `name`, float32, in Paddle's layout.

    The values come from the key's seed. Their scale depends on the network: activations stay of order one
    through its last layer, so that a mistake anywhere shows in the logits.
    """
    random = np.random.RandomState(crc32(key.encode()))
    layer, leaf = key.rsplit(".", 1)
    scale = 1.0
    if layer.endswith(".bn"):
        center, spread = NORMS[leaf]
        if leaf in ("weight", "bias"):
            scale = _branch_scale(name, layer)
    elif leaf == "bias":
        center, spread = 1.0 if layer.endswith("se.expand") else 0.0, 0.3
    else:
        fan_in = shape[0] if layer == "fc" else math.prod(shape[1:])
        center, spread = 0.0, math.sqrt(3 / fan_in)
        scale = CONTRACTION * _gain(name, layer)
    values = random.uniform(center - spread, center + spread, shape)
    values *= scale
    return values.astype(np.float32)


def draw_input(*shape: int) -> np.ndarray:
    """float32 [N, C, H, W] of order one: noise on a coarse pattern, which gives images their own averages."""
    random = np.random.RandomState(crc32(repr(shape).encode()))
    n, channels, height, width = shape
    coarse = random.uniform(-2, 2, (n, channels, 4, 4))
    rows, columns = np.arange(height) * 4 // height, np.arange(width) * 4 // width
    return (coarse[:, :, rows][:, :, :, columns] + random.uniform(-1, 1, shape)).astype(np.float32)


def name_entry(name: str, shape: tuple[int, ...]) -> str:
    """Under what a golden file keeps the logits of a network for an input of `shape`."""
    return f"{name}/{'x'.join(map(str, shape))}"


def _list_blocks(name: str) -> list[tuple]:
    return [(stage, repeat) for stage in MODELS[name].stages for repeat in range(stage.repeats)]


def _branch_scale(name: str, layer: str) -> float:
    """Of what an identity shortcut is added to: all the sums together at most triple the variance."""
    last = "project" if isinstance(MODELS[name], EfficientNetVariant) else "expand"
    match = re.fullmatch(rf"blocks\.(\d+)\.{last}\.bn", layer)
    starts = list_stage_starts(name)
    if match is None or int(match[1]) in starts:
        return 1.0
    return 1 / math.sqrt(len(_list_blocks(name)) - len(starts))


def _gain(name: str, layer: str) -> float:
    """Of a convolution or linear layer: makes up for what its input went through."""
    if layer.endswith(("se.reduce", "se.expand", "fc")):
        return AVERAGES_GAIN
    variant = MODELS[name]
    is_efficientnet = isinstance(variant, EfficientNetVariant)
    inner = ("depthwise.conv", "project.conv") if is_efficientnet else ("grouped.conv", "expand.conv")
    if not layer.endswith(inner):  # the input is an image, or a sum of unactivated or rectified branches
        return 1.0
    gain = 1 / math.sqrt(SECOND_MOMENTS[variant.activation if is_efficientnet else "relu"])
    return gain / GATE if layer.endswith("project.conv") and variant.squeeze_excite else gain
