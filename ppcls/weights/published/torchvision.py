"""The weights of torchvision: EfficientNets, and ResNeXt101 32x8d."""

from collections.abc import Iterable
from dataclasses import replace

from ppcls.preprocessing import Interpolation, Preprocessing
from ppcls.weights.published.record import Published, fraction, pillow

TORCHVISION_LICENSE = "BSD-3-Clause for the code; none stated for the weights"
# torchvision 0.21: version, file, resize, crop, interpolation, top-1, top-5. B0 to B4 are by the author of
# timm, B5 to B7 by lukemelas; torchvision runs all of them with symmetric padding.
TORCHVISION: dict[str, tuple[tuple[str, str, int, int, Interpolation, float, float], ...]] = {
    "b0": (("v1", "efficientnet_b0_rwightman-7f5810bc", 256, 224, "bicubic", 77.692, 93.532),),
    "b1": (
        ("v1", "efficientnet_b1_rwightman-bac287d4", 256, 240, "bicubic", 78.642, 94.186),
        ("v2", "efficientnet_b1-c27df63c", 255, 240, "bilinear", 79.838, 94.934),
    ),
    "b2": (("v1", "efficientnet_b2_rwightman-c35c1473", 288, 288, "bicubic", 80.608, 95.310),),
    "b3": (("v1", "efficientnet_b3_rwightman-b3899882", 320, 300, "bicubic", 82.008, 96.054),),
    "b4": (("v1", "efficientnet_b4_rwightman-23ab8bcd", 384, 380, "bicubic", 83.384, 96.594),),
    "b5": (("v1", "efficientnet_b5_lukemelas-1a07897c", 456, 456, "bicubic", 83.444, 96.628),),
    "b6": (("v1", "efficientnet_b6_lukemelas-24a108a5", 528, 528, "bicubic", 84.008, 96.916),),
    "b7": (("v1", "efficientnet_b7_lukemelas-c5b4e57e", 600, 600, "bicubic", 84.122, 96.908),),
}
# torchvision's ResNeXt101 32x8d, the same network trained on ImageNet-1k alone.
TORCHVISION_RESNEXT = (
    ("v1", "resnext101_32x8d-8ba56ff5", 256, 79.312, 94.526),
    ("v2", "resnext101_32x8d-110c445d", 232, 82.834, 96.228),
)


def torchvision_files(net: str) -> Iterable[Published]:
    """Yield torchvision's files of an EfficientNet, such as b0."""
    for version, file, resize, crop, interpolation, top1, top5 in TORCHVISION[net]:
        published = _published(
            f"efficientnet_{net}.{version}", file, pillow(resize, crop, interpolation), top1, top5
        )
        bn_epsilon = 1e-5 if "rwightman" in file or version == "v2" else 1e-3
        yield replace(published, bn_epsilon=bn_epsilon, padding="symmetric")


def torchvision_resnext_file(version: str, file: str, resize: int, top1: float, top5: float) -> Published:
    """Return the file of a row of TORCHVISION_RESNEXT."""
    return _published(f"resnext101_32x8d.{version}", file, pillow(resize, 224, "bilinear"), top1, top5)


def _published(name: str, file: str, preprocessing: Preprocessing, top1: float, top5: float) -> Published:
    module = "resnet" if file.startswith("resnext") else "efficientnet"
    return Published(
        tag=f"torchvision/{name}",
        urls=(f"https://download.pytorch.org/models/{file}.pth",),
        file_format="torchvision",
        sha256=file[-8:],
        size=None,
        license=TORCHVISION_LICENSE,
        preprocessing=preprocessing,
        top1=fraction(top1),
        top5=fraction(top5),
        accuracy_source=f"torchvision 0.21 torchvision/models/{module}.py",
    )
