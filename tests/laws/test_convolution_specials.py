"""Law: -0.0 is zero, a denormal and NaN are not, and what is zero meets no weight, whatever that holds."""

import pytest
import torch
import torch.nn.functional as F
from backends import CPU, REFERENCE, on

import gossamer as gs

backends = on((REFERENCE, *CPU))
TINY = 2.0**-149
BIG = 2.0**100


def conv(x, weight, backend, **options):
    return gs.ops.conv2d(x, weight, padding=1, skip="input", backend=backend.kernels, **options)


def at(n, c, h, w, *place, value, fill=0.0):
    x = torch.full((n, h, w, c), fill)
    x[place] = value
    return x.permute(0, 3, 1, 2)


@backends
@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_what_is_zero_meets_no_weight(value, backend):
    """Documented: dense gives NaN, 0 * inf. -0.0 is skipped like 0.0."""
    weight = torch.ones(40, 32, 3, 3)
    weight[:, 5] = value
    for zero in (0.0, -0.0):
        x = at(1, 32, 6, 6, ..., 5, value=zero, fill=1.0)
        y = conv(x, weight, backend)
        assert torch.equal(y, F.conv2d(x, torch.ones_like(weight).index_fill_(1, torch.tensor(5), 0), padding=1))
        assert F.conv2d(x, weight, padding=1).isnan().all()
    x = at(1, 32, 6, 6, 0, 3, 3, 5, value=1.0)  # one element that is not zero: its weights count
    assert conv(x, weight, backend)[0, :, 2:5, 2:5].isfinite().logical_not().all()
    assert conv(x, weight, backend)[0, :, :2].eq(0).all()


@backends
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_reaches_all_it_touches(value, backend):
    x = at(2, 32, 6, 6, 1, 3, 3, 5, value=value)
    y = conv(x, torch.ones(40, 32, 3, 3), backend)
    touched = torch.zeros(2, 40, 6, 6, dtype=torch.bool)
    touched[1, :, 2:5, 2:5] = True
    assert torch.equal(~y.isfinite(), touched) and (y[~touched] == 0).all()
    assert torch.equal(y.isnan(), torch.isnan(F.conv2d(x, torch.ones(40, 32, 3, 3), padding=1)) & touched)
    y = gs.ops.linear(x[1].flatten(1).t(), torch.ones(24, 32), skip="input", backend=backend.kernels)
    assert torch.equal((~y.isfinite()).any(1), torch.arange(36) == 21)


@backends
def test_a_denormal_is_not_zero(backend):
    x = at(1, 32, 6, 6, 0, 3, 3, 5, value=TINY)
    y = conv(x, torch.full((40, 32, 3, 3), BIG), backend)
    assert (y[0, :, 2:5, 2:5] == TINY * BIG).all() and y.count_nonzero() == 40 * 9
    site = gs.planner.Site()
    conv(x, torch.ones(40, 32, 3, 3), backend, site=site)
    assert site.stats()["forward"]["density"]["x"] == 1 / x.numel()


@backends
@pytest.mark.parametrize("relu", [False, True])
def test_a_gradient_that_is_zero_meets_nothing(relu, backend):
    """The input gradient skips zeros of dy, which a relu's bits may make; the weight gradient those of the sparser."""
    x = torch.ones(1, 32, 4, 4, requires_grad=True)
    weight = torch.ones(40, 32, 3, 3)
    weight[7] = -1.0  # off under the relu
    weight.requires_grad_()
    y = conv(x, weight, backend, relu=relu)
    dy = torch.ones_like(y)
    dy[:, 7] = torch.nan if relu else 0.0
    with torch.no_grad():
        saved = weight[7].clone()
    dx, dw = torch.autograd.grad(y, (x, weight), dy, retain_graph=True)
    assert dx.isfinite().all() and dw[7].eq(0).all() and dw[:7].gt(0).all()
    expected = torch.autograd.grad(F.conv2d(x, weight, padding=1), (x, weight), dy.nan_to_num(0.0))
    assert torch.equal(dx, expected[0]) and torch.equal(dw, expected[1]) and saved.eq(-1).all()


@backends
def test_nan_in_a_relu(backend):
    """A NaN stays NaN and lets its gradient through, as torch's relu."""
    x = at(1, 32, 4, 4, 0, 1, 1, 3, value=torch.nan)
    weight = torch.ones(40, 32, 3, 3, requires_grad=True)
    bias = torch.ones(40, requires_grad=True)
    found = []
    for y in (
        gs.ops.conv2d(x, weight, bias, padding=1, skip="input", relu=True, backend=backend.kernels),
        F.conv2d(x, weight, bias, padding=1).relu(),
    ):
        found.append((y.isnan(), torch.autograd.grad(y, bias, torch.ones_like(y))[0]))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
