"""Depthwise convolutions of tensors [N, H, W, C]: the weights' gradient where oneDNN's own is slow."""

import ctypes
from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

from ppcls.onednn import library as dnnl
from ppcls.onednn.convolution import Convolution
from ppcls.onednn.library import OneDNNError, dims
from ppcls.onednn.primitives import (
    BYTES,
    WORKSPACE,
    Primitive,
    any_format,
    attributes,
    binary,
    channels_last,
    describe,
    for_each_sample,
    matmul,
    plain,
    query,
    reorder,
    size_of,
    strided,
)

FAST = "jit_dw"  # oneDNN's kernel for depthwise convolutions, for up to 3 columns


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
            matmul(plain(1, n), plain(n, h * w * c), plain(1, h * w * c)),
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
