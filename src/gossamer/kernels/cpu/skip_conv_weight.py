"""Gradient of a 2-D convolution by its weights that skips the zeros of one operand."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.kernels.cpu import _call, memory


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
    """Return `dw[K, C, R, S]` and `counts`; see `gossamer.kernels.reference.skip_conv_weight`."""
    _call.tensor(x, "x", ndim=4, dtypes=(torch.float32,))
    _call.tensor(dy, "dy", ndim=4, dtypes=(torch.float32,))
    images, *size, channels = x.shape
    outputs = dy.shape[3]
    for name, pair, low in (
        ("kernel", kernel, 1),
        ("stride", stride, 1),
        ("padding", padding, 0),
        ("dilation", dilation, 1),
    ):
        if len(pair) != 2 or min(pair) < low:
            raise ValueError(f"{name} must be two integers of at least {low}, got {pair}")
    if skip not in ("x", "dy"):
        raise ValueError(f"skip must be 'x' or 'dy', got {skip!r}")
    axes: list[int] = []
    for n, of, out, taps, step, pad, apart in zip(
        "HW", size, dy.shape[1:3], kernel, stride, padding, dilation, strict=True
    ):
        expected = (of + 2 * pad - apart * (taps - 1) - 1) // step + 1
        if out != max(expected, 0):
            raise ValueError(
                f"dy must be [N, OH, OW, K] with O{n} = {expected} for {n} = {of}, kernel {kernel}, stride {stride}, "
                f"padding {padding} and dilation {dilation}, got shape {tuple(dy.shape)}"
            )
        _call.count(out * step + taps * apart + pad, f"O{n} * stride + kernel * dilation + padding")
        axes += (of, out, taps, step, pad, apart if taps > 1 else 1)
    if dy.shape[0] != images:
        raise ValueError(f"dy must have {images} images, as x has, got shape {tuple(dy.shape)}")
    if bits is not None:
        _call.bits(bits, dy)
    counts = torch.zeros(3, dtype=torch.int64, device="cpu")
    shape = (outputs, *kernel, channels) if channels_last else (outputs, channels, *kernel)
    empty = not (x.numel() and dy.numel())
    dw = torch.zeros(shape, dtype=torch.float32, device="cpu") if empty else memory.empty(shape, torch.float32)
    if channels_last:
        dw = dw.permute(0, 3, 1, 2)
    if empty:
        return dw, counts
    threads = torch.get_num_threads()
    conv, skip_dy = (images, channels, outputs, *axes), skip == "dy"
    workspace = torch.empty(
        _call.native.skip_conv_weight_workspace(conv, skip_dy, threads), dtype=torch.uint8, device="cpu"
    )
    _call.native.skip_conv_weight(
        x.data_ptr(), dy.data_ptr(), _call.address(bits), conv, skip_dy, dw.data_ptr(),
        channels_last, counts.data_ptr(), workspace.data_ptr(), threads,
    )  # fmt: skip
    return dw, counts
