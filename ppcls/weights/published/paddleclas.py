"""PaddleClas's weights, the defaults: the configs use its preprocessing. It publishes no hashes."""

from ppcls.weights.published.record import APACHE, NON_COMMERCIAL, Published, image_size, opencv

PADDLECLAS = "https://paddle-imagenet-models-name.bj.bcebos.com/dygraph/{}_pretrained.pdparams"
PADDLECLAS_SOURCE = "PaddleClas docs/zh_CN/models/ImageNet1k/README.md"
PADDLECLAS_ACCURACY = {
    "ResNeXt101_32x8d_wsl": (0.8255, 0.9674),
    "ResNeXt101_32x16d_wsl": (0.8424, 0.9726),
    "ResNeXt101_32x32d_wsl": (0.8497, 0.9759),
    "ResNeXt101_32x48d_wsl": (0.8537, 0.9769),
    "Fix_ResNeXt101_32x48d_wsl": (0.8626, 0.9797),
    "EfficientNetB0": (0.7738, 0.9331),
    "EfficientNetB1": (0.7915, 0.9441),
    "EfficientNetB2": (0.7985, 0.9474),
    "EfficientNetB3": (0.8115, 0.9541),
    "EfficientNetB4": (0.8285, 0.9623),
    "EfficientNetB5": (0.8362, 0.9672),
    "EfficientNetB6": (0.8400, 0.9688),
    "EfficientNetB7": (0.8430, 0.9689),
    "EfficientNetB0_small": (0.7580, 0.9258),
}
# PaddleClas spells one file without the d in its code, and with it in its documents.
PADDLECLAS_SPELLINGS = {"ResNeXt101_32x16d_wsl": ("ResNeXt101_32x16d_wsl", "ResNeXt101_32x16_wsl")}


def paddleclas_file(name: str) -> Published:
    """Return PaddleClas's file of a model."""
    size = image_size(name)
    if name.startswith("Fix_"):
        preprocessing = opencv(320, 320, "bilinear")
    else:
        preprocessing = opencv(size + 32, size, "bilinear" if "_wsl" in name else "bicubic")
    top1, top5 = PADDLECLAS_ACCURACY[name]
    return Published(
        tag="paddleclas",
        urls=tuple(PADDLECLAS.format(file) for file in PADDLECLAS_SPELLINGS.get(name, (name,))),
        file_format="paddleclas",
        sha256=None,
        size=None,
        # The repository is Apache-2.0, but conversions of Facebook's weights keep Facebook's license.
        license=NON_COMMERCIAL if "_wsl" in name else APACHE,
        preprocessing=preprocessing,
        top1=top1,
        top5=top5,
        accuracy_source=PADDLECLAS_SOURCE,
    )
