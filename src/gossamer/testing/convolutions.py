"""The table of convolutions that every law of zero skipping is tried on, and the ways in which zeros lie.

for case in CONVOLUTIONS:
    x, weight, bias = case.operands("half")
    y = gs.ops.conv2d(x, weight, bias, case.stride, case.padding, case.dilation, skip="input")
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from gossamer.testing.cases import named

Zeros = Literal["none", "all", "all but one", "every other", "all but one channel", "half", "most", "relu"]
ZEROS: tuple[Zeros, ...] = get_args(Zeros)

Pair = tuple[int, int]


@dataclass(frozen=True)
class Convolution:
    """x [n, c, *size] with weight [k, c, *kernel]."""

    name: str
    n: int
    c: int
    k: int
    size: Pair
    kernel: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)

    @property
    def out_size(self) -> Pair:
        rows, cols = (
            (size + 2 * pad - reach * (taps - 1) - 1) // step + 1
            for size, pad, reach, taps, step in zip(
                self.size, self.padding, self.dilation, self.kernel, self.stride, strict=True
            )
        )
        return rows, cols

    @property
    def terms(self) -> int:
        """The most products summed into one element of any of the three passes, and one for a bias."""
        rows, cols = self.out_size
        taps = self.kernel[0] * self.kernel[1]
        return max(self.c * taps, self.k * taps, self.n * rows * cols) + 1

    def operands(
        self, zeros: Zeros = "half", dtype: torch.dtype = torch.float32, *, integers: bool = False, seed: int = 0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x in channels_last with zeros in it, weight, bias: normal numbers, or integers whose sums are exact."""
        generator = torch.Generator().manual_seed(seed)
        x = _numbers((self.n, *self.size, self.c), integers, generator)
        weight = _numbers((self.k, self.c, *self.kernel), integers, generator)
        bias = _numbers((self.k,), integers, generator)
        return hollow(x, zeros, generator).permute(0, 3, 1, 2).to(dtype), weight.to(dtype), bias.to(dtype)

    def gradient(
        self, zeros: Zeros = "half", dtype: torch.dtype = torch.float32, *, integers: bool = False, seed: int = 1
    ) -> Tensor:
        """A gradient of the result, [n, k, *out_size] in channels_last, with zeros in it."""
        generator = torch.Generator().manual_seed(seed)
        dy = _numbers((self.n, *self.out_size, self.k), integers, generator)
        return hollow(dy, zeros, generator).permute(0, 3, 1, 2).to(dtype)


def hollow(x: Tensor, zeros: Zeros, generator: torch.Generator) -> Tensor:
    """x[..., channels] where it is not to be zero, elsewhere 0.

    >>> hollow(torch.ones(2, 3), "every other", torch.Generator())
    tensor([[1., 0., 1.],
            [0., 1., 0.]])
    """
    if zeros == "relu":
        return x.relu()
    place = torch.arange(x.numel()).view(x.shape)
    draw = torch.rand(x.shape, generator=generator)
    kept = {
        "none": place >= 0,
        "all": place < 0,
        "all but one": place == x.numel() // 2,
        "every other": place % 2 == 0,
        "all but one channel": place % max(x.shape[-1], 1) == x.shape[-1] // 2,
        "half": draw < 0.5,
        "most": draw < 0.1,
    }[zeros]
    return x.where(kept, 0)


def _numbers(shape: tuple[int, ...], integers: bool, generator: torch.Generator) -> Tensor:
    if not integers:
        return torch.randn(shape, generator=generator, dtype=torch.float64)
    return (torch.randint(1, 5, shape, generator=generator) * 2 - 5).double()  # -3, -1, 1 or 3: none is zero


def _square(
    name: str, n: int, c: int, k: int, size: int | Pair, kernel: int, stride: int = 1, padding: int = 0,
    dilation: int = 1,
) -> Convolution:  # fmt: skip
    sizes = size if isinstance(size, tuple) else (size, size)
    return Convolution(
        name, n, c, k, sizes, (kernel, kernel), (stride, stride), (padding, padding), (dilation, dilation)
    )


CONVOLUTIONS: tuple[Convolution, ...] = (
    _square("3x3", 2, 32, 32, 14, 3, padding=1),
    _square("3x3, no padding", 2, 24, 40, 7, 3),
    _square("3x3, much padding", 1, 40, 24, 5, 3, padding=2),
    _square("3x3, stride 2", 2, 32, 96, 14, 3, stride=2, padding=1),
    _square("3x3, stride 2, odd", 2, 40, 32, (33, 7), 3, stride=2, padding=1),
    _square("3x3, stride 2, a remainder", 1, 8, 24, 14, 3, stride=2),
    _square("3x3, dilated", 2, 24, 32, 14, 3, padding=2, dilation=2),
    _square("3x3, dilated, stride 2", 1, 32, 40, 33, 3, stride=2, padding=1, dilation=2),
    _square("3x3, 7 x 7, many images", 17, 96, 40, 7, 3, padding=1),
    _square("3x3, wide row", 1, 40, 96, (5, 33), 3, padding=1),
    _square("3x3, one column", 16, 24, 24, (33, 1), 3, padding=1),
    _square("3x3, one pixel", 16, 32, 40, 1, 3, padding=1),
    _square("1x1", 2, 96, 40, 14, 1),
    _square("1x1, narrow to wide", 1, 8, 96, 7, 1),
    _square("1x1, stride 2", 2, 40, 32, 7, 1, stride=2),
    _square("1x1, one pixel", 17, 96, 24, 1, 1),
    _square("1x1, padded", 1, 24, 8, 5, 1, padding=1),
    _square("5x5", 1, 24, 40, 14, 5, padding=2),
    _square("5x5, stride 2", 2, 8, 32, (7, 33), 5, stride=2, padding=4),
    _square("5x5, dilated", 1, 32, 8, 14, 5, padding=3, dilation=2),
    _square("7x7, stride 2", 1, 8, 24, 33, 7, stride=2, padding=3),
    _square("7x7", 1, 40, 8, 7, 7, padding=6),
    _square("odd channels", 3, 37, 21, 9, 3, padding=1),
    _square("65 channels", 2, 65, 33, 5, 1),
    _square("few channels", 2, 3, 5, 7, 3, padding=1),
    _square("one channel", 2, 1, 1, 5, 3, padding=1),
    Convolution("3 x 1", 2, 24, 32, (9, 8), (3, 1), (2, 1), (1, 0)),
    Convolution("1 x 5, dilated", 1, 32, 24, (4, 19), (1, 5), (1, 2), (0, 2), (1, 3)),
    Convolution("4 x 2", 2, 40, 24, (8, 9), (4, 2), (1, 2), (2, 1)),
)


def convolution(name: str) -> Convolution:
    """The convolution with this name.

    >>> convolution("3x3, stride 2").out_size
    (7, 7)
    """
    return named("convolution", CONVOLUTIONS, name)
