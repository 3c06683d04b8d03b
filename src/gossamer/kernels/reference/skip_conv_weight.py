"""Gradient of a 2-D convolution by its weights, of what is not zero in one operand."""

from __future__ import annotations

import torch
from torch import Tensor


def skip_conv_weight(
    x: Tensor,
    dy: Tensor,
    bits: Tensor | None,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    skip: str,
) -> tuple[Tensor, Tensor]:
    """Return `dw[K, C, R, S]` and `counts` int64 [2] for x [N, H, W, C] and dy [N, OH, OW, K], both contiguous.

    `dw[k, c, r, s]` is the sum over n, i, j of `dy[n, i, j, k] * x[n, i * stride + r * dilation - padding, ..., c]`,
    over the places inside x. `skip` names the operand, "x" or "dy", whose zeros make no product: where it is 0 the
    other may be infinite or NaN. `bits` int32 [N, OH, OW, ceil(K / 32)]: where bit k % 32 of word k // 32 is 0, dy
    counts as zero.
    `counts[0]` is the number of nonzeros of the skipped operand, `counts[1]` the number of products made with them.
    """
    (height, width, channels), outputs = x.shape[1:], dy.shape[3]
    if bits is not None:
        k = torch.arange(outputs, device=dy.device)
        dy = dy.masked_fill((bits[..., k // 32] >> (k % 32)) & 1 == 0, 0)
    dw = x.new_zeros(outputs, channels, *kernel)
    sparse = x if skip == "x" else dy
    counts = torch.zeros(2, dtype=torch.int64, device=x.device)
    counts[0] = (sparse != 0).sum()
    for r in range(kernel[0]):
        i, down = _meeting(dy.shape[1], height, r, stride[0], padding[0], dilation[0])
        for s in range(kernel[1]):
            j, along = _meeting(dy.shape[2], width, s, stride[1], padding[1], dilation[1])
            a = x[:, down][:, :, along].flatten(0, 2)
            b = dy[:, i][:, :, j].flatten(0, 2)
            skipped, other = (a, b) if skip == "x" else (b, a)
            counts[1] += (skipped != 0).sum() * other.shape[1]
            if bool(other.isfinite().all()):
                dw[:, :, r, s] = b.T @ a
            else:
                products = torch.where(skipped[:, :, None] != 0, skipped[:, :, None] * other[:, None], 0).sum(0)
                dw[:, :, r, s] = products.T if skip == "x" else products
    return dw, counts


def _meeting(out: int, size: int, tap: int, stride: int, padding: int, dilation: int) -> tuple[slice, slice]:
    """The places of dy whose tap lies inside x, and where it lies there."""
    shift = tap * dilation - padding
    first = max(0, -(shift // stride))
    last = min(out, (size - 1 - shift) // stride + 1)
    if last <= first:
        return slice(0, 0), slice(0, 0)
    start = first * stride + shift
    return slice(first, last), slice(start, start + (last - first - 1) * stride + 1, stride)
