"""Law: every backend's product is the float64 one within a bound derived from the data, and exact for integers.

Rows in random order, nonsense in slack indices, NaN wherever a kernel has no business to look.
"""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gossamer as gs
from gossamer.testing import PRODUCTS, assert_same_bits, assert_within, gamma, product, strategies, unit_roundoff

backends = pytest.mark.parametrize("backend", ["reference", "cpu"])
every_product = pytest.mark.parametrize("c", PRODUCTS, ids=lambda c: c.name)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
NAMES = ["elements", "4 x 4", "16 x 16, ragged", "128 x 128", "3 x 5", "8 x 1", "whole rows", "empty rows"]
some = pytest.mark.parametrize("c", [product(name) for name in NAMES], ids=NAMES)


def operands(c, dtype, integers):
    rows, k = c.case.shape
    p = c.pattern()
    s = c.sparse(dtype, integers=integers)
    return p, s, c.values(p, s), c.dense(k, c.n, dtype, integers=integers), c.dense(c.n, rows, dtype, integers=integers)


def check(actual, left, right, integers, where=None):
    """actual == left @ right, or equal where `where` is true and zero elsewhere."""
    exact, size = left.double() @ right.double(), left.double().abs() @ right.double().abs()
    if where is not None:
        exact = exact.where(where, 0)
    assert actual.dtype == left.dtype
    if integers:
        assert torch.equal(actual.double(), exact)
    else:
        # one term more for each partial sum that a row split over workers may add
        assert_within(actual, exact, gamma(2 * left.shape[1] + 2, actual.dtype) * size)


@backends
@every_product
@dtypes
@pytest.mark.parametrize("integers", [True, False], ids=["integers", "reals"])
class TestAgainstTheDenseProduct:
    def test_dsd(self, backend, c, dtype, integers):
        p, s, values, b, _ = operands(c, dtype, integers)
        check(gs.ops.dsd(values, p, b, backend=backend), s, b, integers)

    def test_dds(self, backend, c, dtype, integers):
        p, s, values, _, a = operands(c, dtype, integers)
        y = gs.ops.dds(a, values, p, backend=backend)
        assert y.is_contiguous()
        check(y, a, s, integers)

    def test_sdd(self, backend, c, dtype, integers):
        p, _, _, b, a = operands(c, dtype, integers)
        values = gs.ops.sdd(a.t(), b.t(), p, backend=backend)
        assert values.shape == (p.capacity, *p.tile)
        check(p.unpack(values), a.t(), b.t(), integers, p.to_mask())
        assert_same_bits(values, p.pack(p.unpack(values)))  # slack and padding are zero


@backends
@some
@pytest.mark.parametrize("column_major", [True, False])
def test_memory_layouts_are_read_as_they_are(backend, c, column_major):
    """Row-major, transposed, with gaps between rows, strided both ways, expanded: one answer, bit for bit."""
    p, s, values, b, a = operands(c, torch.float32, True)
    wide = torch.full((b.shape[0], b.shape[1] + 3), torch.nan)
    wide[:, 1:-2] = b
    every_other = torch.full((*b.shape, 2), torch.nan)
    every_other[..., 0] = b
    for view in (b, b.t().contiguous().t(), wide[:, 1:-2], wide.t().contiguous().t()[:, 1:-2], every_other[..., 0]):
        c_ = gs.ops.dsd(values, p, view, column_major=column_major, backend=backend)
        assert torch.equal(c_, s @ b)
        assert (c_.t() if column_major else c_).is_contiguous()
        assert torch.equal(
            p.unpack(gs.ops.sdd(a.t(), view.t(), p, backend=backend)), (a.t() @ b.t()).where(p.to_mask(), 0)
        )
    column = torch.arange(1.0, b.shape[0] + 1).unsqueeze(1)
    assert torch.equal(gs.ops.dsd(values, p, column.expand(-1, 4), backend=backend), s @ column.expand(-1, 4))


@backends
@some
def test_what_no_tile_covers_takes_no_part(backend, c):
    """Masked, not multiplied by zero: a NaN reaches exactly the rows whose tiles read it."""
    p, s, values, b, a = operands(c, torch.float32, True)
    read = p.to_mask()
    row = int(read.sum(0).argmin())  # the row of b that the fewest rows of S read
    for value in (torch.nan, torch.inf):
        bad = b.clone()
        bad[row] = value
        y = gs.ops.dsd(values, p, bad, backend=backend)
        touched = read[:, row]
        assert torch.equal(y[~touched], (s @ b)[~touched])
        assert not y[touched].isfinite().any(), "a tile that is present multiplies, also by zero"
        x = gs.ops.sdd(a.t(), bad.t(), p, backend=backend)
        assert torch.equal(p.unpack(x).isfinite().all(0), ~(read & (torch.arange(len(b)) == row)).any(0))


@backends
@pytest.mark.parametrize("tile", [(1, 1), (16, 16), (5, 7), (64, 64)], ids=str)
def test_full_density_is_the_dense_product(backend, tile):
    s, b = torch.randint(-8, 9, (40, 48)).float(), torch.randint(-8, 9, (48, 33)).float()
    p, whole = gs.Pattern.full((40, 48), tile), gs.Pattern.full((40, 33), tile)
    assert torch.equal(gs.ops.dsd(p.pack(s), p, b, backend=backend), s @ b)
    assert torch.equal(gs.ops.dds(b.t(), p.transpose().pack(s.t()), p.transpose(), backend=backend), (s @ b).t())
    assert torch.equal(whole.unpack(gs.ops.sdd(s, b, whole, backend=backend)), s @ b)


@backends
@given(p=strategies.patterns(max_rows=40, max_cols=40), n=st.integers(0, 20), seed=st.integers(0, 2**16))
def test_any_pattern(backend, p, n, seed):
    generator = torch.Generator().manual_seed(seed)
    s = torch.randint(-8, 9, p.shape, generator=generator).float().where(p.to_mask(), 0)
    b = torch.randint(-8, 9, (p.shape[1], n), generator=generator).float()
    a = torch.randint(-8, 9, (n, p.shape[0]), generator=generator).float()
    values = p.pack(s).masked_fill(p.pack(torch.ones_like(s)) == 0, torch.nan)
    assert torch.equal(gs.ops.dsd(values, p, b, backend=backend), s @ b)
    assert torch.equal(gs.ops.dds(a, values, p, backend=backend), a @ s)
    assert torch.equal(p.unpack(gs.ops.sdd(a.t(), b.t(), p, backend=backend)), (a.t() @ b.t()).where(p.to_mask(), 0))


@backends
@some
def test_short_storage(backend, c):
    """bfloat16 and int8 values are what they are in float32, times the scale of their tile, forwards and flipped."""
    p, _s, values, b, a = operands(c, torch.float32, False)
    short = values.bfloat16()
    assert torch.equal(gs.ops.dsd(short, p, b, backend=backend), gs.ops.dsd(short.float(), p, b, backend=backend))
    small = values.nan_to_num().mul(20).clamp(-127, 127).to(torch.int8)
    scale = torch.rand(p.capacity) + 0.5
    scaled = p.unpack(small.double() * scale.double().view(-1, 1, 1))
    bound = gamma(2 * max(p.shape) + 3, torch.float32)
    y = gs.ops.dsd(small, p, b, scale=scale, backend=backend)
    assert_within(y, scaled @ b.double(), bound * (scaled.abs() @ b.double().abs()))
    z = gs.ops.dds(a, small, p, scale=scale, backend=backend)
    assert_within(z, a.double() @ scaled, bound * (a.double().abs() @ scaled.abs()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@some
def test_half_precision_sums_in_float32(c, dtype):
    """The reference, which the GPU's kernels are held to."""
    p, s, values, b, a = operands(c, torch.float32, False)
    s, b, a = (x.to(dtype) for x in (s, b, a))
    values = values.to(dtype)
    for y, left, right in (
        (gs.ops.dsd(values, p, b, backend="reference"), s, b),
        (gs.ops.dds(a, values, p, backend="reference"), a, s),
    ):
        assert y.dtype == dtype
        exact, size = left.double() @ right.double(), left.double().abs() @ right.double().abs()
        assert_within(y, exact, gamma(left.shape[1], torch.float32) * size + unit_roundoff(dtype) * size)


@backends
@some
def test_a_division_of_labour_changes_at_most_the_order_of_sums(backend, c):
    """`work` in uneven parts that split rows: exact on integers, and every slot is visited once."""
    p, s, values, b, _ = operands(c, torch.float32, True)
    offsets = p.row_offsets().tolist()
    for parts in (1, 2, 3, 7):
        cuts = sorted({0, p.nnz, *(p.nnz * i * i // parts**2 for i in range(parts))})
        pieces = []
        for start, end in itertools.pairwise(cuts):
            rows = [
                (row, max(offsets[row], start), min(offsets[row + 1], end))
                for row in range(p.grid[0])
                if max(offsets[row], start) < min(offsets[row + 1], end)
            ]
            pieces.append(rows)
        longest = max((len(rows) for rows in pieces), default=0) + 1
        work = torch.tensor([rows + [(-1, 0, 0)] * (longest - len(rows)) for rows in pieces] or [[(-1, 0, 0)]])
        assert int((work[..., 2] - work[..., 1]).sum()) == p.nnz
        assert torch.equal(gs.ops.dsd(values, p, b, work=work, backend=backend), s @ b)


def test_a_division_of_labour_is_followed(monkeypatch):
    """The work counter: a slot that no part visits is not multiplied, so what is visited is what is present.

    S and S^T have one each, and neither is used for the other.
    """
    monkeypatch.delenv("GOSSAMER_CHECK", raising=False)  # which refuses a division that leaves slots out
    p, ones = gs.Pattern.full((8, 8), (4, 4)), torch.ones(8, 8)
    values = p.pack(ones).requires_grad_()
    some = torch.tensor([[(0, 0, 1)], [(1, 2, 4)]])
    less = torch.tensor([4.0] * 4 + [8.0] * 4).unsqueeze(1).expand(8, 8)
    for transposed in (None, gs.ops.transpose(p)):
        x = ones.clone().requires_grad_()
        y = gs.ops.dsd(values, p, x, work=some, transposed=transposed)
        assert torch.equal(y, less)
        y.sum().backward()
        assert (x.grad == 8).all() and (values.grad == 8).all()
        values.grad = None
        assert (gs.ops.dds(ones, values, p, work=some, transposed=transposed) == 8).all()
    transposed = gs.ops.transpose(p)._replace(work=some)
    x = ones.clone().requires_grad_()
    y = gs.ops.dsd(values, p, x, transposed=transposed)
    y.sum().backward()
    assert (y == 8).all() and torch.equal(x.grad, less)
    assert torch.equal(gs.ops.dds(ones, values, p, transposed=transposed), less.t())


@backends
@some
def test_a_static_partition_is_exact(backend, c):
    p, s, values, b, a = operands(c, torch.float32, True)
    t = gs.ops.transpose(p)
    for parts in (1, 2, 5):
        work = gs.planner.partition(p, parts).work
        both = t._replace(work=gs.planner.partition(t.pattern, parts).work)
        assert torch.equal(gs.ops.dsd(values, p, b, work=work, transposed=both, backend=backend), s @ b)
        assert torch.equal(gs.ops.dds(a, values, p, work=work, transposed=both, backend=backend), a @ s)


@backends
@every_product
def test_transpose_is_an_index_of_the_transposed_matrix(backend, c):
    p = c.pattern()
    t = gs.ops.transpose(p, backend=backend)
    expected, order = p.transpose_with_permutation()
    assert t.pattern.shape == expected.shape and t.pattern.tile == expected.tile
    assert_same_bits(t.pattern.offsets, expected.offsets)
    nnz = p.nnz
    assert_same_bits(t.pattern.indices[:nnz], expected.indices[:nnz])
    assert (t.pattern.indices[nnz:] == 0).all()
    assert_same_bits(t.order, order.to(torch.int32))


@backends
def test_a_transposed_index_may_be_passed_along(backend):
    c = product("16 x 16, ragged")
    p, s, values, _b, a = operands(c, torch.float32, True)
    t = gs.ops.transpose(p, backend=backend)
    assert torch.equal(gs.ops.dds(a, values, p, transposed=t, backend=backend), a @ s)
    stored = values.transpose(1, 2)[t.order.long()]
    assert torch.equal(gs.ops.dsd(stored, t.pattern, a.t(), backend=backend), s.t() @ a.t())


@backends
def test_fan_in_patterns(backend):
    p = gs.Pattern.from_topk(torch.rand(7, 5), 2, tile=(3, 4), shape=(20, 18))
    s = torch.randint(-8, 9, p.shape).float().where(p.to_mask(), 0)
    b = torch.randint(-8, 9, (18, 9)).float()
    assert torch.equal(gs.ops.dsd(p.pack(s), p, b, backend=backend), s @ b)
    values = gs.ops.sdd(s, b, gs.Pattern.from_topk(torch.rand(7, 5), 2, tile=(3, 2), shape=(20, 9)), backend=backend)
    assert values.shape == (14, 3, 2)


def test_the_table_itself():
    names = [c.name for c in PRODUCTS]
    assert len(set(names)) == len(names)
    tiles = {c.case.tile for c in PRODUCTS}
    assert tiles >= {(b, b) for b in (1, 4, 8, 16, 32, 64, 128)}
    for c in PRODUCTS:
        p = c.pattern()
        gs.Pattern(p.offsets, p.indices[: p.nnz], p.shape, p.tile).validate()
        assert torch.equal(p.to_tile_mask(), c.case.tiles())
        if p.nnz and c.case.structure == "one row":
            assert (p.offsets.diff() > 0).sum() == 1 and p.nnz == p.grid[1]
