"""A ConvBN in evaluation, as one primitive: no gradient is asked for, the statistics are the running ones."""

import paddle
from paddle import Tensor

from ppcls.architectures.blocks import ConvBN
from ppcls.onednn import library as dnnl
from ppcls.onednn.conv_bn import activation_of, geometry_of, write_factors
from ppcls.onednn.convolution import BYTES, Convolution, Geometry, Pointwise
from ppcls.onednn.primitives import (
    ACTIVATIONS,
    Post,
    add,
    cached_by_thread,
    channels_last,
    for_each_channel,
    multiply,
    plain,
)
from ppcls.onednn.tensors import empty, usable, vectors, view


def is_plain(layer: ConvBN, x: Tensor) -> bool:
    """Return whether `conv_bn` computes what the layer does: no statistics move, no gradient is asked for."""
    if layer.bn.training:
        return False
    tensors = (x, layer.conv.weight, layer.bn.weight, layer.bn.bias)
    return not paddle.is_grad_enabled() or all(tensor.stop_gradient for tensor in tensors)


def conv_bn(layer: ConvBN, x: Tensor, shortcut: Tensor | None = None, after: str | None = None) -> Tensor:
    """Return the layer's output for x [N, H, W, C].

    shortcut: is added to it. after: an activation of the sum.
    """
    geometry, norm = geometry_of(layer, x), layer.bn
    plan = _plan(geometry, activation_of(layer), shortcut is not None, after)
    x, weight = usable(x, geometry.in_shape), usable(layer.conv.weight, geometry.weight_shape)
    own = vectors(geometry.out_channels, norm.weight, norm.bias, norm._mean, norm._variance)
    factors = empty([2, geometry.out_channels])
    scale, shift, mean, variance = map(view, own)
    write_factors(view(factors), scale, shift, mean, variance, norm._epsilon)
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
