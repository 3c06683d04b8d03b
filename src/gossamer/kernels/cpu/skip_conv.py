"""Convolution at the cost of the nonzeros of its input: channels last, weights packed once."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from gossamer.kernels.cpu import _call, memory


def skip_pack(weight: Tensor) -> Tensor:
    """Pack `weight[out, in, R, S]`; see `gossamer.kernels.reference.skip_pack`.

    The layout, [groups of outputs, in / lanes, R, lanes, S, outputs of a group], is that of the active instruction set.
    """
    _call.tensor(weight, "weight", ndim=4, dtypes=(torch.float32,), contiguous=False)
    out, channels, r, s = weight.shape
    packed = memory.empty(_packed_shape(out, channels, r, s), torch.float32)
    k_stride, c_stride, r_stride, s_stride = weight.stride()
    _call.native.skip_pack(
        weight.data_ptr(), out, channels, r, s, k_stride, c_stride, r_stride, s_stride, packed.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    return packed


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
    """Return (y[N, OH, OW, out], bits of y or nothing, counts[2]); see `gossamer.kernels.reference.skip_conv`."""
    _call.tensor(x, "x", ndim=4, dtypes=(torch.float32,))
    _call.tensor(packed, "packed", dtypes=(torch.float32,))
    n, h, w, c = x.shape
    if min(*kernel, *stride, *dilation) < 1 or min(*padding, *size, out) < 0:
        _complain(kernel=(kernel, 1), stride=(stride, 1), padding=(padding, 0), dilation=(dilation, 1), size=(size, 0),
                  out=((out,), 0))  # fmt: skip
    if max(*kernel, *stride, *padding, *dilation, *size, out) > _SMALL:
        for axis in (0, 1):
            reach = size[axis] * stride[axis] + kernel[axis] * dilation[axis] + padding[axis]
            _call.count(reach, "size * stride + kernel * dilation + padding")
        _call.count(prod(max(number, 1) for number in (n, *size, out)), "N * OH * OW * out, leaving out zeros,")
        _call.count(prod(max(number, 1) for number in (out, c, *kernel)), "out * C * R * S, leaving out zeros,")
    expected = _packed_shape(out, c, *kernel)
    if tuple(packed.shape) != expected:
        raise ValueError(
            f"packed must have shape {expected} for {c} input channels, out={out}, kernel={kernel} and the instruction "
            f"set {_call.native.isa()}, got {tuple(packed.shape)}; pack the weight again with skip_pack"
        )
    if bias is not None:
        _call.bias(bias, out, (torch.float32,))
    if bits is not None:
        _call.bits(bits, x)
    oh, ow = size
    y = memory.empty((n, oh, ow, out), torch.float32)
    y_bits = torch.empty((n, oh, ow, -(-out // 32)), dtype=torch.int32, device="cpu") if relu else _NO_BITS
    counts = torch.empty(2, dtype=torch.int64, device="cpu")
    threads = torch.get_num_threads()
    down, along = zip((h, w), size, kernel, stride, padding, dilation, strict=True)
    conv = (n, c, out, *down, *along)
    workspace = torch.empty(
        _call.native.skip_conv_workspace(conv, transposed, threads), dtype=torch.uint8, device="cpu"
    )
    _call.native.skip_conv(
        x.data_ptr(), packed.data_ptr(), _call.address(bias), _call.address(bits), conv, transposed, relu,
        y.data_ptr(), y_bits.data_ptr(), counts.data_ptr(), workspace.data_ptr(), threads,
    )  # fmt: skip
    return y, y_bits, counts


_NO_BITS = torch.empty(0, dtype=torch.int32, device="cpu")
_SMALL = 2**14  # a product of four such numbers is far from overflow


def _complain(**given: tuple[tuple[int, ...], int]) -> None:
    for name, (pair, least) in given.items():
        if min(pair) < least:
            raise ValueError(f"{name} must be at least {least}, got {pair if len(pair) > 1 else pair[0]}")


def _packed_shape(out: int, channels: int, r: int, s: int) -> tuple[int, ...]:
    outs = _call.native.skip_pack_outs(out)
    lanes = _call.native.skip_pack_lanes(channels, r)
    return (max(-(-out // outs), 1), -(-channels // lanes), r, lanes, s, outs)
