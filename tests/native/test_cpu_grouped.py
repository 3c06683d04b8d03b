"""Law: grouped products equal a loop over the groups, on every instruction set and team, however rows are dealt out."""

from itertools import pairwise

import pytest
import torch

from gossamer.kernels import cpu
from gossamer.testing import assert_same_bits, assert_within, gamma

# tokens, k, n: around a tile of registers, a block of 256 deep and one of 512 columns.
SHAPES = [(1, 1, 1), (100, 40, 33), (300, 70, 7), (40, 300, 600), (700, 33, 64)]
ROUTES = ["even", "skewed", "one", "none"]


def offsets_of(tokens, groups, route):
    if route == "even":
        ends = torch.arange(1, groups + 1) * tokens // groups
    elif route == "skewed":  # many small groups, some of them empty
        ends = (torch.rand(groups).pow(4).sort().values * tokens).long()
    else:
        ends = torch.full((groups,), tokens if route == "one" else 0)
    return torch.nn.functional.pad(ends, (1, 0))


def integers(*shape, dtype=torch.float32):
    return torch.randint(-4, 5, shape).to(dtype)


def places(tokens, spare, dtype):
    """Sources that repeat, targets that do not, among `spare` more rows."""
    return torch.randint(0, tokens, (tokens,)).to(dtype), torch.randperm(tokens + spare)[:tokens].to(dtype)


def mm(x, source, target, offsets, weights, flip, out_rows):
    """The oracle, in float64."""
    y = torch.zeros(out_rows, weights.shape[1 if flip else 2], dtype=torch.float64)
    for matrix, (start, end) in zip(weights.double(), pairwise(offsets.tolist()), strict=True):
        y[target[start:end].long()] = x.double()[source[start:end].long()] @ (matrix.t() if flip else matrix)
    return y


def outer(x, dy, source, target, offsets):
    spans = pairwise(offsets.tolist())
    return torch.stack([x.double()[source[s:e].long()].t() @ dy.double()[target[s:e].long()] for s, e in spans])


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_integers_are_exact(isa, shape, route):
    tokens, k, n = shape
    for groups, dtype, numbers in ((1, torch.float32, torch.int32), (6, torch.float32, torch.int64),
                                   (17, torch.float64, torch.int32)):  # fmt: skip
        offsets = offsets_of(tokens, groups, route)
        source, target = places(tokens, 3, numbers)
        x, dy = integers(tokens, k, dtype=dtype), integers(tokens + 3, n, dtype=dtype)
        for flip in (False, True):
            weights = integers(groups, *((n, k) if flip else (k, n)), dtype=dtype)
            y = cpu.grouped_mm(x, source, target, offsets, weights, flip, tokens + 3)
            assert y.dtype == dtype
            assert torch.equal(y.double(), mm(x, source, target, offsets, weights, flip, tokens + 3))
        dw = cpu.grouped_outer(x, dy, source, target, offsets)
        assert torch.equal(dw.double(), outer(x, dy, source, target, offsets))


def test_no_lists_means_in_order(isa):
    offsets, here = torch.tensor([0, 20, 20, 50]), torch.arange(50)
    x, dy, weights = integers(50, 30), integers(50, 40), integers(3, 30, 40)
    for source, target in ((None, None), (here, None), (None, here)):
        y = cpu.grouped_mm(x, source, target, offsets, weights, False, 50)
        assert torch.equal(y.double(), mm(x, here, here, offsets, weights, False, 50))
        dw = cpu.grouped_outer(x, dy, source, target, offsets)
        assert torch.equal(dw.double(), outer(x, dy, here, here, offsets))


def test_places_beyond_the_last_group_are_not_looked_at(isa):
    offsets = torch.tensor([0, 2, 3])
    source, target = torch.tensor([1, 0, 1, 10**9]), torch.tensor([4, 0, 2, -(10**9)])
    x, weights = integers(2, 30), integers(2, 30, 40)
    y = cpu.grouped_mm(x, source, target, offsets, weights, False, 5)
    assert torch.equal(y.double(), mm(x, source[:3], target[:3], offsets, weights, False, 5))
    dw = cpu.grouped_outer(x, y, source, target, offsets)
    assert torch.equal(dw.double(), outer(x, y, source[:3], target[:3], offsets))


def test_a_group_may_begin_later(isa):
    """Offsets that do not start at zero: the positions before belong to nobody."""
    offsets = torch.tensor([4, 9, 12])
    here = torch.arange(12)
    x, weights = integers(12, 30), integers(2, 30, 40)
    expected = mm(x, here, here, offsets, weights, False, 12)
    assert torch.equal(cpu.grouped_mm(x, None, None, offsets, weights, False, 12).double(), expected)


def test_5000_tokens_on_one_of_64_experts(isa):
    """No capacity to overflow: a fixed room of 4096 tokens per expert once gave wrong numbers without a word."""
    offsets = torch.zeros(65, dtype=torch.int64)
    offsets[38:] = 5000
    order = torch.randperm(5000)
    x, weights, dy = integers(5000, 24), integers(64, 24, 40), integers(5000, 40)
    y = cpu.grouped_mm(x, order, order, offsets, weights, False, 5000)
    assert torch.equal(y.double(), x.double() @ weights[37].double())
    dw = cpu.grouped_outer(x, dy, order, order, offsets)
    assert torch.equal(dw[37].double(), x.double().t() @ dy.double())
    assert not dw[:37].any() and not dw[38:].any()


@pytest.mark.parametrize("route", ROUTES[:3])
def test_error_bound(isa, route):
    for dtype in (torch.float32, torch.float64):
        offsets = offsets_of(90, 5, route)
        source, target = places(90, 0, torch.int64)
        x, dy, weights = (torch.randn(*s, dtype=dtype) for s in ((90, 300), (90, 45), (5, 300, 45)))
        y = cpu.grouped_mm(x, source, target, offsets, weights, False, 90)
        bound = gamma(300, dtype) * mm(x.abs(), source, target, offsets, weights.abs(), False, 90)
        assert_within(y, mm(x, source, target, offsets, weights, False, 90), bound)
        dw = cpu.grouped_outer(x, dy, source, target, offsets)
        bound = gamma(90, dtype) * outer(x.abs(), dy.abs(), source, target, offsets)
        assert_within(dw, outer(x, dy, source, target, offsets), bound)


@pytest.mark.parametrize("shape", [(40, 300, 600), (700, 33, 64)], ids=str)
@pytest.mark.parametrize("route", ROUTES[:3])
def test_bits_do_not_depend_on_threads(isa, route, shape):
    tokens, k, n = shape
    offsets = offsets_of(tokens, 6, route)
    source, target = places(tokens, 2, torch.int32)
    x, dy, weights = torch.randn(tokens, k), torch.randn(tokens + 2, n), torch.randn(6, k, n)

    def both():
        flipped = weights.transpose(1, 2).contiguous()
        y = cpu.grouped_mm(x, source, target, offsets, weights, False, tokens + 2)
        assert_same_bits(cpu.grouped_mm(x, source, target, offsets, flipped, True, tokens + 2), y)
        return y, cpu.grouped_outer(x, dy, source, target, offsets)

    one = both()
    for threads in (2, 3, 7):
        torch.set_num_threads(threads)
        for ours, theirs in zip(both(), one, strict=True):
            assert_same_bits(ours, theirs)


def test_weights_of_an_empty_group_never_take_part(isa):
    offsets = torch.tensor([0, 3, 3, 5])
    x, weights = integers(5, 20), integers(3, 20, 30)
    weights[1] = float("nan")
    assert not cpu.grouped_mm(x, None, None, offsets, weights, False, 6).isnan().any()
    x = torch.cat([x, torch.full((1, 20), float("inf"))])  # a token that nobody owns
    assert not cpu.grouped_outer(x, integers(6, 30), None, None, offsets).isnan().any()


@pytest.mark.parametrize("shape", [(0, 5, 4), (5, 0, 4), (5, 4, 0)], ids=str)
def test_empty(isa, shape):
    tokens, k, n = shape
    for groups in (0, 2):
        offsets = torch.zeros(groups + 1, dtype=torch.int64)
        offsets[1:] = tokens
        y = cpu.grouped_mm(torch.ones(tokens, k), None, None, offsets, torch.ones(groups, k, n), False, 7)
        assert y.shape == (7, n) and int(y.sum()) == (tokens * k * n if groups else 0)
        dw = cpu.grouped_outer(torch.ones(tokens, k), torch.ones(tokens, n), None, None, offsets)
        assert dw.shape == (groups, k, n) and int(dw.sum()) == (tokens * k * n if groups else 0)


X, W, S, T, ENDS = torch.ones(4, 3), torch.ones(2, 3, 5), torch.arange(4), torch.arange(4), torch.tensor([0, 1, 4])
REFUSED = [
    ("dtype", lambda: cpu.grouped_mm(X.half(), S, T, ENDS, W, False, 4), TypeError, r"x must have .*float16"),
    ("mixed", lambda: cpu.grouped_mm(X, S, T, ENDS, W.double(), False, 4), TypeError, r"weights must have .*float64"),
    ("groups", lambda: cpu.grouped_mm(X, S, T, ENDS[1:], W, False, 4), ValueError, r"weights must be 1 matrices"),
    ("inner", lambda: cpu.grouped_mm(X, S, T, ENDS, W, True, 4), ValueError, r"with 3 columns, got shape \(2, 3, 5\)"),
    ("source", lambda: cpu.grouped_mm(X, S.short(), T, ENDS, W, False, 4), TypeError, r"source must have .*int16"),
    ("rows", lambda: cpu.grouped_mm(X, S, T, ENDS, W, False, -1), ValueError, r"out_rows must be at least 0, got -1"),
    ("dy", lambda: cpu.grouped_outer(X, X.double(), S, T, ENDS), TypeError, r"dy must have .*float64"),
    ("offsets", lambda: cpu.grouped_outer(X, X, S, T, ENDS[:0]), ValueError, r"an entry more than there are groups"),
]  # fmt: skip
CHECKED = [
    ("source", lambda: cpu.grouped_mm(X, S + 1, T, ENDS, W, False, 4), r"source\[3\] is 4, expected 0 <= row < 4"),
    ("target", lambda: cpu.grouped_mm(X, S, T - 1, ENDS, W, False, 4), r"target\[0\] is -1"),
    ("few", lambda: cpu.grouped_mm(X, S, T, ENDS, W, False, 3), r"target\[3\] is 3"),
    ("twice", lambda: cpu.grouped_mm(X, S, T * 0, ENDS, W, False, 4), r"target must not name a row twice"),
    ("long", lambda: cpu.grouped_mm(X, S[:3], T, ENDS, W, False, 4), r"offsets must end at most at 3.*source, got 4"),
    ("none", lambda: cpu.grouped_outer(X, X, None, T, ENDS + 1), r"offsets must end at most at 4.*source, got 5"),
    ("falling", lambda: cpu.grouped_outer(X, X, S, T, ENDS.flip(0)), r"never decrease, got \[4, 1, 0\]"),
]


@pytest.mark.parametrize(("call", "error", "message"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(("call", "message"), [r[1:] for r in CHECKED], ids=[r[0] for r in CHECKED])
def test_checked_before_memory_is_touched(monkeypatch, call, message):
    monkeypatch.setenv("GOSSAMER_CHECK", "1")
    with pytest.raises(ValueError, match=message):
        call()
