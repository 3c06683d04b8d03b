"""Law: skipping is masking. For every axis that may be skipped and every subset S, pit(f, S)(X) == f(X * 1_S).

X has no zero, so that only the index can be the reason why something is missing.
"""

import re
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gossamer as gs
from gossamer.ops.gathered import GatherMm
from gossamer.testing import PRODUCTS, assert_within, gamma
from gossamer.testing.clock import Clock

backends = pytest.mark.parametrize("backend", ["reference", "cpu"])
every_product = pytest.mark.parametrize("c", PRODUCTS, ids=lambda c: c.name)
SUBSETS = {
    "empty": lambda n: torch.zeros(n, dtype=torch.bool),
    "all": lambda n: torch.ones(n, dtype=torch.bool),
    "single": lambda n: torch.arange(n) == n // 2,
    "random": lambda n: torch.rand(n) < 0.5,
    "contiguous": lambda n: (torch.arange(n) >= n // 3) & (torch.arange(n) < n // 2 + 1),
}
subsets = pytest.mark.parametrize("subset", SUBSETS.values(), ids=SUBSETS)
sides = pytest.mark.parametrize("sparse", ["a", "b"])


def integers(*shape):
    x = torch.randint(1, 9, shape).float()
    return torch.where(torch.rand(shape) < 0.5, x, -x)


@backends
@subsets
@sides
@pytest.mark.parametrize("n", [1, 3, 16, 37])
def test_an_axis_of_rows(backend, subset, sparse, n):
    """m of a, n of b: whole slices that also vanish from the result."""
    m, k = 45, 29
    a, b = (integers(m, k), integers(k, n)) if sparse == "a" else (integers(n, k), integers(k, m))
    keep = subset(m)
    mask = keep.unsqueeze(1).expand(m, k) if sparse == "a" else keep.expand(k, m)
    index = gs.Pattern.from_mask(mask, (1, k) if sparse == "a" else (k, 1))
    c = gs.ops.matmul(a, b, sparse=sparse, index=index, backend=backend)
    assert torch.equal(c, (a * mask) @ b if sparse == "a" else a @ (b * mask))


@backends
@subsets
@sides
@pytest.mark.parametrize("band", [1, 4, 16, 32, 100])
def test_the_axis_that_is_summed(backend, subset, sparse, band):
    """k, another subset for each band of rows of a (of columns of b)."""
    m, k, n = 75, 40, 21
    a, b = (integers(m, k), integers(k, n)) if sparse == "a" else (integers(n, k), integers(k, m))
    mask = torch.stack([subset(k) for _ in range(-(-m // band))]).repeat_interleave(band, 0)[:m]
    mask, tile = (mask, (band, 1)) if sparse == "a" else (mask.t(), (1, band))
    c = gs.ops.matmul(a, b, sparse=sparse, index=gs.Pattern.from_mask(mask, tile), backend=backend)
    assert torch.equal(c, (a * mask) @ b if sparse == "a" else a @ (b * mask))


@backends
@every_product
@sides
def test_any_tile_of_the_table(backend, c, sparse):
    p, s = c.pattern(), c.sparse(integers=True)
    full = integers(*s.shape)  # without a zero: only the index says what takes part
    b = c.dense(c.case.cols, c.n, integers=True)
    expected = full.where(p.to_mask(), 0) @ b
    if sparse == "a":
        assert torch.equal(gs.ops.matmul(full, b, index=p, backend=backend), expected)
    else:
        y = gs.ops.matmul(b.t(), full.t(), sparse="b", index=p.transpose(), backend=backend)
        assert torch.equal(y, expected.t())


@backends
@every_product
def test_zeros_found_inside_the_call(backend, c):
    for exact in (True, False):
        s, b = c.sparse(integers=exact), c.dense(c.case.cols, c.n, integers=exact)
        y = gs.ops.matmul(s, b, tile=c.case.tile, backend=backend)
        if exact:
            assert torch.equal(y, s @ b)
        else:
            s, b = s.double(), b.double()
            assert_within(y, s @ b, gamma(2 * s.shape[1] + 2, torch.float32) * (s.abs() @ b.abs()))


@backends
@pytest.mark.parametrize("axis", ["m", "k"])
def test_permutations_of_an_axis(backend, axis):
    """A spatial axis carries its permutation to the result; a summed one loses it."""
    a, b = integers(64, 48) * (torch.rand(64, 48) < 0.2), integers(48, 20)
    a[::3] = 0
    y = gs.ops.matmul(a, b, axis=axis, backend=backend)
    rows, inner, columns = torch.randperm(64), torch.randperm(48), torch.randperm(20)
    assert torch.equal(gs.ops.matmul(a[rows], b, axis=axis, backend=backend), y[rows])
    assert torch.equal(gs.ops.matmul(a[:, inner], b[inner], axis=axis, backend=backend), y)
    assert torch.equal(gs.ops.matmul(a, b[:, columns], axis=axis, backend=backend), y[:, columns])


@backends
@sides
@pytest.mark.parametrize("shared", [True, False], ids=["one dense matrix", "a batch of them"])
@pytest.mark.parametrize(
    "chosen", [{}, {"axis": "rows"}, {"axis": "k"}, {"tile": (4, 1)}, {"tile": (1, 1)}, {"tile": (4, 8)}], ids=str
)
def test_batches(backend, sparse, shared, chosen):
    """[B, m, k] @ [B, k, n] and with one matrix for all, zeros on either side, gradients included."""
    batch, m, k, n = 3, 24, 30, 16
    a, b = integers(batch, m, k), integers(k, n) if shared else integers(batch, k, n)
    zeros = a if sparse == "a" else b
    zeros *= torch.rand(zeros.shape) < 0.3
    zeros[..., ::3, :] = 0
    zeros[..., ::2] = 0
    if not (shared and sparse == "b"):
        zeros[1] = 0
    if chosen.get("axis") == "rows":
        chosen = {"axis": "m" if sparse == "a" else "n"}
    a.requires_grad_(), b.requires_grad_()
    y = gs.ops.matmul(a, b, sparse=sparse, backend=backend, **chosen)
    dense = a @ b
    assert y.shape == dense.shape and torch.equal(y, dense)
    dy = integers(*y.shape)
    grads, expected = torch.autograd.grad(y, (a, b), dy), torch.autograd.grad(dense, (a, b), dy)
    side = 0 if sparse == "a" else 1
    assert torch.equal(grads[1 - side], expected[1 - side])
    nonzero = zeros.detach() != 0
    assert torch.equal(grads[side][nonzero], expected[side][nonzero])
    assert ((grads[side] == 0) | (grads[side] == expected[side])).all()
    if not chosen:
        assert (grads[side][~nonzero] == 0).all(), "on its own choice the gradient is that of the nonzeros"


@backends
@pytest.mark.parametrize(
    ("sparse", "batch", "tile"),
    [(sparse, None, tile) for sparse in "ab" for tile in ((1, 6), (6, 1), (2, 1), (1, 2), (1, 1), (3, 4), (8, 8))]
    + [("a", 2, tile) for tile in ((1, 6), (6, 1), (2, 1), (1, 2), (1, 1), (3, 4))],
)
def test_gradcheck_twice(backend, sparse, batch, tile):
    """The masked operator, to any order: rows, columns, bands, blocks, tiles larger than the matrix."""
    m, k, n = 6, 6, 2
    lead = () if batch is None else (batch,)
    a = torch.randn(*lead, m, k, dtype=torch.float64, requires_grad=True)
    b = torch.randn(*lead, k, n, dtype=torch.float64, requires_grad=True)
    if sparse == "b":
        a, b = b.detach().t().clone().requires_grad_(), a.detach().t().clone().requires_grad_()
        tile = tile[::-1]
    flat = a.flatten(0, -2) if sparse == "a" else b
    index = gs.Pattern.from_mask(torch.rand(flat.shape) < 0.3, tile)
    mask = index.to_mask().view_as(a if sparse == "a" else b)

    def skipping(a, b):
        return gs.ops.matmul(a, b, sparse=sparse, index=index, backend=backend)

    masked = (a * mask) @ b if sparse == "a" else a @ (b * mask)
    dy = torch.randn_like(masked)
    for one, two in zip(
        torch.autograd.grad(skipping(a, b), (a, b), dy), torch.autograd.grad(masked, (a, b), dy), strict=True
    ):
        torch.testing.assert_close(one, two, rtol=1e-13, atol=1e-13)
    assert torch.autograd.gradgradcheck(skipping, (a, b), fast_mode=True)


@backends
def test_an_index_serves_several_products(backend):
    a = integers(64, 40) * (torch.rand(64, 40) < 0.1)
    for tile in ((1, 40), (32, 1), (1, 1), (16, 8)):
        index = gs.detect(a, tile, backend=backend)
        for n in (5, 1, 33):
            b = integers(40, n)
            assert torch.equal(gs.ops.matmul(a, b, index=index, backend=backend), a @ b)
            assert torch.equal(gs.ops.matmul(a, b, index=index, tile=tile, backend=backend), a @ b)


@backends
@pytest.mark.parametrize("axis", ["m", "k"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_skipped_is_not_read(backend, axis, value):
    """NaN opposite a skipped slice does not reach the result; NaN in the sparse operand is no zero."""
    a, b = integers(64, 40), integers(40, 12)
    if axis == "k":
        a[:32, 7] = 0
        b[7] = value
        y = gs.ops.matmul(a, b, axis="k", backend=backend)
        assert y[:32].isfinite().all() and not y[32:].isfinite().any()
    else:
        a[5] = 0
        b[7] = value
        y = gs.ops.matmul(a, b, axis="m", backend=backend)
        assert (y[5] == 0).all() and not y[torch.arange(64) != 5].isfinite().any()
    a = torch.zeros(64, 40)
    a[3, 4] = torch.nan
    y = gs.ops.matmul(a, integers(40, 12), axis=axis, backend=backend)
    assert y[3].isnan().all() and (y[torch.arange(64) != 3] == 0).all()


@backends
@given(
    m=st.integers(0, 70), k=st.integers(0, 40), n=st.integers(0, 20), bm=st.integers(1, 40), bk=st.integers(1, 20),
    density=st.sampled_from([0.0, 0.05, 0.5, 1.0]), sparse=st.sampled_from(["a", "b"]), seed=st.integers(0, 2**16),
)  # fmt: skip
def test_any_product(backend, m, k, n, bm, bk, density, sparse, seed):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randint(-8, 9, (m, k), generator=generator).float()
    b = torch.randint(-8, 9, (k, n), generator=generator).float()
    zeros = a if sparse == "a" else b
    zeros *= torch.rand(zeros.shape, generator=generator) < density
    for chosen in ({"tile": (bm, bk)}, {"axis": "k"}, {"axis": "m" if sparse == "a" else "n"}, {}):
        assert torch.equal(gs.ops.matmul(a, b, sparse=sparse, backend=backend, **chosen), a @ b)


@backends
def test_strides_do_not_matter(backend):
    a, b = integers(40, 32) * (torch.rand(40, 32) < 0.2), integers(32, 12)
    for x in (a, a.t().contiguous().t(), torch.cat([a, a], 1)[:, :32], torch.stack([a, a], 2)[..., 0]):
        for y in (b, b.t().contiguous().t(), torch.cat([b, b], 1)[:, :12]):
            for chosen in ({"axis": "m"}, {"axis": "k"}, {"tile": (8, 8)}):
                assert torch.equal(gs.ops.matmul(x, y, backend=backend, **chosen), a @ b)


@backends
def test_work_follows_the_zeros(backend):
    """The work counter is the index: what is found covers the nonzeros and no tile without one."""
    a = integers(64, 48) * (torch.rand(64, 48) < 0.02)
    for tile in ((1, 48), (32, 1), (1, 1), (8, 8)):
        index = gs.detect(a, tile, backend=backend)
        assert index.nnz == int(gs.Pattern.from_mask(a != 0, tile).nnz)
        poisoned = a.masked_fill(~index.to_mask(), torch.nan)  # whatever else it visited would show
        assert torch.equal(
            gs.ops.matmul(poisoned, torch.ones(48, 9), index=index, backend=backend), a @ torch.ones(48, 9)
        )


def decided(kind, tile):
    """A plan that says so, whatever it would cost."""
    return gs.planner.Plan(kind, tile, None, 1.0, (), "prior", "", "")


@backends
@sides
def test_a_plan_changes_neither_the_product_nor_the_gradient(backend, sparse):
    """Dense, rows, bands and blocks: on a plan's word the gradient is that of the nonzero elements, always."""
    m, k, n = 40, 33, 12
    a, b = (integers(m, k), integers(k, n)) if sparse == "a" else (integers(n, k), integers(k, m))
    zeros = a if sparse == "a" else b
    zeros *= torch.rand(zeros.shape) < 0.2
    nonzero = zeros != 0
    a.requires_grad_(), b.requires_grad_()
    dense = a @ b
    dy = integers(*dense.shape)
    grads = list(torch.autograd.grad(dense, (a, b), dy))
    side = 0 if sparse == "a" else 1
    grads[side] = grads[side].where(nonzero, 0)
    for kind, tile in (("dense", None), ("m", (1, k)), ("k", (32, 1)), ("block", (4, 8)), ("block", (1, 1))):
        own = tile if tile is None or sparse == "a" else tile[::-1]
        y = gs.ops.matmul(a, b, sparse=sparse, plan=decided(kind, own), backend=backend)
        assert torch.equal(y, dense)
        for one, two in zip(torch.autograd.grad(y, (a, b), dy), grads, strict=True):
            assert torch.equal(one, two)


def test_a_planned_tile_is_the_one_used():
    """A NaN opposite a zero reaches exactly the rows that share a tile with a nonzero of that column."""
    a, b = torch.zeros(64, 8), torch.ones(8, 3)
    a[0, 0] = a[40, 5] = 1
    b[5] = torch.nan
    for plan, touched in (
        (decided("dense", None), list(range(64))),
        (decided("m", (1, 8)), [0, 40]),
        (decided("k", (32, 1)), list(range(32, 64))),
        (decided("block", (1, 1)), [40]),
    ):
        assert gs.ops.matmul(a, b, plan=plan).isnan().any(1).nonzero().flatten().tolist() == touched
        transposed = gs.planner.Plan(plan.kind, plan.tile and plan.tile[::-1], None, 1.0, (), "prior", "", "")
        y = gs.ops.matmul(b.t(), a.t(), sparse="b", plan=transposed)
        assert y.isnan().any(0).nonzero().flatten().tolist() == touched


def test_a_plan_whose_sample_missed_the_tiles_gives_way_to_dense():
    """Three rows of four are there. A NaN opposite the empty one tells whether the dense product ran."""
    a, b = torch.zeros(4, 8), torch.full((8, 3), torch.nan)
    a[:3] = 1
    for break_even, touched in ((0.75, [0, 1, 2]), (0.5, [0, 1, 2, 3])):
        plan = gs.planner.Plan("m", (1, 8), 0.1, break_even, (), "prior", "", "")
        assert gs.ops.matmul(a, b, plan=plan).isnan().any(1).nonzero().flatten().tolist() == touched
        transposed = gs.planner.Plan("n", (8, 1), 0.1, break_even, (), "prior", "", "")
        y = gs.ops.matmul(b.t(), a.t(), sparse="b", plan=transposed)
        assert y.isnan().any(0).nonzero().flatten().tolist() == touched


def test_a_site_whose_zeros_are_gone_is_looked_at_again_at_once():
    """Else every call up to the next look would search for tiles in vain, and old samples would outvote the new one."""
    a, b = torch.zeros(1024, 1024), torch.randn(1024, 256)
    a[0] = 1
    planner = gs.planner.Planner(axis="m", database=gs.planner.Database({"threads": 2, "isa": "avx2"}))
    for _ in range(40):
        gs.ops.matmul(a, b, plan=planner)
    assert planner(a, b).kind == "m"
    a.fill_(1)
    for _ in range(3):
        gs.ops.matmul(a, b, plan=planner)
    assert planner(a, b).kind == "dense"


@pytest.mark.parametrize(("skipping", "right"), [(1.6, "dense"), (0.3, "m")])
def test_a_prior_that_is_wrong_here_is_corrected_and_says_so(monkeypatch, skipping, right):
    """Skipping is predicted to take about a third of dense, which takes a second by a clock that only products move."""
    clock, spent, a, b = Clock(), [], torch.zeros(256, 256), torch.zeros(256, 64)

    def takes(seconds):
        def product(*args):
            clock.advance(seconds)
            spent.append(seconds)
            return b

        return product

    monkeypatch.setattr("gossamer.measure.clock.now", clock)
    monkeypatch.setattr(GatherMm, "call", staticmethod(takes(skipping)))
    monkeypatch.setattr(sys.modules["gossamer.ops.matmul"], "_dense", takes(1.0))
    a[::4] = 1
    planner = gs.planner.Planner(axis="m", tiles=[(1, 0)], database=gs.planner.Database({"threads": 1, "isa": "none"}))
    planner(a, b)  # of which one call is not worth a sample
    predicted = planner(a, b)
    assert (predicted.kind, predicted.notes) == ("m", ())
    for _ in range(1000):
        gs.ops.matmul(a, b, plan=planner)
    plan, best = planner(a, b), min(skipping, 1.0)
    times = {candidate.kind: candidate.total for candidate in plan.candidates}
    assert plan.kind == right and set(spent[700:750]) == {best}
    assert times["m"] / times["dense"] == pytest.approx(skipping)
    said = rf"by a trial of [234] rounds: \(1, 0\) takes {skipping:.2f} of dense where the prior says 0\.\d\d"
    assert re.search(said, plan.explain())
    tried = [seconds for seconds in spent if seconds != skipping]
    if right == "m":
        assert len(tried) >= 2 and sum(tried) - skipping * len(tried) <= 0.011 * sum(spent)
    torch.use_deterministic_algorithms(True)  # no clock decides, whatever was measured
    try:
        assert planner(a, b).kind == "m"
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_planner_is_asked_at_every_call():
    planner = gs.planner.Planner(every=2)
    a, b = integers(300, 40), integers(40, 8)
    for _ in range(4):
        assert torch.equal(gs.ops.matmul(a, b, plan=planner), a @ b)
    assert planner.evaluations == 2


def test_calls_without_a_plan_share_a_planner_and_in_deterministic_mode_none():
    sites = sys.modules["gossamer.ops.matmul"].SITES
    a, b = integers(300, 41), integers(41, 8)
    before = sites.evaluations
    for _ in range(5):
        assert torch.equal(gs.ops.matmul(a, b), a @ b)
    assert sites.evaluations == before + 1
    torch.use_deterministic_algorithms(True)
    try:
        other = integers(41, 8)  # a site that the planner has not seen
        assert torch.equal(gs.ops.matmul(a, other), a @ other)
    finally:
        torch.use_deterministic_algorithms(False)
    assert sites.evaluations == before + 1
