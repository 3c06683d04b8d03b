"""Detect in two launches around a running sum; the host never learns how many tiles there are.

1. A program reads the elements of up to 1024 consecutive tiles of one tile row and counts the tiles with a nonzero.
2. A running sum of the counts gives every program the slot where its tiles begin.
3. The same programs write their tiles' columns there.

Ordered: between 1 and 3 a byte a tile says whether it is present. Unordered (PIT's index): the programs of a row
take slots in that row's bucket with one atomic addition each, so step 3 reads the present tiles only and the running
sum is over rows only; the order within a row then varies from run to run, the set of tiles does not.

Numbers are read as integers: a float is nonzero when any bit but its sign is set, so -0.0 is absent, and NaN and
subnormals are present whatever the rounding mode.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gossamer.kernels.bits import as_bits
from gossamer.kernels.triton.rows import WORK, on_device


@triton.jit
def find_tiles(
    x, flags, counts, bucket, rows, cols, tile_cols, blocks,
    BM: tl.constexpr, BN: tl.constexpr, TILES: tl.constexpr, CHUNK: tl.constexpr,
    SIGNED_ZERO: tl.constexpr, ORDERED: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    tile_row, block = program // blocks, program % blocks
    tile = block * TILES + tl.arange(0, TILES)
    top = tile_row * BM + tl.zeros([1, 1], tl.int64)  # not a scalar: the interpreter widens a scalar mask to int64
    seen = tl.zeros([TILES, CHUNK], dtype=x.dtype.element_ty)
    for r in range(0, BM):
        i = top + r
        for start in range(0, BN, CHUNK):
            within = start + tl.arange(0, CHUNK)
            j = tile[:, None] * BN + within[None, :]
            inside = (within < BN)[None, :] & (j < cols) & (i < rows)
            seen |= tl.load(x + i * cols + j, mask=inside, other=0)
    if SIGNED_ZERO:
        seen = seen << 1
    flag = tl.max((seen != 0).to(tl.int32), axis=1)
    if ORDERED:
        tl.store(flags + tile_row * tile_cols + tile, flag.to(tl.int8), mask=tile < tile_cols)
        tl.store(counts + program, tl.sum(flag, axis=0))
    else:
        slot = tl.atomic_add(counts + tile_row, tl.sum(flag, axis=0)) + tl.cumsum(flag, axis=0) - flag
        tl.store(bucket + tile_row * tile_cols + slot, tile.to(bucket.dtype.element_ty), mask=flag != 0)


@triton.jit
def place_flagged(flags, starts, indices, tile_cols, blocks, capacity, TILES: tl.constexpr):
    program = tl.program_id(0).to(tl.int64)
    tile_row, block = program // blocks, program % blocks
    tile = block * TILES + tl.arange(0, TILES)
    flag = tl.load(flags + tile_row * tile_cols + tile, mask=tile < tile_cols, other=0).to(tl.int32)
    slot = tl.load(starts + program) + tl.cumsum(flag, axis=0) - flag
    tl.store(indices + slot, tile.to(indices.dtype.element_ty), mask=(flag != 0) & (slot < capacity))


@triton.jit
def place_bucket(bucket, offsets, indices, tile_cols, blocks, capacity, TILES: tl.constexpr):
    program = tl.program_id(0).to(tl.int64)
    tile_row, block = program // blocks, program % blocks
    first = tl.load(offsets + tile_row)
    place = block * TILES + tl.arange(0, TILES)
    slot = first + place
    present = (slot < tl.load(offsets + tile_row + 1)) & (slot < capacity)
    column = tl.load(bucket + tile_row * tile_cols + place, mask=present, other=0)
    tl.store(indices + slot, column, mask=present)


def detect(x: Tensor, bm: int, bn: int, capacity: int, ordered: bool) -> tuple[Tensor, Tensor]:
    """x[rows, cols] -> (offsets int64[tile_rows + 1], indices[capacity]); see `gossamer.kernels.reference.detect`."""
    rows, cols = x.shape
    tile_rows, tile_cols = (rows + bm - 1) // bm, (cols + bn - 1) // bn
    dtype = torch.uint16 if tile_cols <= 65536 else torch.int32
    indices = torch.zeros(capacity, dtype=dtype, device=x.device)
    if tile_rows * tile_cols == 0:
        return torch.zeros(tile_rows + 1, dtype=torch.int64, device=x.device), indices

    chunk = min(triton.next_power_of_2(bn), WORK)
    tiles = min(triton.next_power_of_2(tile_cols), WORK // chunk)
    blocks = triton.cdiv(tile_cols, tiles)
    programs = tile_rows * blocks
    grid = (programs,)
    size = tile_rows * tile_cols
    flags = torch.empty(size if ordered else 0, dtype=torch.int8, device=x.device)
    bucket = torch.empty(0 if ordered else size, dtype=dtype, device=x.device)
    counts = torch.zeros(programs if ordered else tile_rows, dtype=torch.int32, device=x.device)
    starts = torch.zeros(counts.numel() + 1, dtype=torch.int64, device=x.device)
    with on_device(x):
        find_tiles[grid](
            as_bits(x), flags, counts, bucket, rows, cols, tile_cols, blocks, BM=bm, BN=bn, TILES=tiles, CHUNK=chunk,
            SIGNED_ZERO=x.is_floating_point(), ORDERED=ordered,
        )  # fmt: skip
        torch.cumsum(counts, 0, out=starts[1:])
        if ordered:
            place_flagged[grid](flags, starts, indices, tile_cols, blocks, capacity, TILES=tiles)
            return starts[::blocks].contiguous(), indices
        place_bucket[grid](bucket, starts, indices, tile_cols, blocks, capacity, TILES=tiles)
        return starts, indices
