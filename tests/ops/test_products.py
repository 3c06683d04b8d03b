"""Law: dsd, dds and sdd take patterns, any layout, a transposed index and a work partition, and are exact.

What the kernels compute is in tests/laws.
"""

import pytest
import torch

import gossamer as gs
from gossamer.testing import PRODUCTS, assert_same_bits, product

backends = pytest.mark.parametrize("backend", ["reference", "cpu"])
NAMES = ["elements", "4 x 4", "16 x 16, ragged", "128 x 128", "3 x 5", "8 x 1", "whole rows", "empty rows"]
some = pytest.mark.parametrize("c", [product(name) for name in NAMES], ids=NAMES)


def operands(c):
    """p, S, its values with NaN where nobody may look, b and a; in integers."""
    (rows, k), p, s = c.case.shape, c.pattern(), c.sparse(integers=True)
    return p, s, c.values(p, s), c.dense(k, c.n, integers=True), c.dense(c.n, rows, integers=True)


@backends
@some
def test_the_dense_product(backend, c):
    p, s, values, b, a = operands(c)
    assert torch.equal(gs.ops.dsd(values, p, b, backend=backend), s @ b)
    y = gs.ops.dds(a, values, p, backend=backend)
    assert y.is_contiguous() and torch.equal(y, a @ s)
    sampled = gs.ops.sdd(a.t(), b.t(), p, backend=backend)
    assert_same_bits(sampled + 0, p.pack((a.t() @ b.t()).where(p.to_mask(), 0)) + 0)  # slack and padding are zero


@backends
@some
def test_short_storage(backend, c):
    """bfloat16 and int8 values are what they are in float32, times the scale of their tile, forwards and flipped."""
    p, _, values, b, a = operands(c)
    assert torch.equal(gs.ops.dsd(values.bfloat16(), p, b, backend=backend), gs.ops.dsd(values, p, b, backend=backend))
    small, scale = values.nan_to_num().to(torch.int8), 2.0 ** torch.randint(-3, 4, (p.capacity,))
    scaled = p.unpack(small.float() * scale.view(-1, 1, 1))
    assert torch.equal(gs.ops.dsd(small, p, b, scale=scale, backend=backend), scaled @ b)
    assert torch.equal(gs.ops.dds(a, small, p, scale=scale, backend=backend), a @ scaled)


@backends
@some
@pytest.mark.parametrize("column_major", [True, False])
def test_memory_layouts_are_read_as_they_are(backend, c, column_major):
    """Row-major, transposed, with gaps between rows, strided both ways, expanded: one answer, bit for bit."""
    p, s, values, b, a = operands(c)
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
@pytest.mark.parametrize("tile", [(1, 1), (16, 16), (5, 7), (64, 64)], ids=str)
def test_full_density_is_the_dense_product(backend, tile):
    s, b = torch.randint(-8, 9, (40, 48)).float(), torch.randint(-8, 9, (48, 33)).float()
    p, whole = gs.Pattern.full((40, 48), tile), gs.Pattern.full((40, 33), tile)
    assert torch.equal(gs.ops.dsd(p.pack(s), p, b, backend=backend), s @ b)
    assert torch.equal(gs.ops.dds(b.t(), p.transpose().pack(s.t()), p.transpose(), backend=backend), (s @ b).t())
    assert torch.equal(whole.unpack(gs.ops.sdd(s, b, whole, backend=backend)), s @ b)


def test_a_work_partition_is_followed():
    """The work counter: a slot that no part visits is not multiplied. It must be zero, and 0 * inf shows a visit.

    S and S^T have one each, and neither is used for the other.
    """
    p, x = gs.Pattern.full((8, 8), (4, 4)), torch.ones(8, 8)
    values = p.pack(x)
    values[1] = 0  # the first four rows have nothing in the last four columns
    x[4:] = torch.inf
    some = torch.tensor([[(0, 0, 1)], [(1, 2, 4)]])
    for transposed in (None, gs.ops.transpose(p)):
        y = gs.ops.dsd(values, p, x, work=some, transposed=transposed)
        assert (y[:4] == 4).all() and (y[4:] == torch.inf).all()
        assert gs.ops.dsd(values, p, x, transposed=transposed)[:4].isnan().all()
    a = torch.ones(8, 8)
    a[:, :4] = torch.inf
    transposed = gs.ops.transpose(p)  # slot 2 of S^T is slot 1 of S
    followed = transposed._replace(work=torch.tensor([[(0, 0, 2)], [(1, 3, 4)]]))
    assert (gs.ops.dds(a, values, p, transposed=followed)[:, 4:] == 4).all()
    assert gs.ops.dds(a, values, p, transposed=transposed, work=some)[:, 4:].isnan().all()


@backends
@some
def test_a_static_partition_is_exact(backend, c):
    p, s, values, b, a = operands(c)
    t = gs.ops.transpose(p)
    for parts in (1, 2, 5):
        work = gs.planner.partition(p, parts).work
        both = t._replace(work=gs.planner.partition(t.pattern, parts).work)
        assert torch.equal(gs.ops.dsd(values, p, b, work=work, transposed=both, backend=backend), s @ b)
        assert torch.equal(gs.ops.dds(a, values, p, work=work, transposed=both, backend=backend), a @ s)


@backends
def test_a_transposed_index_may_be_passed_along(backend):
    c = product("16 x 16, ragged")
    p, s, values, _b, a = operands(c)
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
