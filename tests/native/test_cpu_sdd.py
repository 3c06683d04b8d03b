"""Law: the sampled product is the dense product at the tiles of the pattern, and nothing anywhere else."""

import pytest
import torch

from gossamer.kernels import cpu
from gossamer.testing import assert_same_bits

# Around the blocks of 4 x 4 products, the strips of 16 columns, the batches of 8 and 16, tiles of one of each.
TILES = [
    (1, 1),
    (1, 3),
    (1, 16),
    (1, 40),
    (3, 1),
    (32, 1),
    (2, 2),
    (3, 5),
    (4, 4),
    (7, 6),
    (16, 16),
    (17, 35),
    (64, 64),
]
SHAPES = [(1, 1, 1), (5, 3, 9), (33, 16, 40), (70, 129, 67), (20, 1030, 50)]
DTYPES = [torch.float32, torch.float64]


def layout(x, transposed, extra=0):
    """The same matrix with the other dimension contiguous, or as part of a wider one."""
    rows, cols = x.shape if not transposed else x.shape[::-1]
    room = torch.full((rows, cols + extra), float("nan"), dtype=x.dtype)
    room[:, :cols] = x.t() if transposed else x
    return room[:, :cols].t() if transposed else room[:, :cols]


def pattern(m, n, bm, bn, density, slack=3):
    """A mask of tiles, offsets, and indices in random order within each row; the slack names no column at all."""
    mask = torch.rand(-(-m // bm), -(-n // bn)) < density
    offsets = torch.nn.functional.pad(mask.sum(1).cumsum(0), (1, 0))
    columns = [row.nonzero().flatten() for row in mask]
    columns = [mine[torch.randperm(len(mine))] for mine in columns]
    return mask, offsets, torch.cat([*columns, torch.full((slack,), 65535)]).to(torch.uint16)


def expected(product, mask, offsets, indices, bm, bn):
    """The tiles of a dense product in slot order, ragged ones filled up with zeros."""
    m, n = product.shape
    grid = torch.zeros(mask.shape[0] * bm, mask.shape[1] * bn, dtype=product.dtype)
    grid[:m, :n] = product
    tiles = grid.view(mask.shape[0], bm, mask.shape[1], bn).transpose(1, 2)
    used = int(offsets[-1])
    values = torch.zeros(len(indices), bm, bn, dtype=product.dtype)
    row = torch.repeat_interleave(torch.arange(mask.shape[0]), offsets.diff())
    values[:used] = tiles[row, indices[:used].long()]
    return values


def integers(rows, cols, dtype):
    """Products and all their partial sums are whole numbers below 2^24: exact in any order."""
    return torch.randint(-8, 9, (rows, cols)).to(dtype)


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_integers_are_exact(isa, dtype, shape, tile):
    m, k, n = shape
    a, b = integers(m, k, dtype), integers(k, n, dtype)
    product = a.double() @ b.double()
    for density in (0.0, 0.3, 1.0):
        mask, offsets, indices = pattern(m, n, *tile, density)
        values = expected(product, mask, offsets, indices, *tile).to(dtype)
        for left, right in ((False, True), (True, False), (False, False), (True, True)):
            args = layout(a, left, extra=3 * left), layout(b, right, extra=5 * right)
            assert_same_bits(cpu.sdd(*args, offsets, indices, *tile) + 0.0, values + 0.0)  # -0.0 and 0.0 are one


@pytest.mark.parametrize("tile", [(1, 1), (4, 4), (16, 16), (32, 1)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_error_is_within_the_bound_of_a_sum(isa, dtype, tile):
    """|error| <= k * eps * sum |a||b|, the bound of any order of summation."""
    m, k, n = 70, 700, 90
    a, b = torch.randn(m, k, dtype=dtype), torch.randn(k, n, dtype=dtype)
    mask, offsets, indices = pattern(m, n, *tile, 0.5)
    oracle = expected(a.double() @ b.double(), mask, offsets, indices, *tile)
    size = expected(a.double().abs() @ b.double().abs(), mask, offsets, indices, *tile)
    error = (cpu.sdd(a, layout(b, True), offsets, indices, *tile).double() - oracle).abs()
    assert (error <= k * torch.finfo(dtype).eps * size).all()


@pytest.mark.parametrize("tile", [(1, 1), (1, 4), (4, 1), (4, 4), (16, 16)], ids=str)
def test_what_no_tile_names_takes_no_part(isa, tile):
    """NaN and infinities in rows and columns outside the pattern, and in memory around the operands."""
    m, k, n = 48, 37, 80
    a, b = integers(m, k, torch.float32), integers(k, n, torch.float32)
    mask, offsets, indices = pattern(m, n, *tile, 0.1)
    product = a.double() @ b.double()
    a[~mask.any(1).repeat_interleave(tile[0])] = float("nan")
    b[:, ~mask.any(0).repeat_interleave(tile[1])] = float("inf")
    for left, right in ((False, True), (True, False)):
        values = cpu.sdd(layout(a, left, 3), layout(b, right, 3), offsets, indices, *tile)
        assert_same_bits(values + 0.0, expected(product, mask, offsets, indices, *tile).float() + 0.0)


@pytest.mark.parametrize("tile", [(1, 1), (1, 4), (4, 1), (4, 4)], ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_one_bad_value_stays_in_its_row(isa, tile, bad):
    m, k, n = 16, 300, 24
    a, b = torch.ones(m, k), torch.ones(k, n)
    a[6, 299] = bad
    _, offsets, indices = pattern(m, n, *tile, 2.0, slack=0)
    values = cpu.sdd(a, layout(b, True), offsets, indices, *tile)
    dense = cpu.scatter(values, offsets, indices, m, n)
    assert not dense[6].isfinite().any()
    assert (dense[:6] == k).all() and (dense[7:] == k).all()


@pytest.mark.parametrize(("m", "k", "n"), [(0, 4, 5), (5, 4, 0), (5, 0, 6), (0, 0, 0)])
@pytest.mark.parametrize("tile", [(1, 1), (2, 3)], ids=str)
def test_empty(isa, m, k, n, tile):
    """No rows, no columns; and an empty sum is zero."""
    for dtype in DTYPES:
        _, offsets, indices = pattern(m, n, *tile, 1.0)
        values = cpu.sdd(torch.ones(m, k, dtype=dtype), torch.ones(k, n, dtype=dtype), offsets, indices, *tile)
        assert values.shape == (len(indices), *tile) and not values.any()


@pytest.mark.parametrize("form", [(False, True), (True, False)], ids=["rows", "columns"])
@pytest.mark.parametrize("tile", [(1, 1), (1, 16), (32, 1), (8, 8), (3, 5)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_threads_do_not_change_a_bit(isa, dtype, tile, form):
    """Enough work to be shared, a crowded row that is cut in two, and rows without tiles."""
    m, k, n = 260, 700, 300
    a, b = torch.randn(m, k, dtype=dtype), torch.randn(k, n, dtype=dtype)
    keep = torch.rand(m, n) < 0.05
    keep[40:80] = False
    keep[100:132] = True
    offsets, indices = cpu.detect(keep, *tile, keep.numel(), True)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(cpu.sdd(layout(a, form[0]), layout(b, form[1]), offsets, indices, *tile))
    assert_same_bits(results[0], results[1])
    assert_same_bits(results[0], results[2])


def test_a_product_does_not_depend_on_its_neighbours(isa):
    """The same element has the same bits in any pattern of single elements: batches differ, sums do not."""
    a, b = torch.randn(9, 259), torch.randn(259, 200)
    _, offsets, indices = pattern(9, 200, 1, 1, 2.0, slack=0)
    every = cpu.scatter(cpu.sdd(a, b, offsets, indices, 1, 1), offsets, indices, 9, 200)
    for density in (0.02, 0.3):
        mask, offsets, indices = pattern(9, 200, 1, 1, density, slack=0)
        some = cpu.scatter(cpu.sdd(a, b, offsets, indices, 1, 1), offsets, indices, 9, 200)
        assert_same_bits(some, torch.where(mask, every, 0.0))


def test_more_columns_than_stay_in_cache(isa):
    """Many columns of b, of which rows that do not ascend come back to some; and wide indices."""
    m, k, n = 40, 64, 66_000
    a, b = integers(m, k, torch.float32), integers(n, k, torch.float32).t()
    column = torch.randint(0, n, (m, 30)).unique(dim=1)
    column = column[:, torch.randperm(column.shape[1])]
    offsets = torch.arange(m + 1) * column.shape[1]
    values = cpu.sdd(a, b, offsets, column.flatten().int(), 1, 1)
    product = a.double() @ b.double()
    assert_same_bits(values.flatten(), product.gather(1, column).flatten().float())


def test_overflow_computes_the_tiles_there_is_room_for(isa):
    """offsets may count more tiles than capacity."""
    a, b = integers(20, 30, torch.float32), integers(30, 24, torch.float32)
    mask, offsets, indices = pattern(20, 24, 2, 3, 0.8, slack=0)
    values = cpu.sdd(a, b, offsets, indices[:17].clone(), 2, 3)
    assert_same_bits(values, expected(a @ b, mask, offsets, indices, 2, 3)[:17] + 0.0)


A, B = torch.ones(4, 3), torch.ones(3, 5)
OFFSETS, INDICES = torch.tensor([0, 1, 2]), torch.tensor([0, 2]).to(torch.uint16)
REFUSED = [
    ("inner", lambda: cpu.sdd(A, B.t(), OFFSETS, INDICES, 2, 2), ValueError, r"b must have 3 rows.*got shape \(5, 3\)"),
    ("a dtype", lambda: cpu.sdd(A.half(), B, OFFSETS, INDICES, 2, 2), TypeError, r"a must have dtype .*float16"),
    ("b dtype", lambda: cpu.sdd(A, B.double(), OFFSETS, INDICES, 2, 2), TypeError, r"b must have dtype .*float64"),
    ("stride", lambda: cpu.sdd(A[::2, ::2], B, OFFSETS, INDICES, 2, 2), ValueError, r"a must have a stride of 1"),
    ("tile", lambda: cpu.sdd(A, B, OFFSETS, INDICES, 2, 0), ValueError, r"tile must be at least \(1, 1\)"),
    ("offsets", lambda: cpu.sdd(A, B, OFFSETS, INDICES, 1, 2), ValueError, r"offsets must have 5 entries.*got 3"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_checked_before_memory_is_touched(monkeypatch):
    monkeypatch.setenv("GOSSAMER_CHECK", "1")
    with pytest.raises(ValueError, match=r"indices\[1\] is 3, expected 0 <= index < 3 tile columns"):
        cpu.sdd(A, B, OFFSETS, torch.tensor([0, 3]).to(torch.uint16), 2, 2)
