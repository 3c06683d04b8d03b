"""Convolution that skips the zeros of its input: the oracle, an exact sum over what is not skipped."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.kernels.reference.relu_bits import relu_bits, unpack_bits


def skip_pack(weight: Tensor) -> Tensor:
    """weight[out, in, R, S], any strides -> what this backend's `skip_conv` reads: [R, S, in, out].

    The result is opaque: every backend has its own, for its own `skip_conv` alone.
    """
    return weight.permute(2, 3, 1, 0).contiguous()


def skip_conv(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    bits: Tensor | None,
    out: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    transposed: bool,
    size: tuple[int, int],
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """x[N, H, W, C] -> (y[N, OH, OW, out], bits int32[N, OH, OW, ceil(out / 32)], counts int64[2]), channels last.

    Args:
        x: contiguous. An element that is zero (-0.0 too; NaN is not) meets no weight: 0 * inf is nothing here.
        packed: `skip_pack(weight)`; of `weight.transpose(0, 1)` if `transposed`.
        bias: [out], or None.
        bits: int32[N, H, W, ceil(C / 32)], or None; an element whose bit c % 32 of word c / 32 is 0 counts as zero.
        out: channels of y.
        kernel, stride, padding, dilation: of the convolution, (rows, columns).
        transposed: y is the gradient by the input of a convolution with output gradient x; `out` and `size` are then
            the channels and the size of its input.
        size: (OH, OW).
        relu: y is cut at zero, and the bits say where it is not (NaN is not); without it there are none, of shape [0].

    counts: nonzeros of x, and the multiply-adds they take: each meets `out` weights for each tap that lands inside.

    >>> import torch
    >>> x = torch.tensor([1.0, 0.0, 3.0]).view(1, 1, 3, 1)
    >>> packed = skip_pack(torch.tensor([1.0, 10.0, 100.0]).view(1, 1, 1, 3))
    >>> geometry = (1, 3), (1, 1), (0, 1), (1, 1)
    >>> y, _, counts = skip_conv(x, packed, None, None, 1, *geometry, False, (1, 3), False)
    >>> y.flatten().tolist(), counts.tolist()
    ([10.0, 301.0, 30.0], [2, 4])
    """
    n, h, w, channels = x.shape
    oh, ow = size
    present = x != 0
    if bits is not None:
        present = present & unpack_bits(bits, channels)
    y = x.new_zeros(n, oh, ow, out)
    products = 0
    for r in range(kernel[0]):
        for s in range(kernel[1]):
            rows = _places(h, oh, r * dilation[0] - padding[0], stride[0], transposed)
            columns = _places(w, ow, s * dilation[1] - padding[1], stride[1], transposed)
            if not rows[0] or not columns[0]:
                continue
            of_x, of_y = (
                torch.meshgrid(*(torch.tensor(each[at], device="cpu") for each in (rows, columns)), indexing="ij")
                for at in range(2)
            )
            met = present[:, of_x[0], of_x[1]]
            # Where a weight is not finite, a product with zero would be NaN: such channels are added one at a time.
            scalars = x[:, of_x[0], of_x[1]].masked_fill(~met, 0)
            weight = packed[r, s]
            finite = weight.isfinite().all(1)
            y[:, of_y[0], of_y[1]] += scalars[..., finite] @ weight[finite]
            for c in (~finite).nonzero().flatten().tolist():
                term = scalars[..., c, None] * weight[c]
                y[:, of_y[0], of_y[1]] += term.masked_fill(~met[..., c, None], 0)
            products += int(met.sum()) * out
    if bias is not None:
        y += bias
    counts = torch.tensor([int(present.sum()), products], dtype=torch.int64, device=x.device)
    if relu:
        return *relu_bits(y), counts
    return y, torch.empty(0, dtype=torch.int32, device=x.device), counts


def _places(inputs: int, outs: int, offset: int, stride: int, transposed: bool) -> tuple[list[int], list[int]]:
    """The rows (or columns) of x that a tap takes, and those of y that it takes them to."""
    pairs = [
        (i, o) if not transposed else (o, i)
        for o in range(inputs if transposed else outs)
        if 0 <= (i := o * stride + offset) < (outs if transposed else inputs)
    ]
    return [x for x, _ in pairs], [y for _, y in pairs]
