"""What gather and scatter share: which tile row owns a slot, how work is cut into programs, where they run."""

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


def cut(bm: int, bn: int) -> tuple[int, int]:
    """(slots, elements of a tile) that one program handles: many small tiles or a piece of a large one."""
    elements = min(triton.next_power_of_2(bm * bn), WORK)
    return WORK // elements, elements


def on_device(x: Tensor) -> AbstractContextManager:
    """Launch on the device of `x`, which need not be the current one. CPU tensors only meet the interpreter."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
