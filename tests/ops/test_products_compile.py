"""Law: the products pass opcheck, compile whole through their public functions, and a new pattern compiles nothing."""

import pytest
import torch
from torch.library import opcheck

import gossamer as gs
import gossamer.ops  # defines torch.ops.gossamer
from gossamer.testing import assert_no_recompile, product

# The laws of every op check row-major results of each size; here are both layouts, and the transposed index.
NAMES = ["16 x 16, ragged", "nothing to multiply"]
by_name = pytest.mark.parametrize("c", [product(name) for name in NAMES], ids=NAMES)


@pytest.fixture(autouse=True)
def forget_compiled_code():
    torch.compiler.reset()


@by_name
def test_opcheck(c):
    (rows, k), n, ops = c.case.shape, c.n, torch.ops.gossamer
    p, b = c.pattern(), c.dense(c.case.cols, c.n)
    t = gs.ops.transpose(p)
    values, index, index_t = c.values(p, c.sparse()), (p.offsets, p.indices), (t.pattern.offsets, t.pattern.indices)
    opcheck(ops.transpose.default, (*index, p.grid[1]))
    for column_major in (True, False):
        opcheck(ops.dsd.default, (values, *index, None, None, b, rows, False, column_major, None))
        y = c.dense(n, rows).t()
        opcheck(ops.dsd.default, (values, *index_t, t.order, None, y, k, True, column_major, None))
        opcheck(ops.gather_mm.default, (c.sparse(), *index, *p.tile, b.unsqueeze(0), column_major))
    opcheck(ops.sdd.default, (c.dense(rows, n), b.t(), *index, *p.tile))


def test_opcheck_grouped():
    x, weights, dy = torch.randn(20, 6), torch.randn(4, 6, 5), torch.randn(20, 5)
    p = gs.Pattern.from_ids(torch.randint(-1, 4, (20,)), 4)
    order = p.indices.to(torch.int32)
    opcheck(torch.ops.gossamer.grouped_mm.default, (x, order, order, p.offsets, weights, False, 20))
    opcheck(torch.ops.gossamer.grouped_mm.default, (dy, order, order, p.offsets, weights, True, 20))
    opcheck(torch.ops.gossamer.grouped_mm.default, (x, None, None, p.offsets, weights, False, 20))
    opcheck(torch.ops.gossamer.grouped_outer.default, (x, dy, order, order, p.offsets))


def through(values, b, a, p):
    t = gs.ops.transpose(p)
    y = gs.ops.dsd(values, p, b, transposed=t)
    z = gs.ops.dds(a, values, p, transposed=t)
    return y, z, gs.ops.sdd(y, b.t(), p)


@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_products_compile_whole_and_a_new_pattern_compiles_nothing(compiler):
    c = product("16 x 16, ragged")
    rows, k = c.case.shape
    p = gs.Pattern.full(c.case.shape, c.case.tile)
    values = torch.randint(-8, 9, (p.capacity, *p.tile)).float().requires_grad_()
    a, b = c.dense(4, rows, integers=True).requires_grad_(), c.dense(k, 5, integers=True).requires_grad_()
    compiled = torch.compile(through, fullgraph=True, backend=compiler)

    def step(function):
        out = function(values, b, a, p)
        return *out, *torch.autograd.grad(sum(x.sum() for x in out), (values, b, a))

    step(compiled)
    addresses = p.offsets.data_ptr(), p.indices.data_ptr()
    with assert_no_recompile():
        for seed in range(100):
            p.copy_(c.pattern(seed))
            if seed % 10 == 0:
                for one, two in zip(step(compiled), step(through), strict=True):
                    assert torch.equal(one, two)
            else:
                compiled(values, b, a, p)
    assert addresses == (p.offsets.data_ptr(), p.indices.data_ptr())


@pytest.mark.parametrize("chosen", [{"axis": "m"}, {"axis": "k"}, {"tile": (8, 16)}, {"tile": (1, 1)}], ids=str)
def test_matmul_compiles_whole_and_follows_the_zeros(chosen):
    c = product("16 x 16, ragged")
    compiled = torch.compile(lambda s, b: gs.ops.matmul(s, b, **chosen), fullgraph=True, backend="aot_eager")
    b = c.dense(c.case.cols, c.n, integers=True).requires_grad_()

    def step(seed):
        s = c.sparse(integers=True, seed=seed).requires_grad_()
        y = compiled(s, b)
        assert torch.equal(y, s @ b)
        (grad,) = torch.autograd.grad(y.sum(), b)
        assert torch.equal(grad, (s.t() @ torch.ones_like(y)))

    step(0)
    with assert_no_recompile():
        for seed in range(1, 10):
            step(seed)


def test_matmul_does_not_choose_inside_a_graph():
    compiled = torch.compile(lambda a, b: gs.ops.matmul(a, b), fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match="matmul must read its operand on the host to plan"):
        compiled(torch.eye(4), torch.eye(4))


@pytest.mark.parametrize("kind", ["dense", "m"])
def test_a_plan_made_outside_compiles_whole(kind):
    c = product("16 x 16, ragged")
    rows, k = c.case.shape
    plan = gs.planner.Plan(kind, (1, k) if kind == "m" else None, None, 1.0, (), "prior", "", "")
    compiled = torch.compile(lambda s, b: gs.ops.matmul(s, b, plan=plan), fullgraph=True, backend="aot_eager")
    s, b = c.sparse(integers=True).requires_grad_(), c.dense(k, c.n, integers=True)
    y = compiled(s, b)
    assert torch.equal(y, s @ b)
    (grad,) = torch.autograd.grad(y.sum(), s)
    assert torch.equal(grad, b.sum(1).expand(rows, k).where(s != 0, 0))


@pytest.mark.parametrize("shape", [(37,), (37, 2)], ids=str)
def test_grouped_matmul_compiles_whole_and_follows_the_routing(shape):
    compiled = torch.compile(gs.ops.grouped_matmul, fullgraph=True, backend="aot_eager")
    x, weights = torch.randint(-8, 9, (37, 6)).float(), torch.randint(-8, 9, (3, 6, 5)).float()
    x, weights = x.requires_grad_(), weights.requires_grad_()

    def step(function, ids):
        y = function(x, weights, ids)
        return y, *torch.autograd.grad(y.sum(), (x, weights))

    step(compiled, torch.zeros(shape, dtype=torch.int64))
    with assert_no_recompile():
        for ids in (torch.randint(-1, 3, shape), torch.full(shape, -1), torch.randint(0, 3, shape)):
            for one, two in zip(step(compiled, ids), step(gs.ops.grouped_matmul, ids), strict=True):
                assert torch.equal(one, two)


def test_sizes_can_be_symbolic():
    p_of = {n: gs.Pattern.full((n, n), (4, 4)) for n in (9, 20, 31)}
    compiled = torch.compile(lambda v, p, b: gs.ops.dsd(v, p, b), fullgraph=True, backend="aot_eager", dynamic=True)
    for n, p in p_of.items():
        s, b = torch.randint(-8, 9, (n, n)).float(), torch.randint(-8, 9, (n, n + 1)).float()
        assert torch.equal(compiled(p.pack(s), p, b), s @ b)
