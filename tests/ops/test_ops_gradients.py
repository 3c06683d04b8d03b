"""Law: gather and scatter are each other's transpose, to any order; detection has no gradient."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gossamer as gs
from gossamer.testing import CASES, Case, assert_same_bits, case, ids, strategies

backends = pytest.mark.parametrize("backend", ["reference", "cpu"])
# Small, because a check perturbs every element; the exact laws below go through the whole table.
CHECKED = [
    Case("ragged", 8, 9, (3, 5), 0.6),
    Case("empty rows", 8, 6, (2, 2), 0.6, empty_rows=True),
    Case("no tiles", 6, 6, (2, 3), 0.0),
    Case("larger than the matrix", 3, 4, (4, 8), 1.0),
]


def pattern_of(c):
    p = gs.Pattern.from_mask(c.mask(), c.tile)
    return p.with_capacity(p.nnz + 2)


@backends
@pytest.mark.parametrize("c", CHECKED, ids=ids(CHECKED))
def test_gradcheck_twice(backend, c):
    p = pattern_of(c)
    x = torch.randn(c.shape, dtype=torch.float64, requires_grad=True)
    values = torch.randn(p.capacity, *c.tile, dtype=torch.float64, requires_grad=True)
    for op, operand in ((gs.ops.gather, x), (gs.ops.scatter, values)):
        assert torch.autograd.gradcheck(lambda t, op=op: op(t, p, backend=backend), (operand,), fast_mode=True)
        assert torch.autograd.gradgradcheck(lambda t, op=op: op(t, p, backend=backend), (operand,), fast_mode=True)


@backends
@pytest.mark.parametrize("c", CASES, ids=ids())
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_the_gradient_is_the_other_op(backend, c, dtype):
    p = pattern_of(c)
    x = torch.randint(-8, 9, c.shape).to(dtype).requires_grad_()
    values = torch.randint(-8, 9, (p.capacity, *c.tile)).to(dtype).requires_grad_()
    (grad_x,) = torch.autograd.grad(gs.ops.gather(x, p, backend=backend), x, values.detach())
    (grad_values,) = torch.autograd.grad(gs.ops.scatter(values, p, backend=backend), values, x.detach())
    assert_same_bits(grad_x, gs.ops.scatter(values.detach(), p, backend=backend))
    assert_same_bits(grad_values, gs.ops.gather(x.detach(), p, backend=backend))


@backends
@given(p=strategies.patterns(), seed=st.integers(0, 2**16))
def test_adjoint_identity(backend, p, seed):
    """<gather(x), v> == <x, scatter(v)>, exactly: the integers' sums fit float64."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-99, 100, p.shape, generator=generator).double()
    v = torch.randint(-99, 100, (p.capacity, *p.tile), generator=generator).double()
    left = (gs.ops.gather(x, p, backend=backend) * v).sum()
    assert left == (x * gs.ops.scatter(v, p, backend=backend)).sum()


@backends
def test_an_expanded_gradient_arrives_whole(backend):
    """`sum().backward()` hands the backward a tensor of stride 0."""
    c = case("ragged")
    p = pattern_of(c)
    x = torch.randn(c.shape, requires_grad=True)
    gs.ops.gather(x, p, backend=backend).sum().backward()
    assert_same_bits(x.grad, p.to_mask().float())


@backends
def test_a_permuted_input_gets_its_gradient(backend):
    c = case("ragged")
    p = pattern_of(c)
    x = torch.randn(c.cols, c.rows, requires_grad=True)
    gs.ops.gather(x.t(), p, backend=backend).sum().backward()
    assert_same_bits(x.grad, p.to_mask().float().t().contiguous())


@backends
def test_no_graph_is_built_when_none_is_asked_for(backend):
    c = case("ragged")
    p = pattern_of(c)
    x = torch.randn(c.shape, requires_grad=True)
    assert not gs.ops.gather(x.detach(), p, backend=backend).requires_grad
    with torch.no_grad():
        assert not gs.ops.gather(x, p, backend=backend).requires_grad
    assert gs.ops.gather(x, p, backend=backend).requires_grad
    assert not gs.detect(x, c.tile, backend=backend).indices.requires_grad
