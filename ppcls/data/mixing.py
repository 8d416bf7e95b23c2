"""Mix the images of batches and their labels: mixup and cutmix. All random numbers come from the caller."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Mix(NamedTuple):
    """Parameters of one batch's mix. share: the part of each image that stays; the previous image in the
    batch gives the rest. box: None to blend the whole area (mixup); or the top, bottom, left and right of the
    part that is replaced (cutmix)."""

    share: float
    box: tuple[int, int, int, int] | None


@dataclass(frozen=True)
class Mixing:
    """Mixup (https://arxiv.org/abs/1710.09412) and cutmix (https://arxiv.org/abs/1905.04899) of batches. The
    values are the beta distribution's alpha; 0 disables that kind. If both are given, each batch gets one of
    them at random. As in both papers, the whole batch shares one draw.
    """

    mixup: float
    cutmix: float

    def draw(self, size: int, random: np.random.RandomState) -> Mix:
        """Draw a mix for images of size x size pixels. A box is clipped to the image, and the share is
        computed from the clipped box."""
        is_cutmix = self.cutmix > 0 and (self.mixup == 0 or random.uniform() < 0.5)
        alpha = self.cutmix if is_cutmix else self.mixup
        share = random.beta(alpha, alpha)
        if not is_cutmix:
            return Mix(share, None)
        side = int(size * math.sqrt(1 - share))
        row, column = random.randint(size), random.randint(size)
        top, bottom = max(row - side // 2, 0), min(row + (side + 1) // 2, size)
        left, right = max(column - side // 2, 0), min(column + (side + 1) // 2, size)
        return Mix(1 - (bottom - top) * (right - left) / size**2, (top, bottom, left, right))


def mix_images(images: np.ndarray, mix: Mix) -> None:
    """Mix a batch float32 [N, 3, S, S], in place."""
    if mix.box is not None:
        top, bottom, left, right = mix.box
        part = images[:, :, top:bottom, left:right]
        part[...] = np.roll(part, 1, axis=0)
    elif len(images):
        last, given = images[-1].copy(), np.empty_like(images[-1])
        for number in range(len(images) - 1, -1, -1):  # from the end: the previous image is still unmixed
            np.multiply(images[number - 1] if number else last, 1 - mix.share, out=given)
            images[number] *= mix.share
            images[number] += given


def mix_labels(labels: np.ndarray, shares: np.ndarray, mix: Mix) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels int64 [N, 2M] of a mixed batch and their shares of the target float32 [N, 2M], from
    those of its images, [N, M]. A label that both images have is there twice. The loss smooths them."""
    own, given = np.float32(mix.share), np.float32(1 - mix.share)
    return (
        np.concatenate([labels, np.roll(labels, 1, axis=0)], axis=1),
        np.concatenate([shares * own, np.roll(shares, 1, axis=0) * given], axis=1),
    )
