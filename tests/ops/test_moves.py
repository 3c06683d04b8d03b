"""Law: detect, gather and scatter give any tensor to the kernel of their backend, and make patterns of the results.

What the kernels compute is in tests/laws.
"""

import pytest
import torch

import gossamer as gs
from gossamer.testing import DTYPES, assert_same_bits, assert_same_tiles, case

backends = pytest.mark.parametrize("backend", ["reference", "cpu"])
NAMES = ["elements", "ragged", "last corner, odd tile", "empty rows", "first width of int32", "no rows", "no columns"]


@pytest.mark.parametrize("backend", [None, "reference", "cpu"])
@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_a_matrix_goes_through_its_tiles(backend, name, ordered):
    c = case(name)
    for dtype in DTYPES:
        x = c.dense(dtype)
        before = x.clone()
        p = gs.detect(x, c.tile, ordered=ordered, backend=backend)
        assert_same_tiles(p, c.tiles(), ordered=ordered)
        assert p.indices.dtype == (torch.uint16 if c.grid[1] <= 65536 else torch.int32)
        assert p.capacity == c.grid[0] * c.grid[1] and (p.indices[p.nnz :] == 0).all()
        p = p.with_capacity(p.nnz + 3)
        values = gs.ops.gather(x, p, backend=backend)
        assert_same_bits(values, p.pack(x))
        assert_same_bits(gs.ops.scatter(values, p, backend=backend), x)
        assert_same_bits(x, before)


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
def test_strides_do_not_matter(backend):
    c = case("ragged")
    x = c.dense()
    wide = torch.stack([x, torch.ones_like(x)], dim=-1)[..., 0]
    for view in (wide, x.t().contiguous().t(), torch.cat([x, x])[c.rows :]):
        p = gs.detect(view, c.tile, backend=backend)
        assert_same_tiles(p, c.tiles(), ordered=True)
        assert_same_bits(gs.ops.gather(view, p, backend=backend), p.pack(x))
    values = gs.ops.gather(x, p, backend=backend)
    strided = values.transpose(1, 2).contiguous().transpose(1, 2)
    assert_same_bits(gs.ops.scatter(strided, p, backend=backend), x)


@backends
def test_fan_in_patterns(backend):
    p = gs.Pattern.from_topk(torch.rand(7, 5), 2, tile=(3, 4), shape=(20, 18))
    x = torch.randn(20, 18)
    values = gs.ops.gather(x, p, backend=backend)
    assert_same_bits(values, p.pack(x))
    assert_same_bits(gs.ops.scatter(values, p, backend=backend), x.where(p.to_mask(), 0))


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
