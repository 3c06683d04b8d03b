"""What a convolution and a linear layer are to the skipping kernels: dense operators beside one geometry.

The kernels see pixels [N, H, W, C]; a linear layer is one row of pixels with a 1 x 1 kernel. Results come in the memory
format in which torch's own operator would give them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gossamer.ops import dense
from gossamer.ops.skipping.memory_format import LAST, in_format

Pair = tuple[int, int]


class Convolution(NamedTuple):
    """x [N, C, H, W], weight [K, C, R, S]."""

    stride: Pair
    padding: Pair
    dilation: Pair

    def laid_out(self, x: Tensor) -> Tensor:
        """x as the kernels read it."""
        return in_format(x, LAST)

    def packed(self, x: Tensor) -> Tensor:
        """x without gaps or repeats in memory."""
        return x if x.is_contiguous() else self.laid_out(x)

    def order(self, x: Tensor, weight: Tensor) -> torch.memory_format:
        """The memory format of y and of the input gradient: torch's rule."""
        return LAST if is_last(x) or is_last(weight) else torch.contiguous_format

    def images(self, x: Tensor) -> int:
        return x.shape[0]

    def pixels(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)

    def from_pixels(self, y: Tensor) -> Tensor:
        return y.permute(0, 3, 1, 2)

    def kernel(self, weight: Tensor) -> Pair:
        return weight.shape[2], weight.shape[3]

    def filters(self, weight: Tensor) -> Tensor:
        return weight

    def out_size(self, x: Tensor, weight: Tensor) -> Pair:
        (sh, sw), (ph, pw), (dh, dw) = self
        _, _, height, width = x.shape
        _, _, taps, across = weight.shape
        return (height + 2 * ph - dh * (taps - 1) - 1) // sh + 1, (width + 2 * pw - dw * (across - 1) - 1) // sw + 1

    def dense(self, x: Tensor, weight: Tensor, bias: Tensor | None, keep_packed: bool) -> Tensor:
        return torch.conv2d(x, weight, bias, self.stride, self.padding, self.dilation)

    def is_torchs(self, x: Tensor, weight: Tensor, bias: Tensor | None, keep_packed: bool) -> bool:
        """Whether `dense` would call torch's own operator now."""
        return True

    def dense_gradients(
        self, dy: Tensor, x: Tensor, weight: Tensor, want: Sequence[bool]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients by x, weight and bias, as far as wanted; differentiable themselves."""
        return torch.ops.aten.convolution_backward(
            dy, x, weight, [weight.shape[0]], self.stride, self.padding, self.dilation, False, [0, 0], 1, list(want)
        )


class Linear(NamedTuple):
    """x [P, C], weight [K, C]."""

    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)

    def laid_out(self, x: Tensor) -> Tensor:
        return x.contiguous()

    def packed(self, x: Tensor) -> Tensor:
        return x.contiguous()

    def order(self, x: Tensor, weight: Tensor) -> torch.memory_format:
        return torch.contiguous_format

    def images(self, x: Tensor) -> int:
        return 1

    def pixels(self, x: Tensor) -> Tensor:
        return x.view(1, 1, *x.shape)

    def from_pixels(self, y: Tensor) -> Tensor:
        return y.view(y.shape[2], y.shape[3])

    def kernel(self, weight: Tensor) -> Pair:
        return 1, 1

    def filters(self, weight: Tensor) -> Tensor:
        return weight[:, :, None, None]

    def out_size(self, x: Tensor, weight: Tensor) -> Pair:
        return 1, x.shape[0]

    def dense(self, x: Tensor, weight: Tensor, bias: Tensor | None, keep_packed: bool) -> Tensor:
        return dense.linear(x, weight, bias, keep_packed)

    def is_torchs(self, x: Tensor, weight: Tensor, bias: Tensor | None, keep_packed: bool) -> bool:
        return dense.is_torchs(x, weight, bias, keep_packed)

    def dense_gradients(
        self, dy: Tensor, x: Tensor, weight: Tensor, want: Sequence[bool]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        return (
            dense.linear(dy, weight.t()) if want[0] else None,
            dense.linear(dy.t(), x.t()) if want[1] else None,
            dy.sum(0) if want[2] else None,
        )


Layer = Convolution | Linear


def is_last(x: Tensor) -> bool:
    """Do the strides of x[N, C, H, W] ascend as in channels_last? What torch asks; gaps are allowed."""
    least = 0
    for axis in (1, 3, 2, 0):
        size, step = x.shape[axis], x.stride(axis)
        if size == 0 or step < least or (axis == 0 and least == x.stride(1)):
            return False
        least = step * max(size, 1)
    return x.stride(1) != 0


def layer_of(geometry: Sequence[Any]) -> Layer:
    """Six numbers, stride, padding and dilation of a convolution, or none for a linear layer."""
    if not geometry:
        return Linear()
    sh, sw, ph, pw, dh, dw = geometry
    return Convolution((sh, sw), (ph, pw), (dh, dw))
