"""The fan-in product: gradients, both orders of x, the form of its pattern, and what it refuses."""

import pytest
import torch

import gossamer as gs
from gossamer import Pattern
from gossamer.ops import fan_in_mm


def fan_in(rows: int, cols: int, k: int, seed: int = 0) -> Pattern:
    generator = torch.Generator().manual_seed(seed)
    columns = torch.stack([torch.randperm(cols, generator=generator)[:k].sort().values for _ in range(rows)])
    return Pattern(None, columns.to(torch.uint16), (rows, cols), (1, 1))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_gradients_of_every_order(backend):
    pattern = fan_in(5, 9, 3)
    x = torch.randn(4, 9, dtype=torch.float64, requires_grad=True)
    values = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)

    def product(x, values):
        return fan_in_mm(x, values, pattern, backend=backend)

    assert torch.autograd.gradcheck(product, (x, values), fast_mode=True)
    assert torch.autograd.gradgradcheck(product, (x, values), fast_mode=True)


@pytest.mark.parametrize("batch", [1, 7, 16, 33, 64, 70, 200])
def test_it_is_the_product_with_the_matrix_of_the_pattern(batch):
    pattern = fan_in(300, 90, 12)
    values, x = torch.randn(300, 12), torch.randn(batch, 90)
    dense = pattern.unpack(values.reshape(-1, 1, 1))
    exact = x.double() @ dense.double().t()
    bound = 16 * torch.finfo(torch.float32).eps * (x.double().abs() @ dense.double().abs().t())
    for operand in (x, x.t().contiguous().t(), torch.randn(batch, 100)[:, 5:95].copy_(x)):
        y = fan_in_mm(operand, values, pattern)
        assert y.shape == (batch, 300) and y.t().is_contiguous()
        assert bool(((y.double() - exact).abs() <= bound).all())
        half = fan_in_mm(operand.bfloat16(), values.bfloat16(), pattern)
        assert half.dtype == torch.bfloat16


@pytest.mark.parametrize(
    "batch, dtype", [(16, torch.float32), (32, torch.float32), (17, torch.float32), (8, torch.float64)]
)
def test_a_result_that_no_cache_holds(batch, dtype):
    """From 16 MiB on it goes past the caches where its rows are whole vectors: the same bits as in pieces."""
    rows = (17 << 20) // (batch * dtype.itemsize)
    columns = torch.randint(0, 5, (rows, 1), dtype=torch.int32)
    values, x = torch.randn(rows, 1, dtype=dtype), torch.randn(batch, 5, dtype=dtype)
    y = fan_in_mm(x, values, Pattern(None, columns, (rows, 5), (1, 1)))
    assert torch.equal(y, (x.t()[columns[:, 0]] * values).t())


def test_a_column_that_no_row_names_is_not_read():
    pattern = Pattern(None, torch.tensor([[0, 2], [2, 0]], dtype=torch.uint16), (2, 4), (1, 1))
    x = torch.tensor([[1.0, float("nan"), 2.0, float("inf")]])
    assert fan_in_mm(x, torch.ones(2, 2), pattern).tolist() == [[3.0, 3.0]]


def test_compiled_whole():
    pattern = fan_in(6, 9, 3)
    x, values = torch.randn(4, 9, requires_grad=True), torch.randn(6, 3, requires_grad=True)
    compiled = torch.compile(lambda x, values: fan_in_mm(x, values, pattern), fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(fan_in_mm(x, values, pattern).square().sum(), (x, values))
    found = torch.autograd.grad(compiled(x, values).square().sum(), (x, values))
    for got, right in zip(found, expected, strict=True):
        assert torch.equal(got, right)


def test_what_it_refuses():
    pattern, x, values = fan_in(5, 9, 3), torch.randn(4, 9), torch.randn(5, 3)
    offsets = Pattern(pattern.row_offsets(), pattern.indices.reshape(-1), (5, 9), (1, 1))
    with pytest.raises(ValueError, match="pattern must be fan-in, single elements without offsets, got offsets"):
        fan_in_mm(x, values, offsets)
    with pytest.raises(ValueError, match=r"x must have 9 columns.*\(4, 8\)"):
        fan_in_mm(torch.randn(4, 8), values, pattern)
    with pytest.raises(ValueError, match=r"values must have the shape \(5, 3\)"):
        fan_in_mm(x, torch.randn(5, 4), pattern)
    with pytest.raises(TypeError, match=r"values must have x's dtype torch.float32, got torch.float64"):
        fan_in_mm(x, values.double(), pattern)
    with pytest.raises(ValueError, match="backend"):
        fan_in_mm(x, values, pattern, backend="gpu")
    for backend in ("cpu", "reference"):
        broken = pattern.indices.to(torch.int32)
        broken[4, 2] = 9
        with pytest.raises(ValueError, match="indices"):
            fan_in_mm(x, values, Pattern(None, broken, (5, 9), (1, 1)), backend=backend)
        broken[4, 2] = -1
        with pytest.raises(ValueError, match="indices"):
            fan_in_mm(x, values, Pattern(None, broken, (5, 9), (1, 1)), backend=backend)
    assert gs.ops.fan_in_mm(torch.randn(0, 9), values, pattern).shape == (0, 5)
