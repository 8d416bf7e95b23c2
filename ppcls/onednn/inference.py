"""Layers in evaluation: no gradient is asked for, the statistics are the running ones."""

from collections.abc import Iterable

import paddle
from paddle import Tensor

from ppcls.architectures.blocks import ConvBN
from ppcls.architectures.efficientnet import SqueezeExcite
from ppcls.onednn import library as dnnl
from ppcls.onednn.convolution import Convolution, Geometry, Pointwise
from ppcls.onednn.convolve import geometry_of
from ppcls.onednn.layers import image_plan
from ppcls.onednn.norm import activation_of, write_factors
from ppcls.onednn.primitives import (
    ACTIVATIONS,
    BYTES,
    Post,
    add,
    cached_by_thread,
    channels_last,
    for_each_channel,
    multiply,
    plain,
)
from ppcls.onednn.squeeze_excite import Gate
from ppcls.onednn.tensors import empty, usable, vectors, view


def is_plain(layers: Iterable[ConvBN | SqueezeExcite | None], *tensors: Tensor) -> bool:
    """Return whether the layers in training mode would do nothing more: no statistics move, and neither they
    nor the tensors want a gradient."""
    found = [layer for layer in layers if layer is not None]
    if any(isinstance(layer, ConvBN) and layer.bn.training for layer in found):
        return False
    if not paddle.is_grad_enabled():
        return True
    parameters = (parameter for layer in found for parameter in layer.parameters())
    return all(tensor.stop_gradient for tensor in (*tensors, *parameters))


def conv_bn(
    layer: ConvBN, x: Tensor, shortcut: Tensor | None = None, after: str | None = None, *, bf16: bool
) -> Tensor:
    """Return the layer's output for x [N, H, W, C], by one primitive.

    shortcut: is added to it. after: an activation of the sum.
    """
    geometry, norm = geometry_of(layer, x, bf16), layer.bn
    plan = _plan(geometry, activation_of(layer), shortcut is not None, after)
    x, weight = usable(x, geometry.in_shape), usable(layer.conv.weight, geometry.weight_shape)
    own = vectors(geometry.out_channels, norm.weight, norm.bias, norm._mean, norm._variance)
    factors = empty([2, geometry.out_channels])
    scale, shift, *statistics = map(view, own)
    write_factors(view(factors), scale, shift, statistics, norm._epsilon)
    y = empty(geometry.out_shape)
    first = factors.data_ptr()
    operands = [first, first + geometry.out_channels * BYTES]
    if shortcut is not None:
        operands.append(usable(shortcut, y.shape).data_ptr())
    plan.forward(x.data_ptr(), weight.data_ptr(), y.data_ptr(), *operands)
    return y


@cached_by_thread
def _plan(
    geometry: Geometry, activation: str | None, has_shortcut: bool, after: str | None
) -> Convolution | Pointwise:
    channels = geometry.out_channels
    if geometry.is_pointwise:
        vector, tensor = plain(1, channels), plain(geometry.pixels, channels)
    else:
        n, h, w, c = geometry.out_shape
        vector, tensor = for_each_channel(channels), channels_last(n, h, w, c)
    posts: list[Post] = [multiply(vector), add(vector)]
    if activation:
        posts.append(ACTIVATIONS[activation])
    if has_shortcut:
        posts.append(add(tensor))
    if after:
        posts.append(ACTIVATIONS[after])
    if geometry.is_pointwise:
        return Pointwise(geometry, *posts)
    return Convolution(geometry, *posts, propagation=dnnl.INFERENCE)


def squeeze_excite(se: SqueezeExcite, x: Tensor) -> Tensor:
    """Return x [N, H, W, C], scaled."""
    images = image_plan(*x.shape)
    gate, y = Gate(se).forward(x, images), empty(images.shape)
    images.scale(x.data_ptr(), gate.data_ptr(), y.data_ptr())
    return y
