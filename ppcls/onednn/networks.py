"""The forward passes of both families on oneDNN's kernels. Parameters and statistics stay the network's."""

from collections.abc import Callable

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from ppcls.architectures.blocks import ConvBN
from ppcls.architectures.efficientnet import EfficientNet, MBConv
from ppcls.architectures.resnext101_wsl import Bottleneck, ResNeXt101
from ppcls.errors import DataError
from ppcls.onednn import inference
from ppcls.onednn.conv_bn import ConvBNAct
from ppcls.onednn.layers import AddRelu, AddScaled, ChannelsLast, GlobalAverage, MaxPool, SqueezeExcite


def conv_bn(layer: ConvBN, x: Tensor) -> Tensor:
    if inference.is_plain(layer, x):
        return inference.conv_bn(layer, x)
    return ConvBNAct.apply(x, layer.conv.weight, layer.bn.weight, layer.bn.bias, layer)


def mbconv(block: MBConv, x: Tensor) -> Tensor:
    shortcut = x
    if block.expand is not None:
        x = conv_bn(block.expand, x)
    x = conv_bn(block.depthwise, x)
    if block.se is not None:
        reduce, expand = block.se.reduce, block.se.expand
        activation = block.se.activation.__name__
        x = SqueezeExcite.apply(x, reduce.weight, reduce.bias, expand.weight, expand.bias, activation)
    if not block.has_shortcut:
        return conv_bn(block.project, x)
    scale = None
    if block.training and block.drop_connect_rate:
        keep = 1.0 - block.drop_connect_rate
        scale = paddle.floor(paddle.rand([x.shape[0], 1, 1, 1], dtype=x.dtype) + keep) / keep
    elif inference.is_plain(block.project, x) and not _has_gradient(shortcut):
        return inference.conv_bn(block.project, x, shortcut)
    return AddScaled.apply(conv_bn(block.project, x), shortcut, scale)


def bottleneck(block: Bottleneck, x: Tensor) -> Tensor:
    shortcut = x if block.shortcut is None else conv_bn(block.shortcut, x)
    x = conv_bn(block.grouped, conv_bn(block.reduce, x))
    if inference.is_plain(block.expand, x) and not _has_gradient(shortcut):
        return inference.conv_bn(block.expand, x, shortcut, after="relu")
    return AddRelu.apply(conv_bn(block.expand, x), shortcut)


def _has_gradient(x: Tensor) -> bool:
    return paddle.is_grad_enabled() and not x.stop_gradient


class Block(nn.Layer):
    """A block of a network, on oneDNN's kernels."""

    def __init__(self, block: nn.Layer, run: Callable[[nn.Layer, Tensor], Tensor]) -> None:
        super().__init__()
        self.block, self.run = block, run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self.block, x)


class OneDNNNetwork(nn.Layer):
    """A network of `build_model` on oneDNN's kernels: images float32 [N, 3, H, W] to logits [N, num_classes].

    model: the network, which has the parameters, and computes what it always does when it is called itself.
    Hooks on its layers are not called here.
    blocks: as the network's own. They take and return tensors [N, H, W, C], and may be wrapped.
    """

    def __init__(self, model: EfficientNet | ResNeXt101) -> None:
        super().__init__()
        self.model = model
        run = mbconv if isinstance(model, EfficientNet) else bottleneck
        self.blocks = [
            Block(block, run) for block in model.blocks
        ]  # no LayerList: they have no new parameters

    def embed(self, images: Tensor) -> Tensor:
        """Return the embeddings of images: what the classifier sees, float32 [N, channels]."""
        if images.dtype != paddle.float32 or images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
            raise DataError(
                "The oneDNN kernels take images float32 [N, 3, H, W] with N, H and W at least 1. Received: "
                f"{images.dtype} {list(images.shape)}"
            )
        model = self.model
        x = conv_bn(model.stem, ChannelsLast.apply(images))
        if isinstance(model, ResNeXt101):
            x = MaxPool.apply(x, 3, 2, 1)
        for block in self.blocks:
            x = block(x)
        return GlobalAverage.apply(conv_bn(model.head, x) if isinstance(model, EfficientNet) else x)

    def forward(self, images: Tensor) -> Tensor:
        model = self.model
        if not paddle.in_dynamic_mode():
            return model(images)
        x = self.embed(images)
        if isinstance(model, EfficientNet) and model.training and model.dropout:
            x = F.dropout(x, model.dropout)
        logits = model.fc(x)
        if not logits.stop_gradient:
            logits.register_hook(_OnePass())
        return logits


class _OnePass:
    """A hook on the logits that lets one backward pass through. A second one, over a kept graph, ends the
    process inside Paddle, which frees the context of layers that are written in Python."""

    def __init__(self) -> None:
        self.is_done = False

    def __call__(self, gradient: Tensor) -> None:
        if self.is_done:
            raise RuntimeError(
                "The oneDNN kernels allow one backward pass for each forward pass (retain_graph=True). Use "
                "kernels=paddle."
            )
        self.is_done = True
