"""The forward passes of both families on oneDNN's kernels. Parameters and statistics stay the network's."""

from collections.abc import Callable
from functools import partial

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from ppcls.architectures.blocks import ConvBN
from ppcls.architectures.efficientnet import EfficientNet, MBConv
from ppcls.architectures.resnext101_wsl import Bottleneck, ResNeXt101
from ppcls.errors import DataError
from ppcls.onednn import inference
from ppcls.onednn.autograd import Block, Step
from ppcls.onednn.convolve import Convolve
from ppcls.onednn.layers import AddScaled, ChannelsLast, GlobalAverage, MaxPool
from ppcls.onednn.norm import Norm
from ppcls.onednn.squeeze_excite import GatedConvolve

# bf16: see `primitives.attributes`


def conv_bn(layer: ConvBN, x: Tensor, bf16: bool = False) -> Tensor:
    """[N, H, W, C] to [N, H', W', C']"""
    if inference.is_plain([layer], x):
        return inference.conv_bn(layer, x, bf16=bf16)
    return Block(_steps(layer, bf16=bf16))(x)


def _steps(*layers: ConvBN, bf16: bool) -> list[Step]:
    return [step for layer in layers for step in (Convolve(layer, bf16), Norm(layer))]


def mbconv(block: MBConv, x: Tensor, bf16: bool = False) -> Tensor:
    drop = block.drop_connect_rate if block.training and block.has_shortcut else 0.0
    first = [block.depthwise] if block.expand is None else [block.expand, block.depthwise]
    if not drop and inference.is_plain([*first, block.se, block.project], x):
        y = x
        for layer in first:
            y = inference.conv_bn(layer, y, bf16=bf16)
        if block.se is not None:
            y = inference.squeeze_excite(block.se, y)
        return inference.conv_bn(block.project, y, x if block.has_shortcut else None, bf16=bf16)
    last = block.project
    convolve = Convolve(last, bf16) if block.se is None else GatedConvolve(block.se, last, bf16)
    steps = [*_steps(*first, bf16=bf16), convolve, Norm(last)]
    if drop:
        keep = 1.0 - drop
        scale = paddle.floor(paddle.rand([x.shape[0], 1, 1, 1], dtype=x.dtype) + keep) / keep
        steps.append(AddScaled(scale))
    return Block(steps, [] if block.has_shortcut else None)(x)


def bottleneck(block: Bottleneck, x: Tensor, bf16: bool = False) -> Tensor:
    layers = block.reduce, block.grouped, block.expand
    if inference.is_plain([*layers, block.shortcut], x):
        shortcut = x if block.shortcut is None else inference.conv_bn(block.shortcut, x, bf16=bf16)
        y = inference.conv_bn(block.grouped, inference.conv_bn(block.reduce, x, bf16=bf16), bf16=bf16)
        return inference.conv_bn(block.expand, y, shortcut, after="relu", bf16=bf16)
    steps = _steps(block.reduce, block.grouped, bf16=bf16)
    steps += [Convolve(block.expand, bf16), Norm(block.expand, after="relu")]
    return Block(steps, [] if block.shortcut is None else _steps(block.shortcut, bf16=bf16))(x)


class BlockLayer(nn.Layer):
    """A block of a network, on oneDNN's kernels."""

    def __init__(self, block: nn.Layer, run: Callable[[nn.Layer, Tensor], Tensor]) -> None:
        super().__init__()
        self.block, self.run = block, run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self.block, x)


class OneDNNNetwork(nn.Layer):
    """A network of `build_model` on oneDNN's kernels: images float32 [N, 3, H, W] to logits [N, num_classes].

    model: the network, which has the parameters, and computes what it always does when it is called itself.
    Hooks on its layers are not called here. bf16: round factors of products to bfloat16 where that is faster;
    all else stays float32.
    blocks: as the network's own. They take and return tensors [N, H, W, C], and may be wrapped.
    """

    def __init__(self, model: EfficientNet | ResNeXt101, bf16: bool = False) -> None:
        super().__init__()
        self.model, self.conv_bn = model, partial(conv_bn, bf16=bf16)
        run = partial(mbconv if isinstance(model, EfficientNet) else bottleneck, bf16=bf16)
        # no LayerList: they have no new parameters
        self.blocks = [BlockLayer(block, run) for block in model.blocks]

    def embed(self, images: Tensor) -> Tensor:
        """Return the embeddings of images: what the classifier sees, float32 [N, channels]."""
        if images.dtype != paddle.float32 or images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
            raise DataError(
                "The oneDNN kernels take images float32 [N, 3, H, W] with N, H and W at least 1. Received: "
                f"{images.dtype} {list(images.shape)}"
            )
        model = self.model
        x = self.conv_bn(model.stem, Block([ChannelsLast()])(images))
        if isinstance(model, ResNeXt101):
            x = Block([MaxPool(3, 2, 1)])(x)
        for block in self.blocks:
            x = block(x)
        return Block([GlobalAverage()])(self.conv_bn(model.head, x) if isinstance(model, EfficientNet) else x)

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
