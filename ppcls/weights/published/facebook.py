"""Facebook's original files of ResNeXt101 WSL, and of its FixRes variant."""

from ppcls.weights.published.record import NON_COMMERCIAL, Published, fraction, pillow

# Of each width: hash, bytes, top-1, top-5.
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


def wsl_file(width: int, sha256: str, size: int, top1: float, top5: float) -> Published:
    """Return the file of a row of WSL."""
    return Published(
        tag="wsl",
        urls=(f"https://download.pytorch.org/models/ig_resnext101_32x{width}-{sha256}.pth",),
        file_format="wsl",
        sha256=sha256,
        size=size,
        license=NON_COMMERCIAL,
        preprocessing=pillow(256, 224, "bilinear"),
        top1=fraction(top1),
        top5=fraction(top5),
        accuracy_source="facebookresearch/WSL-Images README.md",
    )


def fixres_file(tag: str, file: str, top1: float, top5: float) -> Published:
    """Return the file of a row of FIXRES_FILES."""
    return Published(
        tag=tag,
        urls=(FIXRES + file,),
        file_format="fixres",
        sha256=None,
        size=None,
        license=NON_COMMERCIAL,
        preprocessing=pillow(365, 320, "bilinear"),
        top1=fraction(top1),
        top5=fraction(top5),
        accuracy_source="facebookresearch/FixRes README.md",
    )
