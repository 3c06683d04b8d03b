"""Law: a product without rows, columns, matrices or tokens has the shape of torch's, and so have all gradients."""

from itertools import product

import pytest
import torch

import gossamer as gs
from gossamer.ops import dds, dsd, grouped_matmul, matmul, sdd

by_backend = pytest.mark.parametrize("backend", [None, "reference"])


def twice(y, inputs):
    """Gradients, and gradients of those: a shape that is wrong is refused by autograd."""
    first = torch.autograd.grad(y.sum(), inputs, create_graph=True)
    assert [x.shape for x in first] == [x.shape for x in inputs]
    sum(x.sum() for x in first).backward()
    assert all(x.grad.shape == x.shape for x in inputs)


@by_backend
@pytest.mark.parametrize("options", [{}, {"axis": "k"}, {"axis": "m"}, {"tile": (1, 2)}, {"index": True}], ids=str)
@pytest.mark.parametrize("batch", [None, 0, 2])
def test_matmul(batch, options, backend):
    for sparse, shared, (m, k, n) in product("ab", (True, False), product((0, 4), repeat=3)):
        if (batch is None and shared) or (m and k and n and batch != 0):
            continue
        each = () if batch is None else (batch,)
        a = torch.randn(*each, m, k, requires_grad=True)
        b = torch.randn(*(() if shared else each), k, n, requires_grad=True)
        chosen = {"axis": "n"} if sparse == "b" and options == {"axis": "m"} else dict(options)
        chosen = {"tile": (2, 1)} if sparse == "b" and "tile" in chosen else chosen
        if "index" in chosen:
            operand = (a if sparse == "a" else b).detach()
            if sparse == "b" and operand.dim() == 3:
                continue
            chosen["index"] = gs.detect(operand.flatten(0, 1) if operand.dim() == 3 else operand)
        c = matmul(a, b, sparse=sparse, backend=backend, **chosen)
        assert torch.equal(c, a @ b) and c.shape == (a @ b).shape
        twice(c, [a, b])


@by_backend
def test_products_with_a_pattern(backend):
    for (rows, cols, n), tile in product(product((0, 4), repeat=3), ((1, 1), (2, 2))):
        if rows and cols and n:
            continue
        p = gs.Pattern.full((rows, cols), tile)
        values, a, b, left, right = (
            torch.randn(shape, requires_grad=True)
            for shape in ((p.capacity, *tile), (n, rows), (cols, n), (rows, n), (n, cols))
        )
        y, z = dsd(values, p, b, backend=backend), dds(a, values, p, backend=backend)
        assert y.shape == (rows, n) and z.shape == (n, cols)
        twice(y.sum() + z.sum(), [values, a, b])
        twice(sdd(left, right, p, backend=backend), [left, right])


@by_backend
def test_grouped_matmul(backend):
    for tokens, experts, k, n, each in product((0, 3), (0, 2), (0, 2), (0, 5), (None, 0, 1)):
        ids = torch.full((tokens,) if each is None else (tokens, each), 0 if experts else -1)
        x, weights = torch.randn(tokens, k, requires_grad=True), torch.randn(experts, k, n, requires_grad=True)
        y = grouped_matmul(x, weights, ids, backend=backend)
        assert y.shape == (*ids.shape, n)
        twice(y, [x, weights])


def test_a_tile_is_checked_without_a_matrix_to_cut():
    with pytest.raises(ValueError, match="tile must have extent 1 along axis 'k'"):
        matmul(torch.zeros(0, 4, 8), torch.zeros(0, 8, 3), tile=(2, 2), axis="k")
