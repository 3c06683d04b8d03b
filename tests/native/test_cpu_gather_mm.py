"""Law: a product at the tiles of a pattern equals the dense product of what the tiles hold, on every instruction set
and team, whatever way the tiles make it take (whole rows, bands, pieces of rows)."""

import pytest
import torch

from gossamer.kernels import cpu
from gossamer.testing import assert_same_bits, assert_within, gamma

# Whole rows, columns of a band, blocks, pieces of rows, single elements; higher and wider than the matrix.
TILES = [(1, 1000), (3, 1000), (32, 1), (100, 1), (16, 16), (1, 32), (2, 64), (5, 40), (7, 3), (1, 1), (70, 300)]
# Around a tile of registers (4, 6, 14 rows; 4 to 32 columns), a block of 256 deep and one of 512 columns.
SHAPES = [(1, 1, 1), (13, 70, 33), (65, 257, 64), (150, 520, 7), (3, 300, 600)]
DENSITIES = [(0.0, torch.float32), (0.1, torch.float32), (0.6, torch.float64), (1.0, torch.float32)]


def pattern(mask, slack=2):
    """Offsets and indices of a grid of tiles, the slots of a row in random order, slack that must not be looked at."""
    offsets = torch.nn.functional.pad(mask.sum(1).cumsum(0), (1, 0))
    columns = [row.nonzero().flatten() for row in mask]
    used = torch.cat([*(c[torch.randperm(len(c))] for c in columns), torch.full((slack,), 60000)])
    return offsets, used.to(torch.uint16 if mask.shape[1] <= 65536 else torch.int32)


def grid(rows, k, tile, density, batch=1):
    """The shape of `batch` matrices one below the other in whole tiles, and which of their tiles are present."""
    bm, bk = tile
    rows = rows if batch == 1 else batch * -(-rows // bm) * bm
    return rows, torch.rand(-(-rows // bm), -(-k // bk)) < density


def covered(mask, rows, k, tile):
    return mask.repeat_interleave(tile[0], 0)[:rows].repeat_interleave(tile[1], 1)[:, :k]


def dense(a, mask, tile, b):
    """The oracle: float64 over the whole matrix, zero where there is no tile."""
    kept = torch.where(covered(mask, *a.shape, tile), a.double(), 0.0)
    return (kept.view(b.shape[0], -1, a.shape[1]) @ b.double()).view(a.shape[0], -1)


def integers(*shape, dtype=torch.float32):
    return torch.randint(-4, 5, shape).to(dtype)


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_integers_are_exact(isa, shape, tile):
    (rows, k, n), (bm, bk) = shape, tile
    for density, dtype in DENSITIES:
        rows, mask = grid(rows, k, tile, density)
        a, b = integers(rows, k, dtype=dtype), integers(1, k, n, dtype=dtype)
        c = cpu.gather_mm(a, *pattern(mask), bm, bk, b, False)
        assert c.is_contiguous() and c.dtype == dtype
        assert torch.equal(c.double(), dense(a, mask, tile, b))


@pytest.mark.parametrize("tile", TILES, ids=str)
def test_batched_strided_and_column_major(isa, tile):
    bm, bk = tile
    for batch in (1, 3):
        rows, mask = grid(30, 90, tile, 0.5, batch)
        a, b = integers(rows, 90), integers(batch, 90, 37)
        expected = dense(a, mask, tile, b)
        slots = pattern(mask)
        wide = torch.full((batch, 90, 50), float("nan"))
        wide[..., :37] = b
        for operand in (b, b.mT.contiguous().mT, wide[..., :37], b.expand(batch, -1, -1)):
            for column_major in (False, True):
                c = cpu.gather_mm(a, *slots, bm, bk, operand, column_major)
                assert c.t().is_contiguous() if column_major else c.is_contiguous()
                assert torch.equal(c.double(), expected)


def test_one_matrix_for_the_whole_batch(isa):
    """A stride of zero between matrices."""
    rows, mask = grid(32, 64, (16, 1), 0.5, 4)
    a, b = integers(rows, 64), integers(1, 64, 20).expand(4, -1, -1)
    assert torch.equal(cpu.gather_mm(a, *pattern(mask), 16, 1, b, False).double(), dense(a, mask, (16, 1), b))


@pytest.mark.parametrize("tile", TILES, ids=str)
def test_error_bound(isa, tile):
    bm, bk = tile
    for dtype in (torch.float32, torch.float64):
        rows, mask = grid(40, 300, tile, 0.7)
        a, b = torch.randn(rows, 300, dtype=dtype), torch.randn(1, 300, 50, dtype=dtype)
        c = cpu.gather_mm(a, *pattern(mask), bm, bk, b, False)
        bound = gamma(300, dtype) * dense(a.abs(), mask, tile, b.abs())
        assert_within(c, dense(a, mask, tile, b), bound)


@pytest.mark.parametrize("tile", TILES, ids=str)
def test_bits_do_not_depend_on_threads_or_company(isa, tile):
    """An element is one chain of sums: the same with other teams, with other columns beside it, with other rows."""
    bm, bk = tile
    for n in (48, 200):
        rows, mask = grid(5 * bm + 70, 600, tile, 0.5)
        a, b = torch.randn(rows, 600), torch.randn(1, 600, n)
        slots = pattern(mask)
        one = cpu.gather_mm(a, *slots, bm, bk, b, False)
        for threads in (2, 3, 7):
            torch.set_num_threads(threads)
            assert_same_bits(cpu.gather_mm(a, *slots, bm, bk, b, False), one)
            assert_same_bits(cpu.gather_mm(a, *slots, bm, bk, b.mT.contiguous().mT, True).contiguous(), one)
        torch.set_num_threads(1)
        assert_same_bits(cpu.gather_mm(a, *slots, bm, bk, b[..., :5], False), one[:, :5].contiguous())


@pytest.mark.parametrize("tile", TILES, ids=str)
def test_what_no_tile_names_never_takes_part(isa, tile):
    """Masked, not multiplied by zero: Inf and NaN in the skipped parts of a and b do not reach c."""
    bm, bk = tile
    rows, mask = grid(60, 200, tile, 0.3)
    mask[:, ::2] = False  # so that some rows of b are named by no tile
    a, b = integers(rows, 200), integers(1, 200, 40)
    expected = dense(a, mask, tile, b)
    inside = covered(mask, rows, 200, tile)
    a[~inside] = float("nan")
    b[0, ~inside.any(0)] = float("inf")
    for operand in (b, b.mT.contiguous().mT):
        assert torch.equal(cpu.gather_mm(a, *pattern(mask), bm, bk, operand, False).double(), expected)


def test_nan_inside_a_tile_is_kept(isa):
    mask = torch.ones(2, 3, dtype=torch.bool)
    a, b = torch.zeros(32, 48), torch.ones(1, 48, 8)
    a[17, 5] = float("nan")
    c = cpu.gather_mm(a, *pattern(mask), 16, 16, b, False)
    assert c[17].isnan().all() and not c[:17].any() and not c[18:].any()


@pytest.mark.parametrize("shape", [(0, 5, 4), (5, 0, 4), (5, 4, 0), (0, 0, 0)], ids=str)
def test_empty(isa, shape):
    rows, k, n = shape
    for tile in ((1, 8), (2, 1), (1, 2)):
        rows, mask = grid(rows, k, tile, 1.0)
        c = cpu.gather_mm(torch.ones(rows, k), *pattern(mask), *tile, torch.ones(1, k, n), False)
        assert c.shape == (rows, n) and not c.any()


@pytest.mark.parametrize("tile", [(4, 1000), (4, 1), (4, 16)], ids=str)
def test_tiles_beyond_the_capacity_are_left_out(isa, tile):
    """Offsets that count more tiles than there are indices: nothing past the indices is read."""
    rows, mask = grid(40, 64, tile, 1.0)
    offsets, indices = pattern(mask, 0)
    a, b = integers(rows, 64), integers(1, 64, 20)
    here = offsets[5]
    c = cpu.gather_mm(a, offsets, indices[:here].clone(), *tile, b, False)
    mask[5:] = False
    assert torch.equal(c.double(), dense(a, mask, tile, b))


def test_wide_indices(isa):
    k = 70_000
    mask = torch.zeros(3, k, dtype=torch.bool)
    mask[[0, 2, 2], [69_999, 3, 65_540]] = True
    offsets, indices = pattern(mask)
    assert indices.dtype == torch.int32
    a, b = integers(6, k), integers(1, k, 3)
    assert torch.equal(cpu.gather_mm(a, offsets, indices, 2, 1, b, False).double(), dense(a, mask, (2, 1), b))


REFUSED = [
    ("dtype", lambda a, b, s: cpu.gather_mm(a.half(), *s, 2, 2, b, False), TypeError, r"a must have .*float16"),
    ("mixed", lambda a, b, s: cpu.gather_mm(a, *s, 2, 2, b.double(), False), TypeError, r"b must have .*float64"),
    ("inner", lambda a, b, s: cpu.gather_mm(a, *s, 2, 2, b[:, 1:], False), ValueError, r"b must have 4 rows.*\(1, 3,"),
    ("strides", lambda a, b, s: cpu.gather_mm(a, *s, 2, 2, b[..., ::2], False), ValueError, r"of b must have a stride"),
    ("straddles", lambda a, b, s: cpu.gather_mm(a, *s, 2, 2, b.expand(2, -1, -1), False), ValueError, r"a must be 2"),
    ("two", lambda a, b, s: cpu.gather_mm(a, *s, 2, 2, b[0], False), ValueError, r"b must have 3 dimensions"),
    ("offsets", lambda a, b, s: cpu.gather_mm(a, s[0][1:], s[1], 2, 2, b, False), ValueError, r"offsets must have 4"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_refused(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.ones(6, 4), torch.ones(1, 4, 8), pattern(torch.ones(3, 2, dtype=torch.bool)))
