"""Law: products of half floats are sums in float32, rounded once, forwards and backwards, on a CPU too."""

from itertools import pairwise

import pytest
import torch

import gossamer as gs
from gossamer.ops import dds, dsd, grouped_matmul, half, matmul, sdd
from gossamer.ops.few_rows import FewRows
from gossamer.ops.grouped import mm_on
from gossamer.testing import assert_within, gamma, product

HALF = [torch.bfloat16, torch.float16]
by_dtype = pytest.mark.parametrize("dtype", HALF, ids=str)
by_backend = pytest.mark.parametrize("backend", [None, "reference"])
NAMES = ["elements", "16 x 16, ragged", "whole rows"]


def exact(call, size, inputs, terms):
    """`call` at half inputs, and the gradients of a weighted sum, against float64 and a float32 sum's bound."""
    y = call(*inputs)
    dy = torch.randn(y.shape).to(y.dtype)
    found = [y, *torch.autograd.grad(y, inputs, dy)]
    wide = [x.detach().double().requires_grad_() for x in inputs]
    z = size(*wide)
    expected = [z, *torch.autograd.grad(z, wide, dy.double())]
    large = [x.detach().double().abs().requires_grad_() for x in inputs]
    total = size(*large)
    bounds = [total, *torch.autograd.grad(total, large, dy.double().abs())]
    for a, oracle, bound in zip(found, expected, bounds, strict=True):
        assert a.dtype == inputs[0].dtype
        assert_within(a.detach(), oracle.detach(), gamma(terms, torch.float32) * bound.detach())


@by_dtype
@by_backend
@pytest.mark.parametrize("name", NAMES)
def test_products(name, dtype, backend):
    c = product(name)
    (rows, k), p = c.case.shape, product(name).pattern(slack=0)
    values = p.pack(c.sparse()).to(dtype).requires_grad_()
    b, a = c.dense(k, c.n).to(dtype).requires_grad_(), c.dense(c.n, rows).to(dtype).requires_grad_()
    terms = max(rows, k, c.n) + 2
    exact(lambda v, b: dsd(v, p, b, backend=backend), lambda v, b: p.unpack(v) @ b, [values, b], terms)
    exact(lambda v, a: dds(a, v, p, backend=backend), lambda v, a: a @ p.unpack(v), [values, a], terms)
    left, right = c.dense(rows, c.n).to(dtype).requires_grad_(), c.dense(c.n, k).to(dtype).requires_grad_()
    exact(lambda a, b: sdd(a, b, p, backend=backend), lambda a, b: p.pack(a @ b), [left, right], terms)


@by_dtype
@by_backend
@pytest.mark.parametrize("tile", [(1, 64), (32, 1), (8, 16), None], ids=str)
@pytest.mark.parametrize("sparse", ["a", "b"])
def test_matmul(tile, sparse, dtype, backend):
    """None: planned. Gradients are those of the operand at its tiles, or at its nonzeros."""
    torch.manual_seed(0)
    s = torch.randn(64, 64).masked_fill_(torch.rand(64, 1) < 0.5, 0).to(dtype)
    d = torch.randn(64, 40).to(dtype)
    at = s != 0 if tile is None else gs.detect(s, tile).to_mask()
    if sparse == "a":
        a, b, options = s, d, {} if tile is None else {"tile": tile}
    else:
        a, b, options = d.t().contiguous(), s.t(), {} if tile is None else {"tile": tile[::-1]}
        at = at.t()

    def dense(x, y):
        return torch.where(at, x, 0) @ y if sparse == "a" else x @ torch.where(at, y, 0)

    inputs = [a.requires_grad_(), b.requires_grad_()]
    exact(lambda x, y: matmul(x, y, sparse=sparse, backend=backend, **options), dense, inputs, 66)


@by_dtype
@by_backend
@pytest.mark.parametrize("ids", [[3, 0, -1, 3, 1], [5, 5, 5, 5, 5], [-1] * 5], ids=["some", "one", "none"])
@pytest.mark.parametrize("natively", [True, False])
def test_grouped_matmul(natively, ids, dtype, backend, monkeypatch):
    """By torch's products where the CPU has such, else widened. Weights without rows may hold anything."""
    if not natively:
        monkeypatch.setattr("gossamer.ops.grouped_half.multiplies", lambda dtype: False)
    ids = torch.tensor(ids)
    used = torch.zeros(6, dtype=torch.bool).index_fill_(0, ids[ids >= 0], True)
    x = torch.randn(5, 30).to(dtype).requires_grad_()
    weights = torch.randn(6, 30, 20).masked_fill_(~used.view(-1, 1, 1), torch.nan).to(dtype).requires_grad_()

    def dense(x, weights):
        every = torch.einsum("tk,ekn->ten", x, torch.where(used.view(-1, 1, 1), weights, 0))
        chosen = every[torch.arange(5), ids.clamp(min=0)]
        return torch.where((ids >= 0).view(-1, 1), chosen, 0)

    exact(lambda x, w: grouped_matmul(x, w, ids, backend=backend), dense, [x, weights], 32)


@by_dtype
@pytest.mark.parametrize("natively", [True, False])
@pytest.mark.parametrize("sizes", [[3, 0, 17, 1], [8, 1, 0, 2], [0, 0, 0, 0], []], ids=str)
def test_groups_of_few_rows_read_their_weight_as_it_is(sizes, natively, dtype, monkeypatch):
    """Up to eight rows, by weights that are stored by output; more by torch's products, or widened."""
    ran, compute = [], FewRows.compute

    def counted(x, weight, bias):
        ran.append(len(x))
        return compute(x, weight, bias)

    monkeypatch.setattr(FewRows, "compute", staticmethod(counted))
    monkeypatch.setattr("gossamer.ops.grouped_half.multiplies", lambda dtype: natively)
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    rows = int(offsets[-1])
    x, weights = torch.randn(rows, 30).to(dtype), torch.randn(len(sizes), 17, 30).to(dtype)
    weights[[size == 0 for size in sizes]] = torch.nan
    source, target = torch.randperm(rows), torch.randperm(rows + 2)[:rows]
    for places in ((None, None), (source, target)):
        y = mm_on("cpu")(x, *places, offsets, weights, True, rows + 2)
        exact = torch.zeros(rows + 2, 17, dtype=torch.float64)
        for group, (first, end) in enumerate(pairwise(offsets.tolist())):
            own = [torch.arange(first, end) if each is None else each[first:end] for each in places]
            exact[own[1]] = x[own[0]].double() @ weights[group].double().t() if end > first else 0
        assert y.dtype == dtype and torch.allclose(y.double(), exact, rtol=2 * torch.finfo(dtype).eps, atol=0.02)
    few = [size for size in sizes if 0 < size <= 8]
    assert ran == 2 * few if natively or max(sizes, default=0) <= 8 else ran == []


@by_dtype
def test_half_and_stored_values_keep_the_layout_and_dtype_of_the_dense_operand(dtype):
    c = product("16 x 16, ragged")
    p, b = c.pattern(slack=0), c.dense(c.case.cols, c.n)
    steps = torch.randint(-9, 10, (p.capacity, *p.tile), dtype=torch.int8)
    scale = torch.rand(p.capacity)
    for values, factor in ((p.pack(c.sparse()).bfloat16(), None), (steps, scale)):
        y = dsd(values, p, b.to(dtype), scale=factor, column_major=True)
        z = dsd(values, p, b.to(dtype).float(), scale=factor, column_major=True)
        assert y.dtype == dtype and y.stride() == z.stride() and torch.equal(y, z.to(dtype))


def test_half_products_compile_whole():
    c = product("16 x 16, ragged")
    p, b = c.pattern(slack=0), c.dense(c.case.cols, c.n).bfloat16().requires_grad_()
    values = p.pack(c.sparse()).bfloat16().requires_grad_()

    def step(values, b):
        return gs.ops.dsd(values, p, b, column_major=True).sum()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for one, two in zip(*(torch.autograd.grad(f(values, b), (values, b)) for f in (compiled, step)), strict=True):
        assert torch.equal(one, two)


@by_dtype
@pytest.mark.parametrize("rows", [0, 1, 20, 30])
def test_linear_of_weights_that_torch_would_read_by_elements(rows, dtype, monkeypatch):
    monkeypatch.setattr(half, "multiplies", lambda dtype: False)
    weight, bias, x = torch.randn(33, 50).t().to(dtype), torch.randn(50).to(dtype), torch.randn(rows, 33).to(dtype)
    assert half.goes_by_elements(weight) and not half.goes_by_elements(weight.contiguous())
    exact = torch.nn.functional.linear(x.double(), weight.double(), bias.double())
    with torch.no_grad():
        few = half.linear(x, weight, bias)
    inputs = [each.clone(memory_format=torch.preserve_format).requires_grad_() for each in (x, weight, bias)]
    many = half.linear(*inputs)
    for y in (few, many):
        assert y.dtype == dtype and torch.allclose(y.double(), exact, rtol=2 * torch.finfo(dtype).eps, atol=0.01)
    grads = torch.autograd.grad(many.float().sum(), inputs)
    assert torch.allclose(grads[1].double(), x.double().sum(0).expand(50, -1), rtol=0.02, atol=0.02)
