"""Statistical top-k: the formula in float64, its count on normal rows, its gradient, its edges."""

import math
import statistics

import pytest
import torch

import gossamer as gs


def formula(x: torch.Tensor, k: int) -> torch.Tensor:
    """Row by row, with Python's own numbers."""
    rows = []
    for row in x.double().flatten(0, -2).tolist():
        z = statistics.NormalDist().inv_cdf(1 - k / len(row))
        t = statistics.mean(row) + statistics.stdev(row) * z
        rows.append([max(v - t, 0.0) for v in row])
    return torch.tensor(rows, dtype=torch.float64).view(x.shape)


def student_tail(t: float, degrees: int) -> float:
    """P(T > t), by the trapezoidal rule on [0, t]."""
    scale = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(degrees * math.pi)
    grid = torch.linspace(0, t, 20001, dtype=torch.float64)
    return 0.5 - scale * float(torch.trapezoid((1 + grid.square() / degrees) ** (-(degrees + 1) / 2), grid))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("d", "k"), [(2, 1), (7, 3), (64, 5), (64, 60)])
def test_equals_the_formula(dtype, d, k):
    x = (3 * torch.randn(2, 5, d) - 1).to(dtype)
    y = gs.ops.statistical_topk(x, k)
    assert y.dtype == dtype and y.shape == x.shape
    # y = x - t: a few roundings at the size of x, and one of the result in its own type.
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    bound = 8 * torch.finfo(wide).eps * x.double().abs().sum(-1, keepdim=True) + torch.finfo(dtype).eps * y.double()
    assert bool(((y.double() - formula(x, k)).abs() <= bound + torch.finfo(dtype).tiny).all())


@pytest.mark.parametrize(("d", "k"), [(8, 2), (32, 3), (1024, 82)])
def test_count_on_normal_rows_is_the_stated_one(d, k):
    """The mean over many rows, within five of its standard errors of the stated expectation."""
    rows = 20000 if d < 100 else 2000
    kept = gs.ops.statistical_topk(5 * torch.randn(rows, d) + 11, k).count_nonzero(-1).double()
    z = statistics.NormalDist().inv_cdf(1 - k / d)
    expected = d * student_tail(z * math.sqrt(d * (d - 2) / ((d - 1) ** 2 - d * z * z)), d - 2)
    assert abs(kept.mean() - expected) < 5 * kept.std() / math.sqrt(rows)
    if d == 1024:
        assert abs(expected - k) < 0.01 * k


def test_count_on_other_rows_stays_below_cantelli():
    d, k = 500, 40
    z = statistics.NormalDist().inv_cdf(1 - k / d)
    rows = torch.stack(
        [torch.rand(d), torch.randn(d).exp(), torch.randn(d).sign(), torch.zeros(d).index_fill(0, torch.tensor(3), 1.0)]
    )
    kept = gs.ops.statistical_topk(rows, k).count_nonzero(-1)
    assert bool((kept <= d / (1 + z * z)).all())
    assert kept.tolist()[3] == 1  # a single spike is all there is above
    assert int(kept[2]) == 0  # two equal heaps: the threshold lies above both


def test_any_dim_and_layout():
    x = torch.randn(6, 9, 4)
    assert torch.equal(gs.ops.statistical_topk(x, 2, dim=1), gs.ops.statistical_topk(x.mT, 2).mT)
    assert torch.equal(gs.nn.StatisticalTopK(2, dim=0)(x), gs.ops.statistical_topk(x, 2, dim=0))


def test_gradients_through_mean_and_spread():
    x = torch.randn(3, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: gs.ops.statistical_topk(x, 3), x)
    assert torch.autograd.gradgradcheck(lambda x: gs.ops.statistical_topk(x, 3), x)
    gs.ops.statistical_topk(x, 3).sum().backward()
    assert bool((x.grad[gs.ops.statistical_topk(x.detach(), 3) == 0] != 0).any())  # not ReLU's mask


def test_edges():
    x = torch.full((2, 5), 7.0, requires_grad=True)
    y = gs.ops.statistical_topk(x, 2)
    y.sum().backward()
    assert not y.any() and not x.grad.any()  # no spread: zeros, and no NaN in the gradient
    assert gs.ops.statistical_topk(torch.randn(0, 5), 2).shape == (0, 5)
    before = torch.randn(4, 6)
    after = before.clone()
    gs.ops.statistical_topk(after, 2)
    assert torch.equal(before, after)
    rows = torch.randn(2, 6).index_fill(1, torch.tensor(2), float("nan"))
    rows[1] = torch.randn(6)
    assert gs.ops.statistical_topk(rows, 2)[0].isnan().all() and not gs.ops.statistical_topk(rows, 2)[1].isnan().any()


def test_compiles_whole():
    x = torch.randn(4, 16)
    compiled = torch.compile(lambda x: gs.ops.statistical_topk(x, 3), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), gs.ops.statistical_topk(x, 3))


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda: gs.ops.statistical_topk([1.0], 1), TypeError, "x must be a tensor, got list"),
    (lambda: gs.ops.statistical_topk(torch.arange(4), 1), TypeError, "x must be a float tensor, got torch.int64"),
    (lambda: gs.ops.statistical_topk(torch.randn(4), 4), ValueError, "k must be less than 4, .* dim -1, got 4"),
    (lambda: gs.ops.statistical_topk(torch.randn(4), 0), ValueError, "k must be at least 1, got 0"),
    (lambda: gs.ops.statistical_topk(torch.randn(4), 0.5), TypeError, "k must be an int, got float"),
    (lambda: gs.ops.statistical_topk(torch.randn(4), 1, dim=2), IndexError, "out of range"),
    (lambda: gs.nn.StatisticalTopK(-1), ValueError, "k must be at least 1, got -1"),
])  # fmt: skip
def test_refuses(call, error, message):
    with pytest.raises(error, match=message):
        call()
