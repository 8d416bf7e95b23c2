"""Write augment.npz and augment.json: what timm's and torchvision's augmentation makes of drawn pictures.

    pip install torch==2.14.1 torchvision==0.29.1 timm==1.0.31 pillow==13.0.0 numpy==2.4.6
    python tests/golden/make_augment.py

Needs Python 3.11; a few seconds. timm computes with Pillow; torchvision's operators for tensors share no code
with Pillow.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
FILL = (124, 116, 104)
GEOMETRIC = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")
TONES = {  # operator: magnitudes
    **{name: (0,) for name in ("AutoContrast", "Equalize", "Invert")},
    "Posterize": (3, 5, 10),  # below 2.5 no bit is kept, which Pillow 13 refuses
    **{name: (0, 3, 4.5, 9, 10) for name in ("Solarize", "SolarizeAdd")},
    **{name: (0, 4.5, 10) for name in ("Color", "Contrast", "Brightness", "Sharpness")},
}
MOVES = (0, 3, 9)
TENSOR_STRENGTHS = {  # operator: strengths, in this project's measure
    **{name: (0,) for name in ("AutoContrast", "Equalize", "Invert")},
    "Posterize": (1, 4),
    "Solarize": (30, 200),
    **{name: (0.3, 1.0, 1.7) for name in ("Color", "Contrast", "Brightness", "Sharpness")},
}
MIXINGS = {"mixup": (0.4, 0.0), "cutmix": (0.0, 1.0), "both": (0.2, 1.0)}  # alphas
SIZE, CLASSES, SEEDS = 7, 5, range(8)
BATCH_MIXES = {"mixup": (0.3, None), "cutmix": (1 - 6 / 49, (1, 4, 3, 5))}  # share, box
SMOOTHINGS = (0.0, 0.1)


def draw_pictures() -> list[np.ndarray]:
    """Two uint8 [20, 26, 3]: a colourful one, and one dark and flat, with few values in its blue."""
    random = np.random.RandomState(0)
    rows, columns = np.arange(20) * 4 // 20, np.arange(26) * 4 // 26
    coarse = random.uniform(0, 1, (2, 4, 4, 3))[:, rows][:, :, columns]
    mixed = 0.85 * coarse + 0.15 * random.uniform(0, 1, (2, 20, 26, 3))
    bright = mixed[0] * 255
    dark = mixed[1] ** 2 * (90, 60, 8) + (5, 30, 100)
    return [picture.astype(np.uint8) for picture in (bright, dark)]


def draw_batch(count: int) -> tuple[np.ndarray, np.ndarray]:
    """float32 [count, 3, SIZE, SIZE] and int64 [count]."""
    random = np.random.RandomState(count)
    images = random.uniform(-2, 2, (count, 3, SIZE, SIZE)).astype(np.float32)
    return images, random.randint(CLASSES, size=count)


def draw_losses() -> tuple[np.ndarray, np.ndarray]:
    """Logits and targets float32 [6, CLASSES]; the last target is of one class."""
    random = np.random.RandomState(1)
    targets = random.uniform(0, 1, (6, CLASSES)) ** 4
    targets[-1] = np.arange(CLASSES) == 2
    targets /= targets.sum(1, keepdims=True)
    return random.uniform(-4, 4, (6, CLASSES)).astype(np.float32), targets.astype(np.float32)


def plain(step: Any) -> str:
    """timm's name of an operator without what tells it from a translation by a number of pixels."""
    return step.name.removesuffix("Rel")


def apply_timm(name: str, magnitude: float, interpolation: str, is_negative: bool) -> list[np.ndarray]:
    from PIL import Image
    from timm.data import auto_augment

    hparams = {"img_mean": FILL, "interpolation": Image.Resampling[interpolation.upper()]}
    name += "Rel" * name.startswith("Translate")
    operator = auto_augment.AugmentOp(name, prob=1.0, magnitude=magnitude, hparams=hparams)
    auto_augment.random.random = lambda: float(is_negative)
    return [np.asarray(operator(Image.fromarray(picture))) for picture in draw_pictures()]


def apply_torchvision(name: str, strength: float) -> list[np.ndarray]:
    import torch
    from torchvision.transforms.v2 import functional

    calls = {
        "AutoContrast": lambda image: functional.autocontrast(image),
        "Equalize": lambda image: functional.equalize(image),
        "Invert": lambda image: functional.invert(image),
        "Posterize": lambda image: functional.posterize(image, int(strength)),
        "Solarize": lambda image: functional.solarize(image, strength),
        "Color": lambda image: functional.adjust_saturation(image, strength),
        "Contrast": lambda image: functional.adjust_contrast(image, strength),
        "Brightness": lambda image: functional.adjust_brightness(image, strength),
        "Sharpness": lambda image: functional.adjust_sharpness(image, strength),
    }
    pictures = [torch.from_numpy(picture.transpose(2, 0, 1).copy()) for picture in draw_pictures()]
    return [calls[name](picture).numpy().transpose(1, 2, 0) for picture in pictures]


def mix_with_timm() -> dict[str, np.ndarray]:
    """Two images each, whose partner is the other one; timm draws from numpy's global RandomState."""
    import torch
    from timm.data.mixup import Mixup

    results = {}
    for kind, (mixup, cutmix) in MIXINGS.items():
        mixer = Mixup(mixup, cutmix, label_smoothing=0.1, num_classes=CLASSES)
        outputs = []
        for seed in SEEDS:
            np.random.seed(seed)
            outputs.append(mixer(*map(torch.from_numpy, draw_batch(2))))
        results[f"timm/{kind}/images"] = np.stack([images.numpy() for images, _ in outputs])
        results[f"timm/{kind}/targets"] = np.stack([targets.numpy() for _, targets in outputs])
    return results


def mix_with_torchvision() -> dict[str, np.ndarray]:
    """Five images with a given share and box, each mixed with the one before it."""
    import torch
    from torchvision.transforms.v2 import CutMix, MixUp

    results = {}
    images, labels = map(torch.from_numpy, draw_batch(5))
    for kind, (share, box) in BATCH_MIXES.items():
        transform = {"mixup": MixUp, "cutmix": CutMix}[kind](num_classes=CLASSES)
        if box is None:
            parameters = {"lam": share}
        else:
            top, bottom, left, right = box
            parameters = {"box": (left, top, right, bottom), "lam_adjusted": share}
        parameters |= {"labels": labels, "batch_size": len(labels)}
        results[f"torchvision/{kind}/images"] = transform.transform(images, parameters).numpy()
        results[f"torchvision/{kind}/targets"] = transform.transform(labels, parameters).numpy()
    return results


def main() -> None:
    import timm
    import torch
    from timm.data import auto_augment

    arrays = {}
    for name, magnitudes in TONES.items():
        for magnitude in magnitudes:
            arrays[f"timm/{name}/{magnitude}"] = np.stack(apply_timm(name, magnitude, "bilinear", False))
    for name in GEOMETRIC:
        for interpolation in ("bilinear", "bicubic"):
            results = [apply_timm(name, m, interpolation, sign)[0] for m in MOVES for sign in (False, True)]
            arrays[f"timm/{name}/{interpolation}"] = np.stack(results)
    for name, strengths in TENSOR_STRENGTHS.items():
        for strength in strengths:
            arrays[f"torchvision/{name}/{strength}"] = np.stack(apply_torchvision(name, strength))
    arrays |= mix_with_timm() | mix_with_torchvision()
    logits, targets = map(torch.from_numpy, draw_losses())
    losses = [torch.nn.functional.cross_entropy(logits, targets, label_smoothing=s) for s in SMOOTHINGS]
    arrays["torch/losses"] = np.array([loss.item() for loss in losses], np.float32)
    np.savez_compressed(HERE / "augment.npz", **arrays)

    auto_augment.random.random = lambda: 0.0  # no sign
    v0 = auto_augment.auto_augment_policy_v0({})
    rand = auto_augment.rand_augment_transform("rand-m9-n2-mstd0.5", {}).ops
    strengths = {
        plain(step): [step.level_fn(m / 2, {})[0] for m in range(21)] for step in rand if step.level_fn
    }
    tables = {
        "made_by": f"timm {timm.__version__}",
        "v0": [[[plain(step), step.prob, step.magnitude] for step in pair] for pair in v0],
        "rand": [[plain(step), step.prob] for step in rand],
        "strengths": strengths,  # at magnitudes 0, 0.5, ... 10
    }
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in tables.items())
    (HERE / "augment.json").write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
