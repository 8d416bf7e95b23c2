"""Whether oneDNN's kernels can be used here: what is installed, the network, and a test of the kernels."""

from collections.abc import Callable
from functools import cache, partial

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn
from paddle.utils import unique_name

from ppcls.architectures.blocks import ConvBN
from ppcls.architectures.efficientnet import EfficientNet, MBConv
from ppcls.architectures.resnext101_wsl import Bottleneck, ResNeXt101
from ppcls.architectures.variants import MBConvStage
from ppcls.errors import first_line
from ppcls.onednn import networks
from ppcls.onednn.autograd import Block
from ppcls.onednn.convolution import Geometry
from ppcls.onednn.convolve import convolution
from ppcls.onednn.layers import ChannelsLast, GlobalAverage, MaxPool
from ppcls.onednn.library import OneDNNError, library, version
from ppcls.onednn.norm import activation_of
from ppcls.onednn.primitives import ACTIVATIONS, forget_plans
from ppcls.onednn.tensors import empty

TOLERANCE = 1e-3  # of ||a - b|| / ||b||; the kernels differ by 1e-6
BF16_TOLERANCE = 1e-2  # the same, of a product in bfloat16, which has 8 bits; it differs by 2e-3

__all__ = ["version", "why_not"]


def why_not(model: nn.Layer, bf16: bool = False) -> str | None:
    """Return why a network cannot run on oneDNN's kernels, in a few words; None if it can. bf16: why not with
    products in bfloat16."""
    if not isinstance(model, (EfficientNet, ResNeXt101)):
        return f"{type(model).__name__} is not a network of this project"
    if not paddle.get_device().startswith("cpu"):
        return "they are for CPUs"
    layers = [layer for layer in model.sublayers() if isinstance(layer, ConvBN)]
    kinds = {type(layer.bn).__name__ for layer in layers} - {"BatchNorm2D"}
    kinds |= {activation_of(layer) or "swish" for layer in layers} - ACTIVATIONS.keys()
    if kinds:
        return f"they have no {', '.join(sorted(kinds))}"
    dtypes = {parameter.dtype for parameter in model.parameters()}
    if dtypes != {paddle.float32}:
        return f"they take float32, and the network has {', '.join(sorted(map(str, dtypes)))}"
    return _fault(bf16)


@cache
def _fault(bf16: bool) -> str | None:
    """Return what is wrong with the library or its kernels; None if nothing is."""
    try:
        library()
        difference, tolerance = _self_test(), TOLERANCE
        if bf16 and difference < tolerance:
            difference, tolerance = _bf16_test(), BF16_TOLERANCE
        forget_plans()
    except (OneDNNError, RuntimeError) as error:
        return first_line(error).rstrip(".")
    if bf16 and difference == 0:
        return f"oneDNN {version()} multiplies in bfloat16 with AMX, which this processor does not have"
    if not difference < tolerance:
        return f"oneDNN {version()} computes other values than Paddle here, by {difference:.1e}"
    return None


class _Sample(nn.Layer):
    """Layers of every kind that the networks have, of a few channels."""

    def __init__(self) -> None:
        super().__init__()
        conv_bn = partial(ConvBN, padding="same", bn_epsilon=1e-3, bn_momentum=0.9)
        stage = MBConvStage(kernel_size=5, stride=1, expand_ratio=2, channels=8, repeats=1)
        self.stem = conv_bn(3, 8, 3, 2, activation=F.relu6)
        self.mbconv = MBConv(8, stage, 1, conv_bn, F.swish, squeeze_excite=True, drop_connect_rate=0.0)
        self.bottleneck = Bottleneck(8, 64, 16, 2, partial(conv_bn, padding="symmetric"))

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.mbconv(self.stem(x)), kernel_size=3, stride=2, padding=1)
        return F.adaptive_avg_pool2d(self.bottleneck(x), 1).flatten(1)

    def run(self, x: Tensor) -> Tensor:
        """Do what forward does, on oneDNN's kernels."""
        x = networks.conv_bn(self.stem, Block([ChannelsLast()])(x))
        x = Block([MaxPool(3, 2, 1)])(networks.mbconv(self.mbconv, x))
        return Block([GlobalAverage()])(networks.bottleneck(self.bottleneck, x))


def _self_test() -> float:
    """Return the largest relative difference of outputs and gradients to those of Paddle's kernels.

    Paddle's random numbers and the names of layers that are built later stay as they are.
    """
    random = np.random.RandomState(0)
    with unique_name.guard():
        with paddle.LazyGuard():
            sample = _Sample()
        for parameter in sample.parameters():
            is_weight = parameter.ndim > 1  # vectors are positive, as variances are
            shape = parameter.shape
            values = random.normal(0, 0.3, shape) if is_weight else random.uniform(0.5, 1.5, shape)
            parameter.set_value(values.astype(np.float32))
        images = random.normal(size=(2, 3, 14, 14)).astype(np.float32)
        found = [_values_of(sample, forward, images) for forward in (sample, sample.run)]
    pairs = list(zip(*found, strict=True))
    scale = max(np.linalg.norm(expected) for expected, _ in pairs)
    differences = [
        np.linalg.norm(own - expected) / max(np.linalg.norm(expected), 1e-3 * scale)
        for expected, own in pairs
    ]
    return float(np.max(differences))  # NaN if one of them is


def _values_of(sample: _Sample, forward: Callable[[Tensor], Tensor], images: np.ndarray) -> list[np.ndarray]:
    """Return the outputs in evaluation and in training, the statistics after it, and the gradients of the
    images and of the weights."""
    sample.eval()
    with paddle.no_grad():
        outputs = [forward(paddle.to_tensor(images)).numpy()]
    sample.train()
    before = {key: tensor.clone() for key, tensor in sample.state_dict().items()}
    x = paddle.to_tensor(images, stop_gradient=False)
    y = forward(x)
    weights = [parameter for parameter in sample.parameters() if not parameter.stop_gradient]
    factors = paddle.arange(y.size, dtype=y.dtype).reshape(y.shape)
    gradients = paddle.grad((y * factors).sum(), [x, *weights])
    outputs += [y.numpy(), *(tensor.numpy() for tensor in sample.state_dict().values())]
    for key, tensor in sample.state_dict().items():
        tensor.set_value(before[key])
    return outputs + [gradient.numpy() for gradient in gradients]


def _bf16_test() -> float:
    """Return the largest relative difference of convolutions in bfloat16 to those in float32, and of their
    gradients; 0 if products stay in float32, as on processors without AMX."""
    random = np.random.RandomState(0)
    distances: list[float] = []
    for kernel, groups in ((1, 1), (3, 2)):
        if distances == [0, 0, 0]:
            return 0.0
        shape = Geometry(2, 8, 8, 64, 64, kernel, 1, groups, "same")
        sizes = shape.in_shape, shape.weight_shape, shape.out_shape
        own = [paddle.to_tensor(random.normal(size=size).astype(np.float32)) for size in sizes]
        expected, found = (_convolved(geometry, *own) for geometry in (shape, shape._replace(bf16=True)))
        pairs = zip(expected, found, strict=True)
        distances += [float(np.linalg.norm(other - one) / np.linalg.norm(one)) for one, other in pairs]
    return float(np.max(distances))


def _convolved(geometry: Geometry, x: Tensor, weight: Tensor, dy: Tensor) -> list[np.ndarray]:
    """Return the convolution of x, and the gradients of x and of the weight."""
    own, found = convolution(geometry), [empty(tensor.shape) for tensor in (dy, x, weight)]
    y, dx, dweight = (tensor.data_ptr() for tensor in found)
    own.forward(x.data_ptr(), weight.data_ptr(), y)
    own.backward_data(dy.data_ptr(), weight.data_ptr(), dx)
    own.backward_weights(x.data_ptr(), dy.data_ptr(), dweight)
    return [tensor.numpy() for tensor in found]
