"""Squeeze-excite and the 1x1 convolution behind it, in training, on tensors float32 [N, H, W, C]."""

import numpy as np
from paddle import Tensor

from ppcls.architectures.blocks import ConvBN
from ppcls.architectures.efficientnet import SqueezeExcite
from ppcls.onednn import library as dnnl
from ppcls.onednn.autograd import Gradients, Kept, Step
from ppcls.onednn.convolution import Geometry, Pointwise
from ppcls.onednn.layers import ImagePlan, image_plan
from ppcls.onednn.primitives import (
    ACTIVATIONS,
    BYTES,
    WORKSPACE,
    Post,
    activation,
    activation_backward,
    add,
    binary,
    cached_by_thread,
    matmul,
    multiply,
    plain,
    strided,
)
from ppcls.onednn.tensors import empty, usable, view


class GatePlan:
    """The primitives of sigmoid(W2 f(W1 m + b1) + b2), for means m [N, C] of so many pixels."""

    def __init__(self, n: int, c: int, reduced: int, pixels: int, name: str) -> None:
        self.n, self.c, self.reduced = n, c, reduced
        wide, narrow = plain(n, c), plain(n, reduced)
        w1, w1_turned = plain(reduced, c), strided((c, reduced), (1, c))
        w2, w2_turned = plain(c, reduced), strided((reduced, c), (1, reduced))
        self.reduce = matmul(wide, w1_turned, narrow, add(plain(1, reduced)))
        self.activation = activation(name, narrow)
        self.expand = matmul(narrow, w2_turned, wide, add(plain(1, c)), ACTIVATIONS["sigmoid"])
        self.sigmoid_backward = activation_backward("sigmoid", wide)
        self.expand_backward = matmul(wide, w2, narrow)
        self.activation_backward = activation_backward(name, narrow)
        self.reduce_backward = matmul(narrow, w1, wide, Post(dnnl.LINEAR, alpha=1 / pixels))
        self.w1_backward = matmul(strided((reduced, n), (1, reduced)), wide, w1)
        self.w2_backward = matmul(strided((c, n), (1, c)), narrow, w2)


gate_plan = cached_by_thread(GatePlan)


class Gate:
    """The gate of a squeeze-excite: sigmoid(W2 f(W1 m + b1) + b2), where m are the means over the pixels."""

    def __init__(self, se: SqueezeExcite) -> None:
        self.se = se
        self.parameters = se.reduce.weight, se.reduce.bias, se.expand.weight, se.expand.bias

    def forward(self, x: Tensor, images: ImagePlan) -> Tensor:
        """Return the gate, [N, C]. x: usable for the plan."""
        n, _, _, c = images.shape
        reduced = self.parameters[1].shape[0]
        self.key = n, c, reduced, images.pixels, self.se.activation.__name__
        plan = gate_plan(*self.key)
        shapes = [reduced, c, 1, 1], [reduced], [c, reduced, 1, 1], [c]
        own = [usable(*pair) for pair in zip(self.parameters, shapes, strict=True)]
        w1, b1, w2, b2 = (tensor.data_ptr() for tensor in own)
        self.mean = images.mean(x.data_ptr())
        self.hidden, self.active, self.gate = empty([n, reduced]), empty([n, reduced]), empty([n, c])
        plan.reduce(self.mean.data_ptr(), w1, self.hidden.data_ptr(), b1)
        plan.activation(self.hidden.data_ptr(), self.active.data_ptr())
        plan.expand(self.active.data_ptr(), w2, self.gate.data_ptr(), b2)
        self.kept = Kept(own[0], own[2])
        return self.gate

    def backward(self, dgate: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the gradients of the pixels, the same for all of an image, [N, C], and of the parameters.
        Overwrite that of the gate."""
        plan = gate_plan(*self.key)
        w1, w2 = self.kept.get()
        gradients = [empty(parameter.shape) for parameter in self.parameters]
        dw1, db1, dw2, db2 = gradients
        dnarrow = empty([plan.n, plan.reduced])
        narrow, wide = dnarrow.data_ptr(), dgate.data_ptr()
        plan.sigmoid_backward(self.gate.data_ptr(), wide, wide)
        plan.w2_backward(wide, self.active.data_ptr(), dw2.data_ptr())
        np.add.reduce(view(dgate), 0, out=view(db2))
        plan.expand_backward(wide, w2.data_ptr(), narrow)
        plan.activation_backward(self.hidden.data_ptr(), narrow, narrow)
        plan.w1_backward(narrow, self.mean.data_ptr(), dw1.data_ptr())
        np.add.reduce(view(dnarrow), 0, out=view(db1))
        plan.reduce_backward(narrow, w1.data_ptr(), wide)
        return dgate, tuple(gradients)


class WeightsPlan:
    """A 1x1 convolution of gated images, for one shape: x [N, P pixels, C] to [N, P, O].

    The gate g [N, C] is a factor of the weights [O, C], which are others for each image, [N, O, C].
    """

    def __init__(self, n: int, p: int, c: int, o: int, bf16: bool) -> None:
        self._outputs, self._size = n * o, n * o * c * BYTES
        x, y, weights, gates = plain(n, p, c), plain(n, p, o), plain(n, o, c), plain(n, 1, c)
        self._weights = matmul(plain(n, o, 1), gates, weights, multiply(plain(1, o, c)))
        self._product = matmul(x, strided((n, c, o), (o * c, 1, c)), y, bf16=bf16)
        self._data_product = matmul(y, weights, x, add(gates), bf16=bf16)
        self._weights_product = matmul(strided((n, o, p), (p * o, 1, o)), x, weights, bf16=bf16)
        self._times_weight = binary(dnnl.MULTIPLY, plain(n, o * c), plain(1, o * c), plain(n, o * c))
        self._times_gate = binary(dnnl.MULTIPLY, weights, gates, weights)
        self._sum_outputs = matmul(plain(n, 1, o), weights, gates)
        self._sum_images = matmul(plain(1, n), plain(n, o * c), plain(1, o * c))

    @property
    def is_fast(self) -> bool:
        """Whether oneDNN has its fast products here: those for AVX2 take several times as long as one large
        product, the more so with a summand."""
        return self._data_product.name.startswith("brg_matmul")

    def forward(self, x: int, weight: int, gate: int, y: int) -> None:
        self._product(x, self._gated(weight, gate), y)

    def _gated(self, weight: int, gate: int) -> int:
        """Return the address of the images' weights."""
        gated = WORKSPACE.buffer("weights", self._size)
        self._weights(WORKSPACE.ones(self._outputs), gate, gated, weight)
        return gated

    def backward(self, x: int, dy: int, weight: int, gate: int, dweight: int, dgate: int, dx: int) -> None:
        """Write the gradients of weight and gate; what is then at dx, `backward_data` needs."""
        own, products = WORKSPACE.buffer("weights", self._size), WORKSPACE.buffer("products", self._size)
        ones = WORKSPACE.ones(self._outputs)
        self._weights_product(dy, x, own)
        self._times_weight(own, weight, products)
        self._sum_outputs(ones, products, dgate)
        self._times_gate(own, gate, own)
        self._sum_images(ones, own, dweight)

    def backward_data(self, dy: int, weight: int, gate: int, summand: int, dx: int) -> None:
        """Write the gradient of x at dx. summand: [N, C], added to the gradients of all pixels."""
        self._data_product(dy, self._gated(weight, gate), dx, summand)


class ScalePlan:
    """The same; the gate is a factor of x. This is faster where an image has fewer pixels than outputs, or
    many small products are slow."""

    def __init__(self, n: int, p: int, c: int, o: int, bf16: bool) -> None:
        self._convolution = Pointwise(Geometry(n, p, 1, c, o, 1, 1, 1, "same", bf16))
        self._images, self._size, self._pixels = ImagePlan(n, p, 1, c), n * p * c * BYTES, n * p

    def forward(self, x: int, weight: int, gate: int, y: int) -> None:
        self._convolution.forward(self._scaled(x, gate), weight, y)

    def _scaled(self, x: int, gate: int) -> int:
        scaled = WORKSPACE.buffer("products", self._size)
        self._images.scale(x, gate, scaled)
        return scaled

    def backward(self, x: int, dy: int, weight: int, gate: int, dweight: int, dgate: int, dx: int) -> None:
        scaled = self._scaled(x, gate)
        self._convolution.backward_weights(scaled, dy, dweight)
        self._convolution.backward_data(dy, weight, dx)
        self._images.multiply(x, dx, scaled)
        self._images.sum(WORKSPACE.ones(self._pixels), scaled, dgate)

    def backward_data(self, dy: int, weight: int, gate: int, summand: int, dx: int) -> None:
        self._images.scale(dx, gate, dx)
        self._images.add_to_channels(dx, summand, dx)


@cached_by_thread
def _plan(n: int, p: int, c: int, o: int, bf16: bool) -> WeightsPlan | ScalePlan:
    if p >= o:
        plan = WeightsPlan(n, p, c, o, bf16)
        if plan.is_fast:
            return plan
    return ScalePlan(n, p, c, o, bf16)


class GatedConvolve(Step):
    """Squeeze-excite, and the convolution of a ConvBN of kernel 1 behind it."""

    def __init__(self, se: SqueezeExcite, layer: ConvBN, bf16: bool) -> None:
        self.gate, self.bf16 = Gate(se), bf16
        super().__init__(layer.conv.weight, *self.gate.parameters)

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        n, h, w, c = x.shape
        out = self.parameters[0].shape[0]
        self.key = n, h * w, c, out, self.bf16
        weight = usable(self.parameters[0], [out, c, 1, 1])
        gate = self.gate.forward(x, image_plan(n, h, w, c))
        y = empty([n, h, w, out])
        _plan(*self.key).forward(*(tensor.data_ptr() for tensor in (x, weight, gate, y)))
        self.kept = Kept(x, weight)
        return y

    def backward(self, dy: Tensor, needs_dx: bool, added: Tensor | None) -> Gradients:
        x, weight = self.kept.get()
        plan, gate = _plan(*self.key), self.gate.gate
        dx, dweight, dgate = empty(x.shape), empty(weight.shape), empty(gate.shape)
        plan.backward(*(tensor.data_ptr() for tensor in (x, dy, weight, gate, dweight, dgate, dx)))
        summand, others = self.gate.backward(dgate)
        plan.backward_data(*(tensor.data_ptr() for tensor in (dy, weight, gate, summand, dx)))
        return Gradients(dx, (dweight, *others))
