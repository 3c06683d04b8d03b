"""Law: `dsd` of integers equals a dense float64 product bit for bit, on every instruction set and number of threads."""

import itertools

import pytest
import torch

from gossamer.kernels import cpu

SHAPES = [(64, 64), (37, 53), (130, 70)]  # rows and inner size: whole and ragged
TILES = [(1, 1), (4, 4), (16, 16), (3, 5), (32, 1), (1, 16), (4, 16), (16, 4), (70, 130)]


class Case:
    """A random pattern with integer tiles, poisoned wherever a number must not be read."""

    def __init__(
        self, rows, k, bm, bk, density, dtype=torch.float32, *, flip=False, ordered=False, scaled=False, seed=0
    ):
        generator = torch.Generator().manual_seed(seed)
        draw = lambda *shape: torch.randint(-4, 5, shape, generator=generator)  # noqa: E731
        grid = -(-rows // bm), -(-k // bk)
        mask = torch.rand(grid, generator=generator) < density
        self.rows, self.k, self.flip = rows, k, flip
        self.offsets = torch.cat([torch.zeros(1, dtype=torch.int64), mask.sum(1).cumsum(0)])
        used, capacity = int(self.offsets[-1]), int(self.offsets[-1]) + 3
        columns = mask.nonzero()[:, 1]
        self.indices = torch.zeros(capacity, dtype=torch.int32)
        self.indices[:used] = columns.int()
        if grid[1] <= 65536:
            self.indices = self.indices.to(torch.uint16)
        self.order = torch.randperm(capacity, generator=generator).int() if ordered else None
        place = torch.arange(capacity) if self.order is None else self.order.long()
        tiles = draw(capacity, bm, bk).double()
        self.scale = torch.randint(1, 4, (capacity,), generator=generator).float() if scaled else None
        factors = torch.ones(capacity) if self.scale is None else self.scale
        padded = torch.zeros(grid[0] * bm, grid[1] * bk, dtype=torch.float64)
        inside = torch.zeros_like(padded)
        inside[:rows, :k] = 1
        keep = torch.zeros(capacity, bm, bk, dtype=torch.bool)
        for slot, (i, j) in enumerate(mask.nonzero().tolist()):
            here = slice(i * bm, i * bm + bm), slice(j * bk, j * bk + bk)
            padded[here] = tiles[place[slot]] * factors[place[slot]]
            keep[place[slot]] = inside[here] > 0
        self.dense = padded[:rows, :k]
        poison = float("nan") if dtype.is_floating_point else 99
        self.values = torch.where(keep, tiles, poison).to(dtype)
        if flip:
            self.values = self.values.transpose(1, 2).contiguous()
        self.b_rows = mask.any(0).repeat_interleave(bk)[:k]  # those that a tile reads

    def b(self, n, dtype, transposed=False, seed=1):
        b = torch.randint(-4, 5, (self.k, n), generator=torch.Generator().manual_seed(seed)).to(dtype)
        self.expected = (self.dense @ b.double()).to(dtype)
        b[~self.b_rows] = float("nan")
        return b.t().contiguous().t() if transposed else b

    def run(self, b, column_major=False, work=None):
        c = cpu.dsd(
            self.values, self.offsets, self.indices, self.order, self.scale, b, self.rows, self.flip, column_major, work
        )
        assert (c.t() if column_major else c).is_contiguous()
        return c


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_integers_are_exact(isa, dtype, tile):
    """Every shape, density, layout and width of b; NaN in padding, slack and unread rows of b stays out."""
    count = 0
    for (rows, k), density in itertools.product(SHAPES, (0.0, 0.3, 1.0)):
        for flip, ordered in itertools.product((False, True), repeat=2):
            case = Case(rows, k, *tile, density, dtype, flip=flip, ordered=ordered)
            for n in (1, 4, 33, 100):
                count += 1
                b = case.b(n, dtype, transposed=count % 2 == 1)
                assert torch.equal(case.run(b, column_major=count % 3 == 0), case.expected)
