"""The convolution of a network's layer as a step of its block."""

from paddle import Tensor

from ppcls.architectures.blocks import ConvBN
from ppcls.onednn.autograd import Gradients, Kept, Step
from ppcls.onednn.convolution import Convolution, Geometry, Pointwise, Rounded
from ppcls.onednn.depthwise import Depthwise
from ppcls.onednn.primitives import cached_by_thread
from ppcls.onednn.tensors import empty, usable

LEAST_SUMMANDS = 16  # input channels of a group: with fewer, bfloat16 is slower than float32


@cached_by_thread
def convolution(geometry: Geometry) -> Convolution | Pointwise:
    """Return the fastest convolution for training."""
    if geometry.is_pointwise:
        return Pointwise(geometry)
    if geometry.is_depthwise:
        return Depthwise(geometry)
    return (Rounded if geometry.bf16 else Convolution)(geometry)


def geometry_of(layer: ConvBN, x: Tensor, bf16: bool) -> Geometry:
    """Return the shapes of a layer's convolution of x [N, H, W, C]. bf16: multiply in bfloat16 if that is
    faster: with a stride it is not."""
    n, h, w, c = x.shape
    own, (out, summands, _, _) = layer.shape, layer.conv.weight.shape
    bf16 = bf16 and own["stride"] == 1 and summands >= LEAST_SUMMANDS
    return Geometry(n, h, w, c, out, own["kernel_size"], own["stride"], own["groups"], layer.padding, bf16)


class Convolve(Step):
    """The convolution of a ConvBN."""

    def __init__(self, layer: ConvBN, bf16: bool) -> None:
        self.layer, self.bf16 = layer, bf16
        super().__init__(layer.conv.weight)

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        self.geometry = geometry_of(self.layer, x, self.bf16)
        own = convolution(self.geometry)
        x, weight = usable(x, own.in_shape), usable(self.parameters[0], own.weight_shape)
        y = empty(own.out_shape)
        own.forward(x.data_ptr(), weight.data_ptr(), y.data_ptr())
        self.kept = Kept(x, weight)
        return y

    def backward(self, dy: Tensor, needs_dx: bool, added: Tensor | None) -> Gradients:
        x, weight = self.kept.get()
        own = convolution(self.geometry)
        dx = dweight = None
        if self.requested[0]:
            dweight = empty(own.weight_shape)
            own.backward_weights(x.data_ptr(), dy.data_ptr(), dweight.data_ptr())
        if needs_dx:
            dx = empty(own.in_shape)
            summand = None if added is None else added.data_ptr()
            own.backward_data(dy.data_ptr(), weight.data_ptr(), dx.data_ptr(), summand)
        return Gradients(dx, (dweight,))
