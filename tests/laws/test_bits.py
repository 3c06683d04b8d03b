"""Law: detect, gather, scatter and transpose do what a walk over tiles does, bit for bit, in any order and slack."""

import itertools

import pytest
import torch
from backends import CPU, EVERY, REFERENCE, examples, on
from hypothesis import given
from hypothesis import strategies as st
from oracles import counted, gathered, index_of, pieces, scattered, shuffled, tiles_of
from torch.nn.functional import pad

from gossamer.testing import CASES, DTYPES, Product, assert_same_bits, case, strategies

RAGGED = [case(name) for name in ("ragged", "last corner, odd tile", "tall tiles")]
# Floats everywhere; the other kinds and sizes of number where tiles are ragged.
TYPED = [(c, torch.float32) for c in CASES] + [(c, dtype) for c in RAGGED for dtype in DTYPES if dtype != torch.float32]


def small(of):
    """The interpreter takes every dtype at one of the ragged cases."""
    case, dtype = of
    return case.grid[0] * case.grid[1] <= 3000 and (dtype == torch.float32 or case is RAGGED[1])


typed = on(EVERY, "case, dtype", TYPED, small=small)


def rows_of(offsets, indices, capacity):
    ends = offsets.clamp(max=capacity).tolist()
    return [sorted(indices[start:end].tolist()) for start, end in itertools.pairwise(ends)]


@typed
def test_detect(backend, case, dtype):
    x, tiles = case.dense(dtype), case.tiles()
    before, found = x.clone(), int(tiles.sum())
    assert torch.equal(tiles_of(x, case.tile), tiles), "the table itself"
    for capacity in {tiles.numel() + 2, found, found // 2, 0}:
        offsets, indices = backend("detect", x, *case.tile, capacity, True)
        for ours, expected in zip((offsets, indices), index_of(tiles, capacity), strict=True):
            assert_same_bits(ours, expected)
        if dtype == torch.float32:
            offsets, unordered = backend("detect", x, *case.tile, capacity, False)
            assert_same_bits(offsets, counted(tiles))
            assert unordered.shape == (capacity,) and unordered.dtype == indices.dtype
            if capacity >= found:
                assert rows_of(offsets, unordered, capacity) == rows_of(offsets, indices, capacity)
                assert not unordered[found:].int().any()
    assert_same_bits(x, before)


@typed
def test_gather_and_scatter(backend, case, dtype):
    x = case.dense(dtype)
    pattern = Product(case, 0).pattern(slack=3)
    of = pattern.offsets, pattern.indices
    values = backend("gather", x, *of, *case.tile)
    assert_same_bits(values, gathered(x, *of, case.tile))
    if dtype.is_floating_point:  # neither slack nor padding may be looked at
        inside = gathered(torch.ones(case.shape), *of, case.tile) != 0
        values = values.masked_fill(~inside, torch.nan)
    assert_same_bits(backend("scatter", values, *of, *case.shape), x)


def assert_transposed(backend, tiles, offsets, indices):
    """The same tiles by column, rows ascending; each knows its slot; slack has index 0 and its own place."""
    rows, used = tiles.shape[0], int(offsets[-1])
    offsets_t, indices_t, order = result = backend("transpose", offsets, indices, tiles.shape[1])
    assert_same_bits(offsets_t, pad(tiles.sum(0).cumsum(0), (1, 0)))
    row = tiles.t().nonzero()[:, 1]
    listed = torch.cat([row, torch.zeros(len(indices) - used, dtype=torch.int64)])
    assert_same_bits(indices_t, listed.to(torch.uint16 if rows <= 65536 else torch.int32))
    owner = torch.repeat_interleave(torch.arange(rows), offsets.diff())
    assert order.dtype == torch.int32 and torch.equal(owner[order[:used].long()], row)
    assert torch.equal(indices[order[:used].long()].long(), tiles.t().nonzero()[:, 0])
    assert torch.equal(order[used:].long(), torch.arange(used, len(indices)))
    return result


GRIDS = [(1, 1), (5, 3), (3, 5), (1, 300), (300, 1), (70, 65), (400, 600), (0, 0), (0, 5), (5, 0)]


@on(EVERY, "grid, density", itertools.product(GRIDS, (0.03, 0.5, 1.0)))
def test_transpose(backend, grid, density):
    tiles = torch.rand(grid) < density
    for slack in (0, 7):
        assert_transposed(backend, tiles, *shuffled(tiles, slack))


@on((REFERENCE, *CPU), "grid", [(2, 65_600), (65_600, 2), (65_536, 2), (2, 65_536)])
def test_transpose_of_wide_grids(backend, grid):
    tiles = torch.rand(grid) < 0.3
    tiles[-1, -1] = True
    columns = tiles.nonzero()[:, 1].to(torch.uint16 if grid[1] <= 65536 else torch.int32)
    assert_transposed(backend, tiles, counted(tiles), columns)


@on(EVERY)
def test_transposed_twice_is_the_pattern(backend):
    tiles = torch.rand(60, 130) < 0.2
    offsets, indices = index_of(tiles, int(tiles.sum()))
    *once, order = backend("transpose", offsets, indices, 130)
    again, indices_again, order_again = backend("transpose", *once, 60)
    assert_same_bits(again, offsets)
    assert_same_bits(indices_again, indices)
    assert torch.equal(order[order_again.long()], torch.arange(len(indices)).int())


@on(EVERY, "tile", [(1, 8), (4, 2), (16, 8), (3, 70)])
def test_rows_in_any_order(backend, tile):
    """The ragged last tile in the middle of others, rows without tiles, and padding that is not zero."""
    tiles = torch.rand(-(-50 // tile[0]), -(-333 // tile[1])) < 0.6
    tiles[1], tiles[::3, 0] = False, False  # where what spills over the edge of the row above would land
    of = shuffled(tiles)
    x = torch.randn(50, 333)
    assert_same_bits(backend("gather", x, *of, *tile), gathered(x, *of, tile))
    values = torch.randn(len(of[1]), *tile)
    assert_same_bits(backend("scatter", values, *of, 50, 333), scattered(values, *of, (50, 333)))


@on((REFERENCE, *CPU))
@given(c=strategies.cases(max_rows=40, max_cols=300), seed=st.integers(0, 2**16), room=st.floats(0, 1.2),
       dtype=st.sampled_from(DTYPES))  # fmt: skip
@examples
def test_detect_any_matrix(backend, c, seed, room, dtype):
    x, tiles = c.dense(dtype, seed), c.tiles(seed)
    capacity = int(room * int(tiles.sum()))
    for ours, expected in zip(backend("detect", x, *c.tile, capacity, True), index_of(tiles, capacity), strict=True):
        assert_same_bits(ours, expected)


@on((REFERENCE, *CPU))
@given(p=strategies.patterns(max_rows=40, max_cols=40), seed=st.integers(0, 2**16))
@examples
def test_any_pattern(backend, p, seed):
    """NaN where nobody may look."""
    x = torch.randn(p.shape, generator=torch.Generator().manual_seed(seed))
    of = p.offsets, p.indices
    assert_same_bits(backend("gather", x.masked_fill(~p.to_mask(), torch.nan), *of, *p.tile), gathered(x, *of, p.tile))
    values = torch.full((p.capacity, *p.tile), torch.nan)
    for slot, rows, columns in pieces(*of, p.tile):
        height, width = x[rows, columns].shape
        values[slot, :height, :width] = x[rows, columns]
    assert_same_bits(backend("scatter", values, *of, *p.shape), scattered(values, *of, p.shape))
    tiles = torch.zeros(p.grid, dtype=torch.bool)
    for _, rows, columns in pieces(*of, p.tile):
        tiles[rows.start // p.tile[0], columns.start // p.tile[1]] = True
    assert_transposed(backend, tiles, *of)


# Around the block of 64 lanes, the word of 64 tiles, the sweep of 4 or 8 rows, and tiles that divide 64 or do not.
TILES = [(1, 1), (1, 2), (1, 4), (2, 8), (16, 16), (32, 1), (1, 32), (64, 64), (3, 5), (9, 65), (5, 100), (70, 128)]
SHAPES = [(1, 1), (7, 63), (8, 64), (9, 65), (33, 130), (65, 1030)]


DENSITIES = (0.0, torch.float32), (0.02, torch.float32), (0.5, torch.int16), (0.5, torch.float32), (1.0, torch.int16)


@on(CPU, "tile", TILES)
def test_around_the_blocks_of_the_kernels(backend, tile):
    for shape, (density, dtype) in itertools.product(SHAPES, DENSITIES):
        x = torch.randint(1, 100, shape).where(torch.rand(shape) < density, 0).to(dtype)
        tiles = tiles_of(x, tile)
        of = backend("detect", x, *tile, tiles.numel(), True)
        for ours, expected in zip(of, index_of(tiles, tiles.numel()), strict=True):
            assert_same_bits(ours, expected)
        values = backend("gather", x, *of, *tile)
        assert_same_bits(values, REFERENCE("gather", x, *of, *tile))
        assert_same_bits(backend("scatter", values, *of, *shape), x)


@on(CPU, "cols", [1000, 70_000])
def test_many_indices(backend, cols):
    """Enough to be written past the caches: rows of them begin anywhere in a line, and end where the room does."""
    rows = 5 * 2**20 // cols
    x = torch.randint(1, 100, (rows, cols)).where(torch.rand(rows, cols) < 0.9, 0).to(torch.int8)
    x[1], x[3, ::7] = 0, 0
    tiles, present = x != 0, int(x.count_nonzero())
    for capacity in (x.numel(), present, present - 12_345):
        for ours, expected in zip(backend("detect", x, 1, 1, capacity, True), index_of(tiles, capacity), strict=True):
            assert_same_bits(ours, expected)


@pytest.mark.slow
@on(CPU)
def test_more_than_2_to_the_31_elements(backend):
    """Offsets are 64-bit before every multiply: a tile that starts past 2^31 elements (2 GiB of untouched zeros)."""
    cols, bn = 2**31 + 70, 2**20
    x = torch.zeros(1, cols, dtype=torch.int8)
    x[0, 5] = x[0, cols - 1] = 1
    offsets, indices = backend("detect", x, 1, bn, 2, True)
    assert indices.tolist() == [0, 2048] and offsets.tolist() == [0, 2]
    values = backend("gather", x, offsets, indices, 1, bn)
    assert values[0].nonzero().tolist() == [[0, 5]] and values[1].nonzero().tolist() == [[0, 69]]
    assert torch.equal(backend("scatter", values, offsets, indices, 1, cols), x)
