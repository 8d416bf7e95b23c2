"""Grad-CAM: the regions of an image that speak for its class. Selvaraju et al.,
https://arxiv.org/abs/1610.02391."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from threading import get_ident
from typing import Any

import numpy as np
import paddle
from paddle import Tensor, nn
from PIL import Image

from ppcls import distributed
from ppcls.data.dataset import Dataset
from ppcls.data.loader import eval_batch_indices, load_batches
from ppcls.data.opencv import cv2
from ppcls.data.show import denormalize
from ppcls.data.transforms import EvalTransform
from ppcls.errors import ConfigError, DataError
from ppcls.inference.predictor import Predictor
from ppcls.preprocessing import Preprocessing

BATCH = 4  # images; unlike a plain run, this stores all activations
QUALITY = 92  # of the JPEG files
STRENGTH = 0.6  # opacity of the colour at the highest heat


def last_features(model: nn.Layer) -> nn.Layer:
    """Return the layer of an EfficientNet or a ResNeXt101 whose output is averaged over the image's area."""
    return model.head if hasattr(model, "head") else model.blocks[-1]


def grad_cam(model: nn.Layer, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the top-1 classes int64 [N] and their heat float32 [N, h, w], 0 or more, in the size of the last
    features, for normalised images float32 [N, 3, H, W].

    heat = ReLU(sum over channels of weight x activation); weight = spatial mean of d(logit) / d(activation).
    """
    features: list[Tensor] = []
    thread = get_ident()  # others may run the same network

    def keep(_: nn.Layer, __: Any, output: Tensor) -> None:
        if get_ident() == thread:
            features.append(output)

    hook = last_features(model).register_forward_post_hook(keep)
    try:
        logits = model(paddle.to_tensor(images))
    finally:
        hook.remove()
    classes = logits.argmax(axis=1)
    score = paddle.take_along_axis(logits, classes.unsqueeze(1), 1).sum()
    (gradients,) = paddle.grad(score, features)
    weights = gradients.mean(axis=[2, 3], keepdim=True)
    heat = nn.functional.relu((weights * features[0]).sum(axis=1))
    return classes.numpy(), heat.numpy()


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Lay heat float32 [h, w] over an image uint8 [S, S, 3]: red where it is hottest, unchanged where it is
    0."""
    size = (image.shape[1], image.shape[0])
    heat = cv2.resize(heat / max(float(heat.max()), 1e-12), size, interpolation=cv2.INTER_LINEAR)
    colours = cv2.applyColorMap((255 * heat).astype(np.uint8), cv2.COLORMAP_JET)[..., ::-1]
    share = STRENGTH * heat[..., None]
    return np.rint((1 - share) * image + share * colours).astype(np.uint8)


def draw_heat(model: nn.Layer, images: np.ndarray, preprocessing: Preprocessing) -> list[np.ndarray]:
    """Return for normalised images float32 [N, 3, S, S] what the network sees, uint8 [S, S, 3], with the heat
    of its likeliest class over it."""
    _, heat = grad_cam(model, images)
    return [overlay(denormalize(image, preprocessing), own) for image, own in zip(images, heat, strict=True)]


def picture_names(files: Sequence[str]) -> list[str]:
    """Return a unique path for each file, ending in .jpg, relative to the folder that holds them all."""
    absolute = [os.path.abspath(file) for file in files]
    home = os.path.commonpath([os.path.dirname(file) for file in absolute])
    relative = [os.path.relpath(file, home) for file in absolute]
    names = [os.path.splitext(name)[0] + ".jpg" for name in relative]
    if max(Counter(names).values()) > 1:  # such as cat.jpg and cat.png
        names = [name + ".jpg" for name in relative]
    return names


def explain(predictor: Predictor, dataset: Dataset, folder: Path) -> int:
    """Write a picture of each readable image into `folder`: the crop that the network sees, with the heat of
    its likeliest class over it. Return their number. Each process of a run takes its share.

    Raises ConfigError for a predictor over an export, which has no gradients; DataError if a picture cannot
    be written.
    """
    model, preprocessing = predictor.model, predictor.preprocessing
    if model is None:
        raise ConfigError(
            f"An explanation needs the network itself. Received: an export on {predictor.engine.name}. Use "
            "the engine eager with a config or a run's folder."
        )
    names = picture_names([dataset.name(index) for index in range(len(dataset))])
    batches = load_batches(
        dataset,
        eval_batch_indices(len(dataset), BATCH, distributed.rank(), distributed.world_size()),
        EvalTransform(preprocessing),
        preprocessing,
        num_workers=predictor.num_workers,
        on_error="skip",
    )
    written = 0
    for batch in batches:
        if not len(batch.indices):
            continue
        drawn = draw_heat(model, batch.images, preprocessing)
        for index, picture in zip(batch.indices, drawn, strict=True):
            path = folder / names[index]
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                Image.fromarray(picture).save(path, quality=QUALITY)
            except OSError as error:
                raise DataError(f"{path} cannot be written: {error}.") from error
            written += 1
    return written
