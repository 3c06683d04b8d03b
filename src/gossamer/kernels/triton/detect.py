"""Detect in two launches around a running sum; the host never learns how many tiles there are.

1. A program reads the elements of some consecutive tiles of a tile row (of several rows, where rows are short) and
   counts the tiles with a nonzero.
2. A running sum of the counts gives every program the slots where its tiles begin.
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
    x, flags, counts, bucket, rows, cols, tile_rows, tile_cols, blocks,
    BM: tl.constexpr, BN: tl.constexpr, ROWS: tl.constexpr, TILES: tl.constexpr, CHUNK: tl.constexpr,
    SIGNED_ZERO: tl.constexpr, ORDERED: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    block = program % blocks
    row = program // blocks * ROWS + tl.arange(0, ROWS)
    tile = block * TILES + tl.arange(0, TILES)
    seen = tl.zeros([ROWS, TILES, CHUNK], dtype=x.dtype.element_ty)
    for r in range(0, BM):
        i = (row * BM + r)[:, None, None]
        for start in range(0, BN, CHUNK):
            within = (start + tl.arange(0, CHUNK))[None, None, :]
            j = tile[None, :, None] * BN + within
            seen |= tl.load(x + i * cols + j, mask=(within < BN) & (j < cols) & (i < rows), other=0)
    if SIGNED_ZERO:
        seen = seen << 1
    flag = tl.max((seen != 0).to(tl.int32), axis=2)
    exists = row < tile_rows
    here = row[:, None] * tile_cols
    if ORDERED:
        tl.store(flags + here + tile[None, :], flag.to(tl.int8), mask=exists[:, None] & (tile < tile_cols)[None, :])
        tl.store(counts + row * blocks + block, tl.sum(flag, axis=1), mask=exists)
    else:
        first = tl.atomic_add(counts + row, tl.sum(flag, axis=1), mask=exists)
        slot = first[:, None] + tl.cumsum(flag, axis=1) - flag
        column = tl.broadcast_to(tile[None, :], (ROWS, TILES)).to(bucket.dtype.element_ty)
        tl.store(bucket + here + slot, column, mask=flag != 0)


@triton.jit
def place_flagged(
    flags, starts, indices, tile_rows, tile_cols, blocks, capacity, ROWS: tl.constexpr, TILES: tl.constexpr
):
    program = tl.program_id(0).to(tl.int64)
    block = program % blocks
    row = program // blocks * ROWS + tl.arange(0, ROWS)
    tile = tl.broadcast_to((block * TILES + tl.arange(0, TILES))[None, :], (ROWS, TILES))
    exists = row < tile_rows
    flag = tl.load(flags + row[:, None] * tile_cols + tile, mask=exists[:, None] & (tile < tile_cols), other=0)
    flag = flag.to(tl.int32)
    first = tl.load(starts + row * blocks + block, mask=exists, other=0)
    slot = first[:, None] + tl.cumsum(flag, axis=1) - flag
    tl.store(indices + slot, tile.to(indices.dtype.element_ty), mask=(flag != 0) & (slot < capacity))


@triton.jit
def place_bucket(
    bucket, offsets, indices, tile_rows, tile_cols, blocks, capacity, ROWS: tl.constexpr, TILES: tl.constexpr
):
    program = tl.program_id(0).to(tl.int64)
    block = program % blocks
    row = program // blocks * ROWS + tl.arange(0, ROWS)
    place = (block * TILES + tl.arange(0, TILES))[None, :]
    exists = row < tile_rows
    first = tl.load(offsets + row, mask=exists, other=0)
    end = tl.load(offsets + row + 1, mask=exists, other=0)
    slot = first[:, None] + place
    present = (slot < end[:, None]) & (slot < capacity)
    column = tl.load(bucket + row[:, None] * tile_cols + place, mask=present, other=0)
    tl.store(indices + slot, column, mask=present)


def cut(tile_rows: int, tile_cols: int, bn: int) -> tuple[int, int, int]:
    """(tile rows, tiles of each, elements of a tile's row) that one program reads at a time."""
    chunk = min(triton.next_power_of_2(bn), WORK)
    tiles = min(triton.next_power_of_2(tile_cols), WORK // chunk)
    return min(triton.next_power_of_2(tile_rows), WORK // (tiles * chunk)), tiles, chunk


def detect(x: Tensor, bm: int, bn: int, capacity: int, ordered: bool) -> tuple[Tensor, Tensor]:
    """x[rows, cols] -> (offsets int64[tile_rows + 1], indices[capacity]); see `gossamer.kernels.reference.detect`."""
    rows, cols = x.shape
    tile_rows, tile_cols = (rows + bm - 1) // bm, (cols + bn - 1) // bn
    dtype = torch.uint16 if tile_cols <= 65536 else torch.int32
    indices = torch.zeros(capacity, dtype=dtype, device=x.device)
    if tile_rows * tile_cols == 0:
        return torch.zeros(tile_rows + 1, dtype=torch.int64, device=x.device), indices

    group, tiles, chunk = cut(tile_rows, tile_cols, bn)
    blocks = triton.cdiv(tile_cols, tiles)
    grid = (triton.cdiv(tile_rows, group) * blocks,)
    size = tile_rows * tile_cols
    flags = torch.empty(size if ordered else 0, dtype=torch.int8, device=x.device)
    bucket = torch.empty(0 if ordered else size, dtype=dtype, device=x.device)
    counts = torch.zeros(tile_rows * blocks if ordered else tile_rows, dtype=torch.int32, device=x.device)
    starts = torch.zeros(counts.numel() + 1, dtype=torch.int64, device=x.device)
    block_size = {"ROWS": group, "TILES": tiles}
    with on_device(x):
        find_tiles[grid](
            as_bits(x), flags, counts, bucket, rows, cols, tile_rows, tile_cols, blocks, BM=bm, BN=bn, **block_size,
            CHUNK=chunk, SIGNED_ZERO=x.is_floating_point(), ORDERED=ordered,
        )  # fmt: skip
        torch.cumsum(counts, 0, out=starts[1:])
        if ordered:
            place_flagged[grid](flags, starts, indices, tile_rows, tile_cols, blocks, capacity, **block_size)
            return starts[::blocks].contiguous(), indices
        place_bucket[grid](bucket, starts, indices, tile_rows, tile_cols, blocks, capacity, **block_size)
        return starts, indices
