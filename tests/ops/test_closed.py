"""Neurons that are certainly off: never one that is on, for any numbers; and results are those of dense products."""

import pytest
import torch
import torch.nn.functional as F

from gossamer.handles import owner_of
from gossamer.kernels.cpu.open_mv import open_mv
from gossamer.kernels.reference import open_mv as reference
from gossamer.ops import closed
from gossamer.ops.closed import closing_tuner, gated_linear, open_neurons, relu_linear
from gossamer.planner import Tuner

WEIGHTS = {
    "normal": lambda k, c: torch.randn(k, c),
    "tiny": lambda k, c: torch.randn(k, c) * 1e-30,
    "large": lambda k, c: torch.randn(k, c) * 1e15,
    "one large in each row": lambda k, c: torch.randn(k, c).index_fill(1, torch.tensor([0]), 50.0),
    "rows of all sizes": lambda k, c: torch.randn(k, c) * torch.logspace(-20, 10, k)[:, None],
    "rows of zeros": lambda k, c: torch.randn(k, c) * (torch.arange(k) % 3 > 0)[:, None],
    "whole numbers": lambda k, c: torch.randint(-3, 4, (k, c)).float(),
}


@pytest.mark.parametrize("weights", WEIGHTS)
def test_no_neuron_that_is_on_is_left_out(isa, weights):
    torch.manual_seed(0)
    for c in (1, 7, 64, 200):
        w = WEIGHTS[weights](90, c)
        x = torch.randn(3, c) * torch.tensor([1.0, 1e-3, 1e3])[:, None]
        exact = x.double() @ w.double().t()
        # biases that leave every product a hair above or below zero, on one row of x or the other
        for row, nudge in ((0, 1e-6), (1, -1e-6), (2, 1e-3), (0, 0.0)):
            bias = (-exact[row] * (1 + nudge)).float()
            on = exact + bias.double() > 0
            assert not (on & (open_neurons(x, w, bias) == 0)).any()
        assert not ((exact > 0) & (open_neurons(x, w, None) == 0)).any()


def test_the_bound_holds_where_it_is_reached():
    """x along what the whole numbers leave out, so that their product is off by all of |d| |x|."""
    torch.manual_seed(0)
    w = torch.randn(64, 512)
    d = w.double() - closed._whole(w).double() * closed._scale(w).double()
    for row in range(64):
        x = d[row : row + 1].float()
        bias = -(x.double() @ w.double().t())[0].float() * (1 - 1e-4)  # the neuron is on by a ten-thousandth
        assert open_neurons(x, w, bias)[0, row] == 1
        bias = bias - 2.5 * float(d[row].norm() * x.double().norm())
        assert open_neurons(x, w, bias)[0, row] == 0


def test_it_leaves_out_most_of_what_is_off():
    torch.manual_seed(0)
    w, x = torch.randn(2000, 768), torch.randn(4, 768)
    bias = torch.full((2000,), -1.3 * 768**0.5)
    on = (F.linear(x, w, bias) > 0).float().mean()
    assert 0.05 < on < open_neurons(x, w, bias).mean() < on + 0.08


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 3e38])
@pytest.mark.parametrize("where", ["x", "weight", "bias"])
def test_what_is_no_number_is_computed(isa, bad, where):
    torch.manual_seed(0)
    operands = {"x": torch.randn(2, 40), "weight": torch.randn(9, 40), "bias": torch.randn(9)}
    operands[where].view(-1)[3] = bad
    x, w, bias = operands.values()
    exact = F.linear(x.double(), w.double(), bias.double())
    gate = open_neurons(x, w, bias)
    assert not ((gate == 0) & ~(exact < 0)).any()


def test_every_instruction_set_agrees_with_the_reference(isa):
    torch.manual_seed(0)
    for batch, c, k in ((0, 5, 3), (1, 0, 4), (1, 1, 1), (3, 7, 8), (8, 65, 9), (2, 64, 31), (1, 130, 0)):
        x, whole = torch.randn(batch, c), torch.randint(-127, 128, (k, c), dtype=torch.int8)
        edges, bias = torch.rand(2, k), torch.randn(k) * 50
        for addend in (bias, None):
            assert torch.equal(open_mv(x, whole, edges, addend), reference.open_mv(x, whole, edges, addend))


@pytest.mark.parametrize("rows", [1, 3, 8, 9, 30])
@pytest.mark.parametrize("bias", [True, False])
def test_results_are_those_of_dense_products(monkeypatch, rows, bias):
    monkeypatch.setattr(closed, "LEAST", 0)
    torch.manual_seed(0)
    x, w, b = torch.randn(1, rows, 96), torch.randn(257, 96), torch.randn(257) - 15 if bias else None
    gate = torch.randn(1, rows, 257).relu() * (torch.rand(1, rows, 257) < 0.2)
    expected = F.linear(x, w, b)
    torch.use_deterministic_algorithms(True)
    try:
        for function, right in (
            (lambda t: relu_linear(x, w, b, t), expected.relu()),
            (lambda t: gated_linear(x, w, b, gate, t), gate * expected),
        ):
            tuner = closing_tuner()
            for _ in range(2):
                torch.testing.assert_close(function(tuner.handle), right, rtol=1e-5, atol=1e-5)
            paths = {question: found["path"] for question, found in tuner.stats().items()}
            if bias or rows > 8:  # without a bias half of the neurons are on
                assert paths == ({"decode": "closed"} if rows <= 8 else {})
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_changed_weight_is_seen(monkeypatch):
    monkeypatch.setattr(closed, "LEAST", 0)
    torch.manual_seed(0)
    x, w, bias = torch.randn(1, 64), torch.randn(40, 64), torch.full((40,), -10.0)
    first = open_neurons(x, w, bias)
    w.neg_()
    assert not torch.equal(open_neurons(x, w, bias), first)
    w.neg_()
    assert torch.equal(open_neurons(x, w, bias), first)


def test_gradients_are_those_of_the_dense_form():
    x, w, gate = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 5), (7, 5), (2, 7)))
    tuner = closing_tuner()
    assert owner_of(tuner.handle, Tuner) is tuner
    assert torch.autograd.gradcheck(lambda x, w: relu_linear(x, w, None, tuner.handle), (x, w))
    assert torch.autograd.gradcheck(lambda x, w, g: gated_linear(x, w, None, g, tuner.handle), (x, w, gate))
