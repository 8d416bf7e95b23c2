"""Google's EfficientNets, as lukemelas/EfficientNet-PyTorch converted them."""

from collections.abc import Iterable
from dataclasses import replace

from ppcls.weights.published.record import APACHE, Published, fraction, image_size, inception, pillow

# Hash of the AutoAugment file, top-1, top-5; hash of the AdvProp file, top-1, top-5. MMPretrain measured the
# accuracies on the same checkpoints with TensorFlow's crop; the repository itself repeats those of the paper.
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


def lukemelas_files(net: str) -> Iterable[Published]:
    """Yield the files of an EfficientNet, such as b0: trained with AutoAugment, and with AdvProp."""
    aa, aa_top1, aa_top5, advprop, advprop_top1, advprop_top5 = LUKEMELAS[net]
    size = image_size(f"EfficientNet{net.upper()}")
    file = f"efficientnet-{net}-{aa}.pth"
    autoaugment = Published(
        tag="lukemelas/aa",
        urls=(LUKEMELAS_URL + file, LUKEMELAS_MIRROR + file),
        file_format="lukemelas",
        sha256=aa,
        size=None,
        license=APACHE,
        preprocessing=pillow(size + 32, size, "bicubic"),
        top1=fraction(aa_top1),
        top5=fraction(aa_top5),
        accuracy_source="open-mmlab/mmpretrain configs/efficientnet/README.md",
    )
    yield autoaugment
    yield replace(
        autoaugment,
        tag="lukemelas/advprop",
        urls=(f"{LUKEMELAS_URL}adv-efficientnet-{net}-{advprop}.pth",),
        sha256=advprop,
        preprocessing=inception(autoaugment.preprocessing),
        top1=fraction(advprop_top1),
        top5=fraction(advprop_top5),
    )
