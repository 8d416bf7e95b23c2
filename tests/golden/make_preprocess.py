"""Write preprocess_paddleclas.json and .npz, or preprocess_torchvision.json: what their operators make of
seeded noise.

    pip install paddlepaddle==3.3.1 paddleclas==2.6.0 numpy==1.24.4
    python tests/golden/make_preprocess.py paddleclas

    pip install torch==2.14.1 torchvision==0.29.1 pillow==13.0.0
    python tests/golden/make_preprocess.py torchvision

Needs Python 3.11; a minute at most. Whole results are kept where OpenCV's arithmetic depends on the processor
(bicubic, area, lanczos), to be compared within one level; else their SHA-256.
"""

import hashlib
import json
import sys
from pathlib import Path
from zlib import crc32

import numpy as np

HERE = Path(__file__).parent
SETTINGS = [(256, 224), (240, 240), (272, 240), (332, 300), (37, 20)]  # resize short, crop
SIZES = [  # height, width: landscape and portrait, enlarged and shrunk, odd, equal to the target, one pixel
    *((375, 500), (500, 375), (333, 499), (499, 333), (256, 256), (256, 341), (341, 256), (224, 224)),
    *((257, 255), (255, 257), (600, 800), (801, 599), (1200, 1600), (97, 113), (113, 97), (64, 48)),
    *((48, 64), (31, 29), (29, 31), (8, 8), (7, 9), (1, 1), (1, 3), (3, 1), (2, 5), (5, 2), (1000, 210)),
    *((210, 1000), (433, 577), (578, 434), (299, 301), (301, 299), (512, 512), (511, 768), (768, 511)),
    *((150, 150), (225, 223), (223, 225), (640, 427), (427, 640)),
]
RAW_SIZES = [(97, 113), (113, 97), (64, 48), (31, 29), (7, 9), (300, 451)]
RAW_SETTING = (40, 24)


def draw_picture(height: int, width: int) -> np.ndarray:
    """uint8 [height, width, 3]; numpy keeps RandomState's stream as it is."""
    random = np.random.RandomState(crc32(f"{height}x{width}".encode()))
    return np.frombuffer(random.bytes(height * width * 3), np.uint8).reshape(height, width, 3)


def digest(picture: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(picture).tobytes()).hexdigest()


def make_paddleclas() -> None:
    import cv2
    from paddleclas.deploy.python.preprocess import CropImage, ResizeImage

    cases = []
    for number, size in enumerate(SIZES):
        short, crop = SETTINGS[number % len(SETTINGS)]
        result = CropImage(crop)(ResizeImage(resize_short=short)(draw_picture(*size)))
        cases.append({"size": size, "resize_short": short, "crop_size": crop, "sha256": digest(result)})
    made_by = f"PaddleClas 2.6.0 with OpenCV {cv2.__version__}, bilinear"
    write_json("preprocess_paddleclas.json", made_by, cases)
    raw = {}
    for interpolation in ("bicubic", "area", "lanczos"):
        for size in RAW_SIZES:
            resize = ResizeImage(resize_short=RAW_SETTING[0], interpolation=interpolation)
            name = f"{interpolation}/{size[0]}x{size[1]}"
            raw[name] = CropImage(RAW_SETTING[1])(resize(draw_picture(*size)))
    np.savez_compressed(HERE / "preprocess_paddleclas.npz", **raw)


def make_torchvision() -> None:
    import torchvision
    from PIL import Image
    from torchvision.transforms import CenterCrop, InterpolationMode, Resize

    cases = []
    for interpolation in ("bilinear", "bicubic", "lanczos"):
        for number, size in enumerate(SIZES):
            short, crop = SETTINGS[number % len(SETTINGS)]
            if not agrees(size, short, crop):
                continue
            picture = Image.fromarray(draw_picture(*size))
            resized = Resize(short, InterpolationMode(interpolation))(picture)
            case = {"size": size, "resize_short": short, "crop_size": crop, "interpolation": interpolation}
            cases.append(case | {"sha256": digest(np.asarray(CenterCrop(crop)(resized)))})
    write_json("preprocess_torchvision.json", f"torchvision {torchvision.__version__}, on PIL images", cases)


def agrees(size: tuple[int, int], short: int, crop: int) -> bool:
    """Whether torchvision, which rounds otherwise, comes to PaddleClas's sizes and offsets, and every version
    of Pillow filters along the rows first."""
    exact = [short * side / min(size) for side in size]
    sides = [round(side) for side in exact]
    gaps = [side - crop for side in sides]
    same_offsets = all(round(gap / 2) == gap // 2 for gap in gaps)
    return sides == [int(side) for side in exact] and same_offsets and size[0] <= size[1] * 2


def write_json(name: str, made_by: str, cases: list[dict]) -> None:
    lines = ",\n".join(json.dumps(case) for case in cases)
    text = f'{{"made_by": {json.dumps(made_by)}, "cases": [\n{lines}\n]}}\n'
    (HERE / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    {"paddleclas": make_paddleclas, "torchvision": make_torchvision}[sys.argv[1]]()
