"""Which tile row owns a slot, how work is cut into programs, where they run."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

WORK = 512  # elements a program moves: 4 per thread of 4 warps; 8 spill registers for some tiles


@triton.jit
def row_of(slot, offsets, tile_rows, STEPS: tl.constexpr):
    """The number of rows that end at or before each slot, by binary search: `tile_rows` in slack slots. int32."""
    low = (slot * 0).to(tl.int32)
    high = low + tile_rows
    for _ in range(STEPS):
        middle = (low + high) // 2
        open_ = low < high
        ended = tl.load(offsets + middle + 1, mask=open_, other=0) <= slot
        low = tl.where(open_ & ended, middle + 1, low)
        high = tl.where(open_ & (ended == 0), middle, high)
    return low


@triton.jit
def block_of(program, offsets, stride, groups, UNIT: tl.constexpr, BLOCK: tl.constexpr, STEPS: tl.constexpr):
    """The block of a ragged list that a program works on: (group, first position, end of the group). No host sync.

    Group g owns the positions from offsets[g * stride] * UNIT to offsets[(g + 1) * stride] * UNIT. Its blocks are
    numbered from floor(first position / BLOCK) + g, which leaves every group at least as many numbers as it has
    blocks: a grid of floor(positions / BLOCK) + groups programs is enough, whatever the lengths. A number with no
    block gets first position >= end.
    """
    low = program * 0
    high = low + groups
    for _ in range(STEPS):
        middle = (low + high) // 2
        open_ = low < high
        begins = tl.load(offsets + middle.to(tl.int64) * stride, mask=open_, other=0) * UNIT // BLOCK + middle
        low, high = (
            tl.where(open_ & (begins <= program), middle + 1, low),
            tl.where(open_ & (begins > program), middle, high),
        )
    group = low - 1
    exists = group >= 0
    first = tl.load(offsets + group.to(tl.int64) * stride, mask=exists, other=0) * UNIT
    end = tl.load(offsets + (group.to(tl.int64) + 1) * stride, mask=exists, other=0) * UNIT
    return group, first + (program - first // BLOCK - group) * BLOCK, end


def cut(bm: int, bn: int) -> tuple[int, int]:
    """(slots, elements of a tile) that one program handles: many small tiles or a piece of a large one."""
    elements = min(triton.next_power_of_2(bm * bn), WORK)
    return WORK // elements, elements


def on_device(x: Tensor) -> AbstractContextManager:
    """Launch on the device of `x`, which need not be the current one. CPU tensors only meet the interpreter."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
