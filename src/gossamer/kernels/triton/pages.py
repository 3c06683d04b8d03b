"""What the kernels over pages share: numbers as they are stored, blocks of tokens, and rounding up or down."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

FLOAT, CODED, HALVED = 0, 1, 2  # as WAY of the kernels
"""Floats of any size; codes of a byte; two codes in a byte."""
_WAYS = {"float32": FLOAT, "bfloat16": FLOAT, "float16": FLOAT, "int8": CODED, "int4": HALVED}


def way(stored: str) -> int:
    if stored not in _WAYS:
        raise ValueError(f"stored must be one of {', '.join(_WAYS)}, got {stored!r}")
    return _WAYS[stored]


@triton.jit
def load_matrix(at, down, across, columns, mask, WAY: tl.constexpr):
    """float32[len(down), len(across)] of a matrix [.., columns] of a page; codes stay codes."""
    if WAY == 2:
        half = columns // 2
        byte = tl.load(at + down[:, None] * half + (across % half)[None, :], mask=mask, other=0)
        return ((byte >> (across // half * 4)[None, :].to(tl.uint8)) & 15).to(tl.float32)
    return tl.load(at + down[:, None] * columns + across[None, :], mask=mask, other=0).to(tl.float32)


@triton.jit
def load_keys(keys, tile, d, t, W: tl.constexpr, P: tl.constexpr, mask, WAY: tl.constexpr):
    """float32[len(d), len(t)] of the keys of a tile; codes stay codes, in one plane of four bits or two."""
    if WAY == 0:
        x = load_matrix(keys + tile * (W * P), d, t, P, mask, 0)
    else:
        at = keys + tile * (W * P // WAY) + ((d >> 3) * (P * 4) + (d & 3))[:, None] + (t * 4)[None, :]
        shift = (d & 4)[:, None].to(tl.uint8)
        code = tl.load(at, mask=mask, other=0) >> shift
        if WAY == 1:
            code = (code << 4) | ((tl.load(at + W * P // 2, mask=mask, other=0) >> shift) & 15)
        else:
            code = code & 15
        x = code.to(tl.float32)
    return x


@triton.jit
def rounded(x, UP: tl.constexpr):
    """The bfloat16 next to x that is not less (or not more), as float32."""
    bits = x.to(tl.int32, bitcast=True)
    exact = (bits & 0xFFFF) == 0
    negative = bits < 0
    grows = (negative == 0) if UP else negative
    bits = tl.where(grows & (exact == 0), bits + 0x10000, bits)
    wide = (bits & -65536).to(tl.float32, bitcast=True)
    return tl.where(x == x, wide, x)


@triton.jit
def nearest(x):
    """The bfloat16 nearest to x, even of two, as float32: converting that is exact, also where a conversion cuts."""
    bits = x.to(tl.int32, bitcast=True)
    wide = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -65536).to(tl.float32, bitcast=True)
    return tl.where(x == x, wide, x)


def blocks_of(counts: Tensor, size: int, most: int) -> tuple[Tensor, Tensor]:
    """(request, number of the block in it) of `most` blocks, int32, request -1 where there are fewer; no host sync.

    counts: int64[requests], things of each request, `size` of which make a block.
    """
    ends = (-(-counts // size)).cumsum(0)
    block = torch.arange(most, device=counts.device)
    request = torch.searchsorted(ends, block, right=True)
    begin = torch.nn.functional.pad(ends, (1, 0))[request.clamp(max=len(counts))]
    return torch.where(request < len(counts), request, -1).int(), (block - begin).int()
