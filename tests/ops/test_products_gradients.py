"""Law: every product's gradients are those of its masked dense form, to any order, at the pattern's tiles only."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gossamer as gs
from gossamer.testing import Case, assert_within, gamma, ids, product, strategies

backends = pytest.mark.parametrize("backend", ["reference", "cpu"])
# Small, because a check perturbs every element.
CHECKED = [
    Case("ragged", 5, 6, (3, 4), 0.8),
    Case("elements", 4, 5, (1, 1), 0.4),
    Case("empty rows", 6, 4, (2, 2), 0.6, empty_rows=True),
    Case("no tiles", 4, 4, (2, 3), 0.0),
    Case("larger than the matrix", 2, 3, (3, 4), 1.0),
    Case("whole rows", 4, 3, (1, 3), 0.6),
]
NAMES = ["elements", "4 x 4", "16 x 16, ragged", "64 x 64", "whole columns", "power law", "no rows", "no columns"]
some = pytest.mark.parametrize("c", [product(name) for name in NAMES], ids=NAMES)


def pattern_of(c):
    p = gs.Pattern.from_mask(c.mask(), c.tile)
    return p.with_capacity(p.nnz + 2)


def leaf(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@backends
@pytest.mark.parametrize("c", CHECKED, ids=ids(CHECKED))
@pytest.mark.parametrize("along", [True, False], ids=["transposed", "not transposed"])
def test_gradcheck_twice(backend, c, along):
    p = pattern_of(c)
    passed = {"transposed": gs.ops.transpose(p, backend=backend) if along else None, "backend": backend}
    values, a, b = leaf(p.capacity, *c.tile), leaf(2, c.rows), leaf(c.cols, 2)
    for function, inputs in (
        (lambda values, b: gs.ops.dsd(values, p, b, **passed), (values, b)),
        (lambda a, values: gs.ops.dds(a, values, p, **passed), (a, values)),
        (lambda x, y: gs.ops.sdd(x, y, p, **passed), (leaf(c.rows, 2), leaf(2, c.cols))),
    ):
        assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
        assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@backends
@given(p=strategies.patterns(), n=st.integers(0, 7), seed=st.integers(0, 2**16))
def test_adjoint_identities(backend, p, n, seed):
    """<S x, y> == <x, S^T y> == <S, y x^T>, exactly: the integers' sums fit float64."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(-9, 10, (p.capacity, *p.tile), generator=generator).double()
    x = torch.randint(-9, 10, (p.shape[1], n), generator=generator).double()
    y = torch.randint(-9, 10, (p.shape[0], n), generator=generator).double()
    inner = (gs.ops.dsd(values, p, x, backend=backend) * y).sum()
    assert inner == (x * gs.ops.dds(y.t(), values, p, backend=backend).t()).sum()
    assert inner == (values * gs.ops.sdd(y, x.t(), p, backend=backend)).sum()


@backends
@some
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_gradients_of_the_masked_dense_product(backend, c, dtype):
    rows, k = c.case.shape
    p, s = c.pattern(), c.sparse(dtype)
    values, b = c.values(p, s).requires_grad_(), c.dense(k, c.n, dtype).requires_grad_()
    y = gs.ops.dsd(values, p, b, backend=backend)
    dy = c.dense(rows, c.n, dtype, seed=1)
    grad_values, grad_b = torch.autograd.grad(y, (values, b), dy)
    wide, b64 = dy.double(), b.detach().double()
    bound = gamma(2 * max(rows, k, c.n) + 2, dtype)
    assert_within(p.unpack(grad_values), (wide @ b64.t()).where(p.to_mask(), 0), bound * (wide.abs() @ b64.t().abs()))
    assert torch.equal(grad_values, p.pack(p.unpack(grad_values))), "slack and padding get no gradient"
    assert_within(grad_b, s.double().t() @ wide, bound * (s.double().t().abs() @ wide.abs()))


@backends
def test_the_sampled_gradient_never_sees_a_dense_one(backend):
    """The pattern's share of a gradient whose dense form would not fit: 65536 x 65536 elements."""
    n = 65536
    p = gs.Pattern.from_ids(torch.arange(n - 1, -1, -1), n)
    values = torch.ones(p.capacity, 1, 1, requires_grad=True)
    b = torch.arange(float(n)).unsqueeze(1).requires_grad_()
    y = gs.ops.dsd(values, p, b, backend=backend)
    y.sum().backward()
    assert torch.equal(values.grad.flatten(), torch.arange(float(n)).flip(0)) and (b.grad == 1).all()


@backends
def test_gradients_keep_the_layout_of_their_operand(backend):
    c = product("16 x 16, ragged")
    p, s = c.pattern(), c.sparse()
    x = c.dense(c.n, c.case.cols).requires_grad_()  # the rows of a batch, as a linear has them
    y = gs.ops.dsd(c.values(p, s), p, x.t(), column_major=True, backend=backend).t()
    assert y.is_contiguous()
    y.sum().backward()  # an expanded gradient of stride 0
    assert torch.allclose(x.grad, s.sum(0).expand_as(x), atol=1e-4)


@backends
def test_bfloat16_values_get_a_bfloat16_gradient_times_their_scale(backend):
    c = product("4 x 4")
    p, s = c.pattern(), c.sparse(integers=True)
    b = c.dense(c.case.cols, c.n, integers=True)
    values = p.pack(s).bfloat16().requires_grad_()
    scale = 2.0 ** torch.randint(-2, 3, (p.capacity,))
    gs.ops.dsd(values, p, b, scale=scale, backend=backend).sum().backward()
    expected = gs.ops.sdd(torch.ones(c.case.rows, c.n), b.t(), p, backend=backend) * scale.view(-1, 1, 1)
    assert values.grad.dtype == torch.bfloat16 and torch.equal(values.grad, expected.bfloat16())


@backends
def test_a_pattern_that_changed_before_the_backward_is_an_error(backend):
    c = product("8 x 8")
    p = gs.Pattern.full(c.case.shape, c.case.tile)
    values = torch.randn(p.capacity, *p.tile, requires_grad=True)
    y = gs.ops.dsd(values, p, c.dense(c.case.cols, 3), backend=backend)
    p.copy_(c.pattern())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@backends
def test_no_graph_is_built_when_none_is_asked_for(backend):
    c = product("4 x 4")
    p = c.pattern()
    values = c.values(p, c.sparse()).requires_grad_()
    b = c.dense(c.case.cols, c.n)
    assert gs.ops.dsd(values, p, b, backend=backend).requires_grad
    assert not gs.ops.dsd(values.detach(), p, b, backend=backend).requires_grad
    with torch.no_grad():
        assert not gs.ops.dsd(values, p, b, backend=backend).requires_grad
