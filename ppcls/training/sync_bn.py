"""Batch norm over the images of all processes."""

from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn
from paddle.autograd import PyLayer

AXES = [0, 2, 3]


def use_sync_bn(model: nn.Layer) -> None:
    """Replace every batch norm; parameters, statistics and their names stay. Paddle's SyncBatchNorm has a
    kernel for GPUs only; on CPUs the class below takes its place."""
    if paddle.get_device().startswith("gpu"):
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return
    for parent in model.sublayers(include_self=True):
        for name, child in list(parent.named_children()):
            if type(child) is nn.BatchNorm2D:
                setattr(parent, name, _with_parameters_of(child))


def _with_parameters_of(norm: nn.BatchNorm2D) -> "SyncBatchNorm2D":
    with paddle.LazyGuard():  # the new layer's own parameters are never drawn
        new = SyncBatchNorm2D(norm.weight.shape[0], momentum=norm._momentum, epsilon=norm._epsilon)
    for name in ("weight", "bias", "_mean", "_variance"):
        setattr(new, name, getattr(norm, name))
    return new


class SyncBatchNorm2D(nn.BatchNorm2D):
    """[N, C, H, W] normalised by the mean and biased variance over all processes' images."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        return _Normalise.apply(x, self.weight, self.bias, self)


class _Normalise(PyLayer):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, norm: nn.BatchNorm2D) -> Tensor:
        mean = x.mean(AXES)
        variance = (x - _wide(mean)).square().mean(AXES)
        mean, variance = mean.astype("float64"), variance.astype("float64")
        count = paddle.full([1], x.shape[0] * x.shape[2] * x.shape[3], "float64")
        mean, square, total = _sum_over_processes(mean * count, (variance + mean.square()) * count, count)
        mean = mean / total
        variance = (square / total - mean.square()).astype(x.dtype)
        mean = mean.astype(x.dtype)
        share = paddle.to_tensor(1 - norm._momentum, x.dtype)
        norm._mean.lerp_(mean, share)
        norm._variance.lerp_(variance, share)
        ctx.save_for_backward(x, weight, mean, (variance + norm._epsilon).rsqrt(), total)
        ctx.requested = [not tensor.stop_gradient for tensor in (x, weight, bias)]
        return F.batch_norm(x, mean, variance, weight, bias, training=False, epsilon=norm._epsilon)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale, total = ctx.saved_tensor()
        normalised = (x - _wide(mean)) * _wide(scale)
        dbias, dweight = dy.sum(AXES), (dy * normalised).sum(AXES)  # DataParallel averages these
        dbiases, dweights = _sum_over_processes(dbias, dweight)
        mean_dy, mean_product = (dbiases / total).astype(x.dtype), (dweights / total).astype(x.dtype)
        dx = _wide(weight * scale) * (dy - _wide(mean_dy) - normalised * _wide(mean_product))
        gradients = (dx, dweight, dbias)
        return tuple(g if asked else None for g, asked in zip(gradients, ctx.requested, strict=True))


def _wide(channels: Tensor) -> Tensor:
    """Reshape [C] to [1, C, 1, 1]."""
    return channels.reshape([1, -1, 1, 1])


def _sum_over_processes(*parts: Tensor) -> list[Tensor]:
    """Sum vectors of any lengths over the processes, in float64 and by one message."""
    flat = paddle.concat([part.astype("float64") for part in parts])
    paddle.distributed.all_reduce(flat)
    return paddle.split(flat, [part.shape[0] for part in parts])
