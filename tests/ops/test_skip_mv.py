"""Law: skip_mv and gated_mv are their formulas, and so are their gradients, to any order; what is skipped stays out."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck

import gossamer as gs
from gossamer.testing import assert_no_recompile, assert_within, gamma

BATCHES = pytest.mark.parametrize("batch", [(), (1,), (3,), (9,)], ids=str)


def integers(*shape, density=1.0, dtype=torch.float32):
    return (torch.randint(-4, 5, shape) * (torch.rand(shape) < density)).to(dtype)


def skipped(x, w, bias, threshold):
    return torch.where(x.abs() <= threshold, 0, x) @ w + bias


def gated(x, w, gate, bias):
    return gate * (x @ w.t() + bias)


def gradients(y, operands):
    """Of a sum with weights, so that no gradient is one number."""
    return torch.autograd.grad((y * torch.arange(y.numel()).view(y.shape)).sum(), operands)


@BATCHES
@pytest.mark.parametrize("threshold", [0.0, 1.5], ids=str)
def test_skip_mv_and_its_gradients(batch, threshold):
    x, w, bias = integers(*batch, 40, density=0.5), integers(40, 70), integers(70)
    operands = [value.requires_grad_() for value in (x, w, bias)]
    y = gs.ops.skip_mv(*operands, threshold=threshold)
    # With threshold 0 the function is x @ w: the gradient of a zero is that of any other x.
    expected = skipped(x, w, bias, threshold) if threshold else x @ w + bias
    assert torch.equal(y, expected)
    for got, want in zip(gradients(y, operands), gradients(expected, operands), strict=True):
        assert torch.equal(got, want)


@BATCHES
def test_gated_mv_and_its_gradients(batch):
    x, w, gate, bias = integers(*batch, 40), integers(70, 40), integers(*batch, 70, density=0.4), integers(70)
    operands = [value.requires_grad_() for value in (x, w, gate, bias)]
    y, expected = gs.ops.gated_mv(*operands), gated(*operands)
    assert torch.equal(y, expected)
    for got, want in zip(gradients(y, operands), gradients(expected, operands), strict=True):
        assert torch.equal(got, want)


def test_gradcheck_twice():
    x, w, bias = torch.randn(3, 5), torch.randn(5, 4), torch.randn(4)
    x[0, 1] = x[2, 2] = 0
    gate = torch.randn(3, 4)
    gate[1, 1] = gate[0, 2] = 0
    x, w, bias, gate = (value.double().requires_grad_() for value in (x, w, bias, gate))
    for threshold in (0.0, 0.5):
        operands = (x, w, bias)

        def skip(x, w, bias, threshold=threshold):
            return gs.ops.skip_mv(x, w, bias, threshold=threshold, backend="reference")

        assert gradcheck(skip, operands, fast_mode=True) and gradgradcheck(skip, operands, fast_mode=True)
    operands = (x, w.detach().t().contiguous().requires_grad_(), gate, bias)
    assert gradcheck(lambda *args: gs.ops.gated_mv(*args, backend="reference"), operands, fast_mode=True)
    assert gradgradcheck(lambda *args: gs.ops.gated_mv(*args, backend="reference"), operands, fast_mode=True)


def test_a_second_derivative_on_the_cpu():
    x, w, gate = integers(2, 9, density=0.5), integers(6, 9), integers(2, 6, density=0.5)
    operands = [value.requires_grad_() for value in (x, w, gate)]
    for y in (lambda x, w, g: gs.ops.gated_mv(x, w, g), lambda x, w, g: g * gs.ops.skip_mv(x, w.t())):
        (first,) = torch.autograd.grad(y(*operands).pow(2).sum(), x, create_graph=True)
        (expected,) = torch.autograd.grad(gated(*operands, 0).pow(2).sum(), x, create_graph=True)
        assert torch.equal(first, expected)
        for got, want in zip(gradients(first, operands), gradients(expected, operands), strict=True):
            assert torch.equal(got, want)


def test_rows_of_dropped_inputs_reach_neither_output_nor_gradient():
    x, w = torch.tensor([[0.1, 2.0, -0.2]], requires_grad=True), torch.full((3, 40), torch.nan)
    w[1] = 3
    y = gs.ops.skip_mv(x, w.requires_grad_(), threshold=0.5)
    grad_x, grad_w = torch.autograd.grad(y, (x, w), torch.full((1, 40), torch.inf))
    assert (y == 6).all() and grad_x.tolist() == [[0, torch.inf, 0]]
    assert (grad_w[1] == torch.inf).all() and (grad_w[::2] == 0).all()


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("rows", [1, 2, 7])
def test_short_weights(rows, wide, half):
    """Half weights beside float32 activations, and everything in the half type; sums are float32 in both."""
    stored = torch.float32 if wide else half
    x, w, gate = torch.randn(rows, 300).relu(), torch.randn(300, 200).to(half), torch.randn(rows, 200).relu()
    x, gate = x.to(stored), gate.to(stored)
    bound = gamma(301, torch.float32) * (x.double().abs() @ w.double().abs())
    y = gs.ops.skip_mv(x, w)
    assert y.dtype == stored
    assert_within(y, x.double() @ w.double(), bound)
    y = gs.ops.gated_mv(x, w.t().contiguous(), gate)
    assert y.dtype == stored
    assert_within(y, gate.double() * (x.double() @ w.double()), gate.double() * bound)
    for operands in ((x, w), (x, w.t().contiguous(), gate)):
        operands = [value.clone().requires_grad_() for value in operands]
        op = gs.ops.skip_mv if len(operands) == 2 else gs.ops.gated_mv
        for value, grad in zip(operands, torch.autograd.grad(op(*operands).sum(), operands), strict=True):
            assert grad.dtype == value.dtype and grad.shape == value.shape


@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize(("c", "k"), [(0, 5), (7, 0), (40, 70)])
def test_opcheck(batch, c, k):
    x, w, bias, gate = integers(batch, c, density=0.5), integers(c, k), integers(k), integers(batch, k, density=0.5)
    opcheck(torch.ops.gossamer.skip_mv.default, (x, w, bias, torch.tensor(0.5)))
    opcheck(torch.ops.gossamer.gated_mv.default, (x, w.t().contiguous(), bias, gate))


def test_compiles_whole_and_other_zeros_compile_nothing():
    w, up = integers(40, 70).requires_grad_(), integers(40, 70).requires_grad_()

    def through(x, gate):
        y = gs.ops.gated_mv(x, up, gate)
        return gs.ops.skip_mv(y, w, threshold=0.5)

    compiled = torch.compile(through, fullgraph=True, backend="aot_eager")

    def step(function, seed):
        torch.manual_seed(seed)
        y = function(integers(2, 70), integers(2, 40, density=seed / 10))
        return y, *gradients(y, (w, up))

    step(compiled, 0)
    with assert_no_recompile():
        for seed in range(10):
            for one, two in zip(step(compiled, seed), step(through, seed), strict=True):
                assert torch.equal(one, two)


X, W, GATE = torch.ones(2, 3), torch.ones(3, 4), torch.ones(2, 4)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (TypeError, "x must be a tensor, got list", lambda: gs.ops.skip_mv([1.0], W)),
        (ValueError, r"x must have shape \[B, C\] or \[C\], got \(1, 2, 3\)", lambda: gs.ops.skip_mv(X[None], W)),
        (ValueError, r"w must have 3 rows, as x has entries, got \(4, 3\)", lambda: gs.ops.skip_mv(X, W.t())),
        (ValueError, r"w must have 3 columns, as x has", lambda: gs.ops.gated_mv(X, W, GATE)),
        (TypeError, "x must be float32, bfloat16 or float16 on a CPU", lambda: gs.ops.skip_mv(X.double(), W.double())),
        (TypeError, "x must be of a float dtype", lambda: gs.ops.skip_mv(X.int(), W.int(), backend="reference")),
        (TypeError, "w must have x's dtype torch.float32, or be a half", lambda: gs.ops.skip_mv(X, W.double())),
        (TypeError, "w must have x's dtype torch.bfloat16", lambda: gs.ops.skip_mv(X.bfloat16(), W)),
        (ValueError, r"bias must have shape \(4,\)", lambda: gs.ops.skip_mv(X, W, X[0])),
        (TypeError, "bias must have x's dtype", lambda: gs.ops.skip_mv(X, W, GATE[0].double())),
        (ValueError, "threshold must be at least 0, got -1", lambda: gs.ops.skip_mv(X, W, threshold=-1)),
        (ValueError, "threshold must be at least 0, got nan", lambda: gs.ops.skip_mv(X, W, threshold=float("nan"))),
        (TypeError, "threshold must be a number, got str", lambda: gs.ops.skip_mv(X, W, threshold="1")),
        (ValueError, r"gate must have shape \(2, 4\), .* got \(4,\)", lambda: gs.ops.gated_mv(X, W.t(), GATE[0])),
        (TypeError, "gate must have x's dtype", lambda: gs.ops.gated_mv(X, W.t(), GATE > 0)),
        (TypeError, "gate must be a tensor, got int", lambda: gs.ops.gated_mv(X, W.t(), 1)),
        (ValueError, "backend='triton' needs x on cuda", lambda: gs.ops.skip_mv(X, W, backend="triton")),
    ],
)
def test_bad_input_is_named(error, message, call):
    with pytest.raises(error, match=message):
        call()
