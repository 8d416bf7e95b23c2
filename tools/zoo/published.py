"""Figures of PaddleClas's page of these models, and the origin of the weights. Plain data.

The page is EfficientNet and ResNeXt101_wsl in docs/zh_CN/models/ImageNet1k of PaddleClas, as of 2020 and
2021. The accuracy of the weights themselves, in four digits, is in ppcls/weights/published.
"""

from typing import NamedTuple

from ppcls.weights.published import PUBLISHED

IMAGENET_VALIDATION = 50_000  # images


class PageRow(NamedTuple):
    """One row of the page.

    reference: top-1 and top-5 of the original, as fractions, or None. gflops, mparams: FLOPs / 1e9 and
    parameters / 1e6 by the formula of `zoo.complexity.model_stat`. v100_ms: milliseconds in float32 at
    batch 1 on an NVIDIA V100.
    """

    reference: tuple[float, float] | None
    gflops: float
    mparams: float
    v100_ms: float


PADDLECLAS_PAGE = {
    "ResNeXt101_32x8d_wsl": PageRow((0.822, 0.964), 29.14, 78.44, 19.127),
    "ResNeXt101_32x16d_wsl": PageRow((0.842, 0.972), 57.55, 152.66, 23.629),
    "ResNeXt101_32x32d_wsl": PageRow((0.851, 0.975), 115.17, 303.11, 40.214),
    "ResNeXt101_32x48d_wsl": PageRow((0.854, 0.976), 173.58, 456.20, 59.714),
    "Fix_ResNeXt101_32x48d_wsl": PageRow((0.864, 0.980), 354.23, 456.20, 82.431),
    "EfficientNetB0": PageRow((0.773, 0.935), 0.72, 5.10, 2.449),
    "EfficientNetB1": PageRow((0.792, 0.945), 1.27, 7.52, 3.547),
    "EfficientNetB2": PageRow((0.803, 0.950), 1.85, 8.81, 3.908),
    "EfficientNetB3": PageRow((0.817, 0.956), 3.43, 11.84, 5.145),
    "EfficientNetB4": PageRow((0.830, 0.963), 8.29, 18.76, 7.609),
    "EfficientNetB5": PageRow((0.837, 0.967), 19.51, 29.61, 12.078),
    "EfficientNetB6": PageRow((0.842, 0.968), 36.27, 42.00, 18.381),
    "EfficientNetB7": PageRow((0.844, 0.971), 72.35, 64.92, 27.817),
    "EfficientNetB0_small": PageRow(None, 0.72, 4.65, 1.692),
}
# The order of the page. EfficientNet-Lite is not on PaddleClas's.
LITES = tuple(f"EfficientNetLite{number}" for number in range(5))
ORDER = (*PADDLECLAS_PAGE, *LITES)

# Publisher of the weights that `pretrained` loads, and their origin. Source: PaddleClas's
# docs/en/models/models_intro_en.md of release/2.0. B1 to B7 and WSL are conversions; B0 and B0_small are
# PaddleClas's own.
PADDLECLAS, FACEBOOK, FIXRES, GOOGLE = "PaddleClas", "Facebook WSL", "FixRes", "Google"
SOURCES = {
    name: (PADDLECLAS, FIXRES if name.startswith("Fix_") else FACEBOOK if "_wsl" in name else GOOGLE)
    for name in PADDLECLAS_PAGE
}
SOURCES |= {name: (PADDLECLAS, PADDLECLAS) for name in ("EfficientNetB0", "EfficientNetB0_small")}
SOURCES |= {name: (PUBLISHED[name][0].package or "timm", GOOGLE) for name in LITES}
