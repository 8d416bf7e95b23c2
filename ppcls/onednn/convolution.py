"""Convolutions of tensors [N, H, W, C] with Paddle's weights [out, in / groups, k, k]; their derivatives."""

import ctypes
from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

from paddle import Tensor

from ppcls.architectures.blocks import ConvBN
from ppcls.onednn import library as dnnl
from ppcls.onednn.autograd import Gradients, Kept, Step
from ppcls.onednn.library import Handle, OneDNNError, dims
from ppcls.onednn.primitives import (
    BYTES,
    WORKSPACE,
    Post,
    Primitive,
    any_format,
    are_equal,
    attributes,
    binary,
    cached_by_thread,
    channels_last,
    describe,
    for_each_sample,
    matmul,
    operands,
    plain,
    query,
    reorder,
    size_of,
    strided,
)
from ppcls.onednn.tensors import empty, usable

LEAST_SUMMANDS = 16  # input channels of a group: with fewer, bfloat16 is slower than float32

Sides = tuple[int, int]


class Geometry(NamedTuple):
    """The shapes of a convolution. padding: "same" or "symmetric", as in ConvBN. bf16: see `attributes`."""

    batch: int
    height: int
    width: int
    in_channels: int
    out_channels: int
    kernel: int
    stride: int
    groups: int
    padding: str
    bf16: bool = False

    @property
    def pads(self) -> tuple[Sides, Sides]:
        """Padding above and left, below and right."""
        if self.padding == "symmetric":
            return ((self.kernel - 1) // 2,) * 2, ((self.kernel - 1) // 2,) * 2
        totals = [
            max((-(-length // self.stride) - 1) * self.stride + self.kernel - length, 0)
            for length in (self.height, self.width)
        ]
        first, last = ([total // 2 for total in totals], [total - total // 2 for total in totals])
        return (first[0], first[1]), (last[0], last[1])

    @property
    def in_shape(self) -> list[int]:
        """[N, H, W, in]"""
        return [self.batch, self.height, self.width, self.in_channels]

    @property
    def out_shape(self) -> list[int]:
        """[N, H, W, out]"""
        (top, left), (bottom, right) = self.pads
        height = (self.height + top + bottom - self.kernel) // self.stride + 1
        width = (self.width + left + right - self.kernel) // self.stride + 1
        return [self.batch, height, width, self.out_channels]

    @property
    def weight_shape(self) -> list[int]:
        """[out, in / groups, k, k]"""
        return [self.out_channels, self.in_channels // self.groups, self.kernel, self.kernel]

    @property
    def is_pointwise(self) -> bool:
        return self.kernel == self.stride == self.groups == 1

    @property
    def is_depthwise(self) -> bool:
        return self.groups == self.in_channels == self.out_channels

    @property
    def pixels(self) -> int:
        """Pixels of the batch's outputs."""
        batch, height, width, _ = self.out_shape
        return batch * height * width


class Convolution:
    """A convolution whose primitives choose the format of the weights. They are created when first used."""

    def __init__(self, geometry: Geometry, *posts: Post, propagation: int = dnnl.TRAINING) -> None:
        own = self.geometry = geometry
        self.in_shape, self.out_shape, self.weight_shape = own.in_shape, own.out_shape, own.weight_shape
        self._source, self._target = channels_last(*own.in_shape), channels_last(*own.out_shape)
        groups, kernel = own.groups, own.kernel
        per_group = own.out_channels // groups, own.in_channels // groups, kernel, kernel
        shape = self._shape = (groups, *per_group) if groups > 1 else per_group
        self._plain, chosen = plain(*shape), any_format(*shape)
        self._posts = posts
        first, last = own.pads
        window = self._window = (dims((own.stride, own.stride)), dims((0, 0)), dims(first), dims(last))
        self._forward = describe(
            "convolution_forward",
            *(dnnl.engine(), propagation, dnnl.DIRECT_CONVOLUTION),
            *(self._source, chosen, None, self._target, *window, attributes(posts, bf16=own.bf16)),
        )
        self._data_arguments = (self._source, chosen, self._target, *window)
        self._weights_arguments = (self._source, chosen, None, self._target, *window)

    def forward(self, x: int, weight: int, y: int, *operands: int) -> None:
        primitive, prepare, size = self._forward_parts
        primitive(x, _prepared(weight, prepare, size), y, *operands)

    def backward_data(self, dy: int, weight: int, dx: int, added: int | None = None) -> None:
        """Write the gradient of x. added: the address of a tensor that is added to it."""
        primitive, prepare, size = self._data_parts
        primitive(dy, _prepared(weight, prepare, size), dx)
        if added is not None:
            self._add(dx, added, dx)

    def backward_weights(self, x: int, dy: int, dweight: int) -> None:
        primitive, restore, size = self._weights_parts
        if restore is None:
            primitive(x, dy, dweight)
            return
        buffer = WORKSPACE.buffer("weights", size)
        primitive(x, dy, buffer)
        restore(buffer, dweight)

    @cached_property
    def _add(self) -> Primitive:
        return binary(dnnl.ADD, self._source, self._source, self._source)

    @cached_property
    def _forward_parts(self) -> "Parts":
        weights = query(self._forward, dnnl.WEIGHTS_OF)
        slots = [(dnnl.SOURCE, self._source), (dnnl.WEIGHTS, weights), (dnnl.TARGET, self._target)]
        return self._with_reorder(
            Primitive(self._forward, slots + operands(self._posts)), self._plain, weights
        )

    @cached_property
    def _data_parts(self) -> "Parts":
        own = describe(
            "convolution_backward_data",
            *(dnnl.engine(), dnnl.DIRECT_CONVOLUTION, *self._data_arguments),
            *(self._forward, attributes(bf16=self.geometry.bf16)),
        )
        weights = query(own, dnnl.WEIGHTS_OF)
        slots = [(dnnl.DIFF_TARGET, self._target), (dnnl.WEIGHTS, weights), (dnnl.DIFF_SOURCE, self._source)]
        return self._with_reorder(Primitive(own, slots), self._plain, weights)

    @cached_property
    def _weights_parts(self) -> "Parts":
        own = describe(
            "convolution_backward_weights",
            *(dnnl.engine(), dnnl.DIRECT_CONVOLUTION, *self._weights_arguments),
            *(self._forward, attributes()),
        )
        weights = query(own, dnnl.DIFF_WEIGHTS_OF)
        slots = [(dnnl.SOURCE, self._source), (dnnl.DIFF_TARGET, self._target), (dnnl.DIFF_WEIGHTS, weights)]
        return self._with_reorder(Primitive(own, slots), weights, self._plain)

    @staticmethod
    def _with_reorder(primitive: Primitive, source: Handle, target: Handle) -> "Parts":
        copy = None if are_equal(source, target) else reorder(source, target)
        return primitive, copy, max(size_of(source), size_of(target))


Parts = tuple[Primitive, Primitive | None, int]  # with the reorder of its weights, and their bytes


def _prepared(weight: int, prepare: Primitive | None, size: int) -> int:
    """Return the address of the weights in the primitive's format."""
    if prepare is None:
        return weight
    buffer = WORKSPACE.buffer("weights", size)
    prepare(weight, buffer)
    return buffer


class Pointwise:
    """A 1x1 convolution of stride 1, as products of matrices: the weights need no other format."""

    def __init__(self, geometry: Geometry, *posts: Post) -> None:
        own = self.geometry = geometry
        self.in_shape, self.out_shape, self.weight_shape = own.in_shape, own.out_shape, own.weight_shape
        self._x = plain(own.pixels, own.in_channels)
        self._y = plain(own.pixels, own.out_channels)
        self._weight = plain(own.out_channels, own.in_channels)
        self._posts = posts

    def forward(self, x: int, weight: int, y: int, *operands: int) -> None:
        self._product(x, weight, y, *operands)

    def backward_data(self, dy: int, weight: int, dx: int, added: int | None = None) -> None:
        """As that of Convolution."""
        self._data_product(dy, weight, dx)
        if added is not None:
            self._add(dx, added, dx)

    def backward_weights(self, x: int, dy: int, dweight: int) -> None:
        self._weights_product(dy, x, dweight)

    @cached_property
    def _product(self) -> Primitive:
        own = self.geometry
        transposed = strided((own.in_channels, own.out_channels), (1, own.in_channels))
        return matmul(self._x, transposed, self._y, *self._posts, gemm=not self._posts, bf16=own.bf16)

    @cached_property
    def _data_product(self) -> Primitive:
        return matmul(self._y, self._weight, self._x, gemm=True, bf16=self.geometry.bf16)

    @cached_property
    def _add(self) -> Primitive:
        return binary(dnnl.ADD, self._x, self._x, self._x)

    @cached_property
    def _weights_product(self) -> Primitive:
        own = self.geometry
        transposed = strided((own.out_channels, own.pixels), (1, own.out_channels))
        return matmul(transposed, self._x, self._weight, gemm=True, bf16=own.bf16)


class Rounded(Convolution):
    """A convolution in bfloat16. oneDNN computes its weights' gradient of factors that are so in memory."""

    def backward_weights(self, x: int, dy: int, dweight: int) -> None:
        factors = [WORKSPACE.buffer(name, size) for _, name, size in self._copies]
        for tensor, factor, (copy, _, _) in zip((x, dy), factors, self._copies, strict=True):
            copy(tensor, factor)
        super().backward_weights(factors[0], factors[1], dweight)

    @cached_property
    def _copies(self) -> list[tuple[Primitive, str, int]]:
        """The copies of x and dy, the names of their buffers, and their bytes."""
        own = zip((self._source, self._target), self._factors, ("rounded x", "rounded dy"), strict=True)
        return [(reorder(exact, factor), name, size_of(factor)) for exact, factor, name in own]

    @cached_property
    def _factors(self) -> list[Handle]:
        return [channels_last(*shape, kind=dnnl.BFLOAT16) for shape in (self.in_shape, self.out_shape)]

    @cached_property
    def _weights_parts(self) -> "Parts":
        (x, dy), window = self._factors, self._window
        arguments = x, any_format(*self._shape, kind=dnnl.BFLOAT16), None, dy, *window
        forward = describe(
            "convolution_forward",
            *(dnnl.engine(), dnnl.TRAINING, dnnl.DIRECT_CONVOLUTION, *arguments, attributes()),
        )
        own = describe(
            "convolution_backward_weights",
            *(dnnl.engine(), dnnl.DIRECT_CONVOLUTION, x, any_format(*self._shape), None, dy, *window),
            *(forward, attributes()),
        )
        weights = query(own, dnnl.DIFF_WEIGHTS_OF)
        slots = [(dnnl.SOURCE, x), (dnnl.DIFF_TARGET, dy), (dnnl.DIFF_WEIGHTS, weights)]
        return self._with_reorder(Primitive(own, slots), weights, self._plain)


class Depthwise(Convolution):
    """A depthwise convolution. Of kernels wider than 3 columns, and of images smaller than the kernel, oneDNN
    computes the weights' gradient slowly (an eighth to a fifth of a training step of EfficientNetB0).

    So here a few columns of it are computed at a time: a column that is further from the centre than 1 sees
    the gradient `dy` moved by some pixels. Small images are first continued with zeros. A tap of an output of
    one pixel sees one pixel, so its gradient is the sum of a product over the images.
    """

    def backward_weights(self, x: int, dy: int, dweight: int) -> None:
        own = self.geometry
        if own.pixels == own.batch:
            self._sum_products(x, dy, dweight)
        elif self._other is not None:
            other, copy_x, copy_dy, restore = self._other
            taps = WORKSPACE.buffer("taps", own.out_channels * other.geometry.kernel**2 * BYTES)
            other.backward_weights(copy_x(x), copy_dy(dy), taps)
            ctypes.memset(dweight, 0, own.out_channels * own.kernel**2 * BYTES)
            border = (own.kernel - other.geometry.kernel) // 2
            restore(taps, dweight + border * (own.kernel + 1) * BYTES)
        elif self._parts is None:
            super().backward_weights(x, dy, dweight)
        else:
            for part in self._parts:
                buffer = WORKSPACE.buffer("weights", part.size)
                part.primitive(x, self._moved(dy, part), buffer)
                part.restore(buffer, dweight + part.offset)

    def _sum_products(self, x: int, dy: int, dweight: int) -> None:
        own = self.geometry
        size = own.batch * own.height * own.width * own.in_channels * BYTES
        products, sums = WORKSPACE.buffer("products", size), WORKSPACE.buffer("weights", size // own.batch)
        multiply, add_up, restore = self._product_parts
        multiply(x, dy, products)
        add_up(WORKSPACE.ones(own.batch), products, sums)
        ctypes.memset(dweight, 0, own.out_channels * own.kernel**2 * BYTES)
        (top, left), _ = own.pads  # and the tap that sees the first pixel
        restore(sums, dweight + (top * own.kernel + left) * BYTES)

    @cached_property
    def _product_parts(self) -> tuple[Primitive, Primitive, Primitive]:
        n, h, w, c = self.in_shape
        kernel = self.geometry.kernel
        sums, taps = strided((c, h, w), (1, w * c, c)), strided((c, h, w), (kernel**2, kernel, 1))
        return (
            binary(dnnl.MULTIPLY, self._source, for_each_sample(n, c), self._source),
            matmul(plain(1, n), plain(n, h * w * c), plain(1, h * w * c), gemm=True),
            reorder(sums, taps),
        )

    @cached_property
    def _other(self) -> "tuple[Depthwise, Callable[[int], int], Callable[[int], int], Primitive] | None":
        """The convolution that gives the gradient of images smaller than the kernel; None for others.

        Its kernel has no border of taps that see no pixel, and its images are as large as the kernel. With it
        are two functions that continue x and dy with zeros, and a copy of the taps.
        """
        own, kernel, channels = self.geometry, self.geometry.kernel, self.geometry.out_channels
        if own.stride == 1:
            kernel = min(kernel, 2 * max(own.height, own.width) - 1)
        least = kernel + own.stride - 1
        height, width = (  # so many that the padding above and left stays the same
            length + max(0, -(-(least - length) // own.stride)) * own.stride
            for length in (own.height, own.width)
        )
        if (height, width) == (own.height, own.width):
            return None
        other = Depthwise(own._replace(height=height, width=width, kernel=kernel))
        pairs = ("larger x", self.in_shape, other.in_shape), ("larger dy", self.out_shape, other.out_shape)
        copy_x, copy_dy = (_continued(*pair) for pair in pairs)
        taps = strided((channels, kernel, kernel), (own.kernel**2, own.kernel, 1))
        return other, copy_x, copy_dy, reorder(plain(channels, kernel, kernel), taps)

    @cached_property
    def _parts(self) -> "list[_Part] | None":
        """The gradient's parts; None if the whole has a fast kernel, or if a part has none."""
        own = self.geometry
        if self._weights_parts[0].name.startswith(FAST):
            return None
        groups: dict[int, list[int]] = {}
        for column in range(own.kernel):
            place = column - own.pads[0][1]  # of the pixel that it sees, from that of the output
            moved = 0 if -1 <= place <= 1 else place // own.stride
            groups.setdefault(moved, []).append(column)
        groups[0] = groups.pop(0)  # last: it writes again what wider parts have written
        least = min(own.stride, 2)  # of one column that skips pixels there is no fast kernel: take two
        try:
            parts = [self._part(moved, columns, least) for moved, columns in groups.items()]
        except OneDNNError:  # such as one column that begins within the image
            return None
        return parts if all(part.primitive.name.startswith(FAST) for part in parts) else None

    def _part(self, moved: int, columns: list[int], least: int) -> "_Part":
        """Return the part of these columns, at least so many, for which dy is moved by `moved` pixels."""
        own = self.geometry
        number = max(len(columns), least)
        first = min(columns[0], own.kernel - number)
        (top, left), (bottom, _) = own.pads
        width, kernel = self.out_shape[2], own.kernel
        before = left + own.stride * moved - first
        after = (width - 1) * own.stride + number - before - own.width
        shape = own.out_channels, 1, 1, kernel, number
        window = (
            *(dims((own.stride, own.stride)), dims((0, 0))),
            *(dims((top, before)), dims((bottom, after))),
        )
        arguments = (self._source, any_format(*shape), None, self._target, *window)
        forward = describe(
            "convolution_forward",
            *(dnnl.engine(), dnnl.TRAINING, dnnl.DIRECT_CONVOLUTION, *arguments, attributes()),
        )
        backward = describe(
            "convolution_backward_weights",
            *(dnnl.engine(), dnnl.DIRECT_CONVOLUTION, *arguments, forward, attributes()),
        )
        weights = query(backward, dnnl.DIFF_WEIGHTS_OF)
        restore = reorder(weights, strided(shape, (kernel**2, kernel**2, kernel**2, kernel, 1)))
        slots = [(dnnl.SOURCE, self._source), (dnnl.DIFF_TARGET, self._target), (dnnl.DIFF_WEIGHTS, weights)]
        return _Part(Primitive(backward, slots), restore, size_of(weights), first * BYTES, moved)

    def _moved(self, dy: int, part: "_Part") -> int:
        """Return the address of dy [N, H, W, C], moved by so many pixels along W, with zeros where it was.

        A pixel is the neighbour of another in memory, so a moved tensor begins at another address. What comes
        from the row before or behind is set to zero.
        """
        if not part.moved:
            return dy
        pixels, channels = self.geometry.pixels, self.geometry.out_channels
        pixel, distance = channels * BYTES, abs(part.moved)
        size = (pixels + 2 * distance) * pixel
        start = WORKSPACE.buffer("moved", size)
        ctypes.memset(start, 0, size)
        inner = start + distance * pixel
        first = distance * pixel if part.moved < 0 else 0
        self._copy_columns(distance)(dy + first, inner + first)
        return inner - part.moved * pixel

    def _copy_columns(self, distance: int) -> Primitive:
        """Return a copy of all columns of dy but `distance`, which are at its begin or end."""
        if distance not in self._copies:
            n, height, width, c = self.geometry.out_shape
            columns = strided((n, c, height, width - distance), (height * width * c, 1, width * c, c))
            self._copies[distance] = reorder(columns, columns)
        return self._copies[distance]

    @cached_property
    def _copies(self) -> dict[int, Primitive]:
        return {}


FAST = "jit_dw"  # oneDNN's kernel for depthwise convolutions, for up to 3 columns


class _Part(NamedTuple):
    """A part of a gradient: the primitive, the copy of its result, its bytes, the copy's offset in bytes, and
    the pixels by which dy is moved."""

    primitive: Primitive
    restore: Primitive
    size: int
    offset: int
    moved: int


def _continued(name: str, shape: list[int], larger: list[int]) -> Callable[[int], int]:
    """Return a function of the address of a tensor [N, H, W, C], which copies it to the upper left of zeros.
    It returns the address of a buffer of this name."""
    n, h, w, c = shape
    _, height, width, _ = larger
    target = strided((n, c, h, w), (height * width * c, 1, width * c, c))
    copy, size = reorder(channels_last(n, h, w, c), target), n * height * width * c * BYTES

    def run(tensor: int) -> int:
        buffer = WORKSPACE.buffer(name, size)
        ctypes.memset(buffer, 0, size)
        copy(tensor, buffer)
        return buffer

    return run


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
