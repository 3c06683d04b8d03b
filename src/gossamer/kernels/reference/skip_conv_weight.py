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
    channels_last: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return `dw[K, C, R, S]` and `counts` int64 [3] for x [N, H, W, C] and dy [N, OH, OW, K], both contiguous.

    `dw[k, c, r, s]` is the sum over n, i, j of `dy[n, i, j, k] * x[n, i * stride + r * dilation - padding, ..., c]`,
    over the places inside x. `skip` names the operand, "x" or "dy", whose zeros make no product: where it is 0 the
    other may be infinite or NaN. `bits` int32 [N, OH, OW, ceil(K / 32)]: where bit k % 32 of word k // 32 is 0, dy
    counts as zero. dw is contiguous, or in memory [K, R, S, C] with `channels_last`.

    `counts[0]` is the number of nonzeros of the skipped operand, `counts[2]` that of the elements looked at for them:
    all, but for the rows and columns of x that a stride steps over, where no tap can fall. If an operand has no element
    none of the other is looked at. `counts[1]` is the number of products made.
    """
    (height, width, channels), outputs = x.shape[1:], dy.shape[3]
    if bits is not None:
        k = torch.arange(outputs, device=dy.device)
        dy = dy.masked_fill((bits[..., k // 32] >> (k % 32)) & 1 == 0, 0)
    dw = x.new_zeros((outputs, *kernel, channels) if channels_last else (outputs, channels, *kernel))
    if channels_last:
        dw = dw.permute(0, 3, 1, 2)
    counts = torch.zeros(3, dtype=torch.int64, device=x.device)
    if not (x.numel() and dy.numel()):
        return dw, counts
    looked = dy
    if skip == "x":
        rows, columns = (_reached(*of) for of in zip((height, width), kernel, stride, padding, dilation, strict=True))
        looked = x[:, rows][:, :, columns]
    counts[0], counts[2] = (looked != 0).sum(), looked.numel()
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


def _reached(size: int, taps: int, stride: int, padding: int, dilation: int) -> list[int]:
    """The places of x that a tap falls on, if dy had all places, also beyond its ends."""
    return [i for i in range(size) if any((i + padding - tap * dilation) % stride == 0 for tap in range(taps))]


def _meeting(out: int, size: int, tap: int, stride: int, padding: int, dilation: int) -> tuple[slice, slice]:
    """The places of dy whose tap lies inside x, and where it lies there."""
    shift = tap * dilation - padding
    first = max(0, -(shift // stride))
    last = min(out, (size - 1 - shift) // stride + 1)
    if last <= first:
        return slice(0, 0), slice(0, 0)
    start = first * stride + shift
    return slice(first, last), slice(start, start + (last - first - 1) * stride + 1, stride)
