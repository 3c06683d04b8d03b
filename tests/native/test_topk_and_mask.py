"""Law: `topk_mask` and `mask_` equal their references bit for bit, on every instruction set and number of threads."""

import pytest
import torch
from by_name import cpu
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer import _native
from gossamer.kernels.reference.mask import mask_ as reference_mask_
from gossamer.kernels.reference.select import topk_mask as reference_topk_mask
from gossamer.testing import assert_same_bits

LENGTHS = [0, 1, 63, 64, 65, 1000, 70_001]  # the last is more than one thread's worth
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.int64, torch.bool]


def scores_of(kind, n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, generator=generator)
    return {
        "distinct": x,
        "ties": (2 * x).round(),  # about nine values, both zeros among them
        "one value": torch.full((n,), -3.5),
        "zeros of both signs": torch.where(x > 0, 0.0, -0.0),
        "denormal": x * 1e-41,
        "infinite": torch.where(x.abs() > 1, x * float("inf"), x),
        "neighbours": (x.mul(9).round().int() + torch.tensor(1.5).view(torch.int32)).view(torch.float32),
        "every magnitude": x * 10.0 ** torch.randint(-44, 38, (n,), generator=generator),
    }[kind]


KINDS = [
    "distinct", "ties", "one value", "zeros of both signs", "denormal", "infinite", "neighbours", "every magnitude",
]  # fmt: skip


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_topk_equals_the_stable_sort(isa, kind, n):
    scores = scores_of(kind, n)
    allowed = torch.rand(n) < 0.6
    for k in {0, 1, n // 3, n - 1, n, n + 5} - {-1}:
        for largest in (True, False):
            for among in (None, allowed):
                ours = cpu.topk_mask(scores, k, largest, among)
                assert_same_bits(ours, reference_topk_mask(scores, k, largest, among))
                assert int(ours.sum()) == min(k, n if among is None else int(allowed.sum()))


def test_ties_go_to_the_lowest_index_across_threads(isa):
    scores = torch.zeros(100_003)
    scores[::7] = 1
    best, k = -(-100_003 // 7), 50_000
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        chosen = cpu.topk_mask(scores, k)
        others = chosen & (scores == 0)
        assert chosen[::7].all() and int(others.sum()) == k - best
        zeros = (scores == 0).nonzero().flatten()
        assert torch.equal(others.nonzero().flatten(), zeros[: k - best])


def test_nan_is_refused_where_allowed_and_ignored_elsewhere(isa):
    for n in (1, 64, 70_001):
        for bits in (0x7FC00000, -0x400000, 0x7F800001, -1):  # quiet and signalling, both signs
            scores, allowed = torch.randn(n), torch.ones(n, dtype=torch.bool)
            scores.view(torch.int32)[n - 1] = bits
            assert scores[n - 1].isnan()
            for k in (0, 1, n):
                with pytest.raises(ValueError, match="scores must not contain NaN"):
                    cpu.topk_mask(scores, k)
            allowed[n - 1] = False
            assert_same_bits(cpu.topk_mask(scores, n, True, allowed), allowed)


@settings(max_examples=150, deadline=None)
@given(
    scores=st.lists(st.floats(width=32, allow_nan=False), max_size=200), k=st.integers(0, 210), largest=st.booleans(),
    seed=st.integers(0, 99) | st.none(), name=st.sampled_from(_native.available_isas()),
)  # fmt: skip
def test_any_scores(scores, k, largest, seed, name):
    before = _native.isa()
    _native.set_isa(name)
    try:
        scores = torch.tensor(scores, dtype=torch.float32)
        allowed = None
        if seed is not None:
            allowed = torch.rand(scores.numel(), generator=torch.Generator().manual_seed(seed)) < 0.5
        ours = cpu.topk_mask(scores, k, largest, allowed)
        assert_same_bits(ours, reference_topk_mask(scores, k, largest, allowed))
    finally:
        _native.set_isa(before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", LENGTHS)
def test_mask(isa, n, dtype):
    x = (torch.randn(n) * 50).to(dtype)
    mask = torch.rand(n) < 0.5
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        ours = x.clone()
        assert cpu.mask_(ours, mask) is ours
        assert_same_bits(ours, reference_mask_(x.clone(), mask))
    for whole in (torch.ones_like(mask), torch.zeros_like(mask)):
        assert_same_bits(cpu.mask_(x.clone(), whole), x if whole.all() else torch.zeros_like(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_masked_nan_and_infinity_become_positive_zero(isa, dtype):
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, -1.0] * 40, dtype=dtype)
    mask = torch.arange(200) % 2 == 0
    kept = x.clone()
    cpu.mask_(x, mask)
    assert_same_bits(x[1::2], torch.zeros(100, dtype=dtype))
    assert_same_bits(x[::2], kept[::2])


def test_mask_of_a_matrix_and_of_an_unaligned_view(isa):
    x = torch.randn(33, 7)
    mask = torch.rand(33, 7) < 0.5
    expected = x * mask
    assert torch.equal(cpu.mask_(x.clone(), mask), expected)
    base = torch.randn(1001)
    outside = base[0].clone()
    cpu.mask_(base[1:], torch.zeros(1000, dtype=torch.bool))
    assert torch.equal(base[0], outside) and not base[1:].any()


def test_mask_tells_autograd_that_the_tensor_changed(isa):
    weight = torch.randn(8, requires_grad=True)
    loss = (weight * weight).sum()
    with torch.no_grad():
        cpu.mask_(weight, torch.rand(8) < 0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
