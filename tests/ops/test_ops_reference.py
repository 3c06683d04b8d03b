"""Law: every backend does what a walk over the elements does, bit for bit, whatever the dtype, order and slack."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gossamer as gs
from gossamer.testing import CASES, DTYPES, assert_same_bits, assert_same_tiles, case, ids, strategies

backends = pytest.mark.parametrize("backend", ["reference", "cpu"])
every_case = pytest.mark.parametrize("c", CASES, ids=ids())
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def tiles_of(x, tile):
    """The tiles that `nonzero` elements fall into."""
    tiles = torch.zeros(-(-x.shape[0] // tile[0]), -(-x.shape[1] // tile[1]), dtype=torch.bool)
    row, column = x.nonzero().unbind(1)
    tiles[row // tile[0], column // tile[1]] = True
    return tiles


def pieces(pattern):
    """(slot, rows, columns) of every present tile, as slices of the matrix, read off the index by plain Python."""
    offsets, indices = pattern.row_offsets().tolist(), pattern.indices.flatten().tolist()
    bm, bn = pattern.tile
    for row in range(pattern.grid[0]):
        for slot in range(offsets[row], offsets[row + 1]):
            column = indices[slot]
            yield slot, slice(row * bm, (row + 1) * bm), slice(column * bn, (column + 1) * bn)


def gathered(x, pattern):
    values = torch.zeros(pattern.capacity, *pattern.tile, dtype=x.dtype)
    for slot, rows, columns in pieces(pattern):
        piece = x[rows, columns]
        values[slot, : piece.shape[0], : piece.shape[1]] = piece
    return values


def scattered(values, pattern):
    dense = torch.zeros(pattern.shape, dtype=values.dtype)
    for slot, rows, columns in pieces(pattern):
        height, width = dense[rows, columns].shape
        dense[rows, columns] = values[slot, :height, :width]
    return dense


@backends
@every_case
@every_dtype
def test_detect_finds_the_nonzero_tiles(backend, c, dtype):
    x = c.dense(dtype)
    before = x.clone()
    p = gs.detect(x, c.tile, backend=backend)
    assert_same_tiles(p, tiles_of(x, c.tile), ordered=True)
    assert torch.equal(tiles_of(x, c.tile), c.tiles()), "the table itself"
    assert p.indices.dtype == (torch.uint16 if c.grid[1] <= 65536 else torch.int32)
    assert p.capacity == c.grid[0] * c.grid[1] and (p.indices[p.nnz :] == 0).all()
    assert_same_bits(x, before)


@backends
@every_case
@every_dtype
def test_gather_and_scatter_move_the_tiles(backend, c, dtype):
    x = c.dense(dtype)
    p = gs.Pattern.from_mask(c.mask(), c.tile)
    p = p.with_capacity(p.nnz + 3)
    values = gs.ops.gather(x, p, backend=backend)
    assert_same_bits(values, gathered(x, p))
    assert_same_bits(gs.ops.scatter(values, p, backend=backend), x)


@backends
@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint64, torch.float8_e4m3fn], ids=str)
def test_gather_and_scatter_move_bytes_of_any_meaning(backend, dtype):
    c = case("ragged")
    x = c.dense(torch.int64).view(torch.uint8)[:, : c.cols * dtype.itemsize].contiguous().view(dtype)
    p = gs.Pattern.from_mask(c.mask(), c.tile)
    values = gs.ops.gather(x, p, backend=backend)
    assert values.dtype == dtype
    back = gs.ops.scatter(values, p, backend=backend)
    expected = x.view(torch.uint8).where(p.to_mask().repeat_interleave(dtype.itemsize, 1), 0)
    assert_same_bits(back.view(torch.uint8), expected)


@backends
@given(p=strategies.patterns(max_rows=40, max_cols=40), seed=st.integers(0, 2**16))
def test_any_pattern(backend, p, seed):
    """Rows in any order, garbage in the slack, NaN where nobody may look."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(p.shape, generator=generator)
    assert_same_bits(gs.ops.gather(x.masked_fill(~p.to_mask(), torch.nan), p, backend=backend), gathered(x, p))
    values = torch.full((p.capacity, *p.tile), torch.nan)
    for slot, rows, columns in pieces(p):
        height, width = x[rows, columns].shape
        values[slot, :height, :width] = x[rows, columns]
    assert_same_bits(gs.ops.scatter(values, p, backend=backend), scattered(values, p))


@backends
@given(c=strategies.cases(max_rows=40, max_cols=200), seed=st.integers(0, 2**16), ordered=st.booleans())
def test_detect_any_matrix(backend, c, seed, ordered):
    x = c.dense(seed=seed)
    assert_same_tiles(gs.detect(x, c.tile, ordered=ordered, backend=backend), tiles_of(x, c.tile), ordered=ordered)


@backends
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tile", [(1, 1), (1, 4), (3, 1), (2, 3)], ids=str)
def test_minus_zero_is_absent_and_nan_inf_and_subnormals_are_present(backend, dtype, tile):
    info = torch.finfo(dtype)
    smallest = info.smallest_normal * info.eps
    for value, present in [(-0.0, False), (0.0, False)] + [
        (v, True) for v in (torch.nan, -torch.nan, torch.inf, -torch.inf, smallest, -smallest)
    ]:
        x = torch.full((6, 12), -0.0, dtype=dtype)
        x[4, 7] = value
        expected = torch.zeros(-(-6 // tile[0]), -(-12 // tile[1]), dtype=torch.bool)
        expected[4 // tile[0], 7 // tile[1]] = present
        assert_same_tiles(gs.detect(x, tile, backend=backend), expected)


@backends
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64], ids=str)
def test_every_bit_of_an_integer_counts(backend, dtype):
    """The most negative integer too, which has the bits of -0.0."""
    x = (torch.ones((), dtype=torch.int64) << torch.arange(8 * dtype.itemsize)).to(dtype).view(1, -1)
    assert gs.detect(x, backend=backend).nnz == x.numel()
    assert gs.detect(x, (1, 3), backend=backend).nnz == -(-x.numel() // 3)


@backends
def test_strides_do_not_matter(backend):
    c = case("ragged")
    x = c.dense()
    wide = torch.stack([x, torch.ones_like(x)], dim=-1)[..., 0]
    for view in (wide, x.t().contiguous().t(), torch.cat([x, x])[c.rows :]):
        p = gs.detect(view, c.tile, backend=backend)
        assert_same_tiles(p, c.tiles(), ordered=True)
        assert_same_bits(gs.ops.gather(view, p, backend=backend), gathered(x, p))
    values = gs.ops.gather(x, p, backend=backend)
    strided = values.transpose(1, 2).contiguous().transpose(1, 2)
    assert_same_bits(gs.ops.scatter(strided, p, backend=backend), x)


@backends
def test_fan_in_patterns(backend):
    p = gs.Pattern.from_topk(torch.rand(7, 5), 2, tile=(3, 4), shape=(20, 18))
    x = torch.randn(20, 18)
    values = gs.ops.gather(x, p, backend=backend)
    assert_same_bits(values, gathered(x, p))
    assert_same_bits(gs.ops.scatter(values, p, backend=backend), scattered(values, p))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("ordered", [True, False])
class TestOverflow:
    """Law: more tiles than capacity are reported by the kernel and never silent above it."""

    c = case("ragged")
    tiles = int(c.tiles().sum())
    every = c.grid[0] * c.grid[1]

    @pytest.mark.parametrize("short", [1, 3, 10**6])
    def test_the_kernel_counts_all_and_keeps_the_first(self, backend, ordered, short):
        import importlib

        detect = importlib.import_module(f"gossamer.kernels.{backend}.detect").detect
        capacity = max(self.tiles - short, 0)
        offsets, indices = detect(self.c.dense(), *self.c.tile, capacity, ordered)
        full_offsets, full_indices = detect(self.c.dense(), *self.c.tile, self.every, True)
        assert torch.equal(offsets, full_offsets) and torch.equal(indices, full_indices[:capacity])

    def test_error(self, backend, ordered):
        with pytest.raises(RuntimeError, match=rf"capacity={self.tiles - 1} is too small: {self.tiles} tiles"):
            gs.detect(self.c.dense(), self.c.tile, capacity=self.tiles - 1, ordered=ordered, backend=backend)

    def test_grow(self, backend, ordered):
        p = gs.detect(self.c.dense(), self.c.tile, capacity=2, overflow="grow", ordered=ordered, backend=backend)
        assert p.capacity == self.tiles
        assert_same_tiles(p, self.c.tiles(), ordered=ordered)

    def test_dense(self, backend, ordered):
        p = gs.detect(self.c.dense(), self.c.tile, capacity=2, overflow="dense", ordered=ordered, backend=backend)
        assert_same_tiles(p, torch.ones_like(self.c.tiles()))

    @pytest.mark.parametrize("overflow", ["error", "grow", "dense"])
    @pytest.mark.parametrize("extra", [0, 1, 10**4])
    def test_enough(self, backend, ordered, overflow, extra):
        capacity = self.tiles + extra
        p = gs.detect(
            self.c.dense(), self.c.tile, capacity=capacity, overflow=overflow, ordered=ordered, backend=backend
        )
        assert p.capacity == capacity
        assert_same_tiles(p, self.c.tiles(), ordered=ordered)
