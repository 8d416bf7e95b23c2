"""Convolutions of tensors [N, H, W, C] with Paddle's weights [out, in / groups, k, k]; their derivatives."""

from functools import cached_property
from typing import NamedTuple

from ppcls.onednn import library as dnnl
from ppcls.onednn.library import Handle, dims
from ppcls.onednn.primitives import (
    WORKSPACE,
    Post,
    Primitive,
    any_format,
    are_equal,
    attributes,
    binary,
    channels_last,
    describe,
    matmul,
    operands,
    plain,
    query,
    reorder,
    size_of,
    strided,
)

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
        return matmul(self._x, transposed, self._y, *self._posts, bf16=own.bf16)

    @cached_property
    def _data_product(self) -> Primitive:
        return matmul(self._y, self._weight, self._x, bf16=self.geometry.bf16)

    @cached_property
    def _add(self) -> Primitive:
        return binary(dnnl.ADD, self._x, self._x, self._x)

    @cached_property
    def _weights_product(self) -> Primitive:
        own = self.geometry
        transposed = strided((own.out_channels, own.pixels), (1, own.out_channels))
        return matmul(transposed, self._x, self._weight, bf16=own.bf16)


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
