"""The weights of timm: Google's EfficientNets and Facebook's WSL, converted, and EfficientNets of its own."""

from collections.abc import Iterable
from dataclasses import replace
from math import floor

from ppcls.preprocessing import Preprocessing
from ppcls.weights.published.record import (
    APACHE,
    NON_COMMERCIAL,
    Published,
    fraction,
    image_size,
    inception,
    pillow,
)

# timm's conversions of Google's EfficientNets: hash, bytes, top-1, top-5.
TIMM_TF: dict[str, dict[str, tuple[str, int | None, float, float]]] = {
    "b0": {
        "in1k": ("0af12548", None, 76.542, 93.008),
        "aa_in1k": ("827b6e33", 21_383_997, 76.882, 93.270),
        "ap_in1k": ("f262efe1", None, 77.100, 93.258),
        "ns_jft_in1k": ("c0e6a31c", None, 78.680, 94.372),
    },
    "b1": {
        "in1k": ("5c1377c4", None, 78.546, 94.096),
        "aa_in1k": ("ea7a6ee0", 31_512_534, 78.840, 94.202),
        "ap_in1k": ("44ef0a3d", None, 79.288, 94.316),
        "ns_jft_in1k": ("99dd0c41", None, 81.388, 95.756),
    },
    "b2": {
        "in1k": ("e393ef04", None, 79.612, 94.714),
        "aa_in1k": ("60c94f97", 36_797_929, 80.074, 94.906),
        "ap_in1k": ("2f8e7636", None, 80.300, 95.032),
        "ns_jft_in1k": ("00306e48", None, 82.412, 96.238),
    },
    "b3": {
        "in1k": ("e3bd6955", None, 80.878, 95.308),
        "aa_in1k": ("84b4657e", 49_381_362, 81.648, 95.724),
        "ap_in1k": ("aad25bdd", None, 81.842, 95.614),
        "ns_jft_in1k": ("9d44bf68", None, 84.054, 96.926),
    },
    "b4": {
        "in1k": ("74ee3bed", None, 82.598, 96.132),
        "aa_in1k": ("818f208c", 77_989_689, 83.040, 96.298),
        "ap_in1k": ("dedb23e6", None, 83.246, 96.392),
        "ns_jft_in1k": ("d6313a46", None, 85.156, 97.482),
    },
    "b5": {
        "in1k": ("c6949ce9", None, 83.170, 96.534),
        "aa_in1k": ("99018a74", None, 83.696, 96.712),
        "ap_in1k": ("9e82fae8", None, 84.258, 96.984),
        "ns_jft_in1k": ("6f26d0cf", None, 86.096, 97.744),
        "ra_in1k": ("9a3e5369", 122_403_150, 83.834, 96.764),
    },
    "b6": {
        "aa_in1k": ("80ba17e4", 173_232_007, 84.124, 96.890),
        "ap_in1k": ("4ffb161f", None, 84.794, 97.138),
        "ns_jft_in1k": ("51548356", None, 86.476, 97.864),
    },
    "b7": {
        "aa_in1k": ("076e3472", None, 84.424, 96.908),
        "ap_in1k": ("ddb28fec", None, 85.132, 97.256),
        "ns_jft_in1k": ("1dbc32de", None, 86.850, 98.080),
        "ra_in1k": ("6c08e654", 266_850_607, 84.926, 97.220),
    },
}
TIMM_TF_INFIX = {"in1k": "", "aa_in1k": "_aa", "ap_in1k": "_ap", "ns_jft_in1k": "_ns", "ra_in1k": "_ra"}
TIMM_TF_CROP = dict(zip(TIMM_TF, (0.875, 0.882, 0.890, 0.904, 0.922, 0.934, 0.942, 0.949), strict=True))
# timm's own EfficientNets: name, size of the reported accuracy, crop / resized size, top-1, top-5.
TIMM_OWN = {
    "b0": ("ra_in1k", 224, 0.875, 77.698, 93.538),
    "b1": ("ft_in1k", 256, 1.0, 78.806, 94.346),
    "b2": ("ra_in1k", 288, 1.0, 80.612, 95.320),
    "b3": ("ra2_in1k", 320, 1.0, 82.296, 96.124),
    "b4": ("ra2_in1k", 384, 1.0, 83.468, 96.574),
}
# Facebook's WSL on Hugging Face: top-1, top-5.
TIMM_WSL = {8: (82.720, 96.624), 16: (84.166, 97.192), 32: (85.090, 97.442), 48: (85.436, 97.576)}
TIMM_URL = "https://github.com/huggingface/pytorch-image-models/releases/download/v0.1-weights/"
TIMM_SOURCE = "timm results/results-imagenet.csv"


def hub_file(name: str, preprocessing: Preprocessing, top1: float, top5: float) -> Published:
    """Return timm's file of this name on Hugging Face."""
    return Published(
        tag=f"timm/{name}",
        urls=(f"https://huggingface.co/timm/{name}/resolve/main/model.safetensors",),
        file_format="timm",
        sha256=None,
        size=None,
        license=APACHE,
        preprocessing=preprocessing,
        top1=fraction(top1),
        top5=fraction(top5),
        accuracy_source=TIMM_SOURCE,
    )


def both_files(
    on_hub: Published, file: str, sha256: str, size: int | None = None
) -> tuple[Published, Published]:
    """Return timm's file on GitHub, and the one on Hugging Face: the same weights, but no published hash."""
    on_github = replace(on_hub, urls=(f"{TIMM_URL}{file}-{sha256}.pth",), sha256=sha256, size=size)
    return on_github, replace(on_hub, tag=f"{on_hub.tag}.safetensors")


def timm_files(net: str) -> Iterable[Published]:
    """Yield timm's files of an EfficientNet, such as b0."""
    size = image_size(f"EfficientNet{net.upper()}")
    bicubic = pillow(floor(size / TIMM_TF_CROP[net]), size, "bicubic")
    for kind, (sha256, file_size, top1, top5) in TIMM_TF[net].items():
        preprocessing = inception(bicubic) if kind == "ap_in1k" else bicubic
        on_hub = hub_file(f"tf_efficientnet_{net}.{kind}", preprocessing, top1, top5)
        yield from both_files(on_hub, f"tf_efficientnet_{net}{TIMM_TF_INFIX[kind]}", sha256, file_size)
    if net in TIMM_OWN:
        kind, size, crop, top1, top5 = TIMM_OWN[net]
        own = hub_file(f"efficientnet_{net}.{kind}", pillow(floor(size / crop), size, "bicubic"), top1, top5)
        yield replace(own, bn_epsilon=1e-5, padding="symmetric")


def timm_wsl_file(width: int) -> Published:
    """Return timm's file of ResNeXt101 WSL of this width."""
    name = f"resnext101_32x{width}d.fb_wsl_ig1b_ft_in1k"
    published = hub_file(name, pillow(256, 224, "bilinear"), *TIMM_WSL[width])
    return replace(
        published,
        license=NON_COMMERCIAL,
        accuracy_source=TIMM_SOURCE + (" of timm 0.6, ig_resnext101_32x48d" if width == 48 else ""),
    )
