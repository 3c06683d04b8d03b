"""Law: a grouped product is a loop over the groups: any skew, nothing dropped, gradients included."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gossamer as gs
from gossamer.testing import assert_same_bits, assert_within, gamma

backends = pytest.mark.parametrize("backend", ["reference", "cpu"])
either_way = pytest.mark.parametrize("transposed", [False, True])


def loop(x, weights, ids):
    """One row after another."""
    flat = ids if ids.dim() == 2 else ids.unsqueeze(1)
    rows = [x[t] @ weights[e] if e >= 0 else x[t] @ weights.sum(0) * 0 for t in range(len(x)) for e in flat[t].tolist()]
    y = torch.stack(rows) if rows else x[:0] @ weights.sum(0)
    return y.view(*ids.shape, weights.shape[2])


def product(x, weights, ids, backend, transposed):
    """weights[experts, k, n], laid down as they are or each transposed."""
    stored = weights.mT.contiguous() if transposed else weights
    return gs.ops.grouped_matmul(x, stored, ids, backend=backend, transposed=transposed)


def integers(*shape):
    return torch.randint(-8, 9, shape).float()


ROUTINGS = {
    "uniform": lambda t, e: torch.randint(0, e, (t,)),
    "some dropped": lambda t, e: torch.randint(-1, e, (t,)),
    "all on one": lambda t, e: torch.full((t,), e - 1),
    "none": lambda t, e: torch.full((t,), -1),
    "very negative": lambda t, e: torch.randint(-(2**40), e, (t,)),
    "skewed": lambda t, e: (torch.rand(t) ** 4 * e).long(),
    "top-2": lambda t, e: torch.rand(t, e).topk(2).indices,
    "top-3, some dropped": lambda t, e: torch.randint(-1, e, (t, 3)),
    "one expert twice": lambda t, e: torch.zeros(t, 2, dtype=torch.int64),
    "top-0": lambda t, e: torch.zeros(t, 0, dtype=torch.int64),
}


@backends
@either_way
@pytest.mark.parametrize("routing", ROUTINGS.values(), ids=ROUTINGS)
@pytest.mark.parametrize("shape", [(50, 4, 7, 5), (1, 3, 1, 1), (33, 2, 40, 64), (20, 5, 17, 130)], ids=str)
def test_equals_the_loop(backend, transposed, routing, shape):
    tokens, experts, k, n = shape
    ids = routing(tokens, experts)
    x, weights = integers(tokens, k).requires_grad_(), integers(experts, k, n).requires_grad_()
    y, expected = product(x, weights, ids, backend, transposed), loop(x, weights, ids)
    assert y.shape == (*ids.shape, n) and torch.equal(y, expected)
    dy = integers(*y.shape)
    for one, two in zip(
        torch.autograd.grad(y, (x, weights), dy),
        torch.autograd.grad(expected, (x, weights), dy, materialize_grads=True),
        strict=True,
    ):
        assert torch.equal(one, two)


@backends
def test_five_thousand_tokens_on_one_expert(backend):
    x, weights = integers(5000, 24).requires_grad_(), integers(8, 24, 16).requires_grad_()
    y = gs.ops.grouped_matmul(x, weights, torch.full((5000,), 3), backend=backend)
    assert torch.equal(y, x @ weights[3])
    y.sum().backward()
    assert torch.equal(x.grad, weights[3].sum(1).expand(5000, 24))
    assert torch.equal(weights.grad[3], x.sum(0).unsqueeze(1).expand(24, 16))
    assert not weights.grad[[0, 1, 2, 4, 5, 6, 7]].any()


@backends
@either_way
@pytest.mark.parametrize("tokens", [300, 15, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_reals_within_the_bound(backend, transposed, tokens, dtype):
    experts, k, n = 5, 70, 33
    ids = torch.randint(-1, experts, (tokens, 2))
    x, weights = torch.randn(tokens, k, dtype=dtype), torch.randn(experts, k, n, dtype=dtype)
    y = product(x, weights, ids, backend, transposed)
    assert y.dtype == dtype
    bound = gamma(2 * k, dtype) * loop(x.double().abs(), weights.double().abs(), ids)
    assert_within(y, loop(x.double(), weights.double(), ids), bound)


@either_way
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("k, n", [(300, 130), (17, 65), (64, 3)])
def test_groups_of_every_size(transposed, dtype, k, n):
    """Few rows have ways of their own, and how many are few depends on the layout; threads share groups anywhere."""
    sizes = [1, 2, 3, 4, 5, 6, 7, 0, 13, 27, 28, 29, 43]
    ids = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    ids = ids[torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))]
    x, weights = integers(len(ids), k).to(dtype), integers(len(sizes), k, n).to(dtype)
    assert torch.equal(product(x, weights, ids, "cpu", transposed), loop(x, weights, ids))
    x, weights, before = torch.randn_like(x), torch.randn_like(weights), torch.get_num_threads()
    bound = gamma(2 * k, dtype) * loop(x.double().abs(), weights.double().abs(), ids)
    try:
        torch.set_num_threads(1)
        alone = product(x, weights, ids, "cpu", transposed)
        torch.set_num_threads(3)
        assert_same_bits(product(x, weights, ids, "cpu", transposed), alone)
    finally:
        torch.set_num_threads(before)
    assert_within(alone, loop(x.double(), weights.double(), ids), bound)


@backends
@either_way
@given(
    t=st.integers(0, 40), e=st.integers(1, 9), k=st.integers(0, 20), n=st.integers(0, 40), j=st.integers(1, 3),
    seed=st.integers(0, 2**16),
)  # fmt: skip
def test_any_routing(backend, transposed, t, e, k, n, j, seed):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(-1, e, (t, j), generator=generator)
    x = torch.randint(-8, 9, (t, k), generator=generator).float()
    weights = torch.randint(-8, 9, (e, k, n), generator=generator).float()
    assert torch.equal(product(x, weights, ids, backend, transposed), loop(x, weights, ids))


@backends
@either_way
@pytest.mark.parametrize("shape", [(7,), (7, 2)], ids=str)
def test_gradcheck_twice(backend, transposed, shape):
    ids = torch.randint(-1, 3, shape)
    x = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(3, *((2, 4) if transposed else (4, 2)), dtype=torch.float64, requires_grad=True)

    def function(x, weights):
        return gs.ops.grouped_matmul(x, weights, ids, backend=backend, transposed=transposed)

    assert torch.autograd.gradcheck(function, (x, weights), fast_mode=True)
    assert torch.autograd.gradgradcheck(function, (x, weights), fast_mode=True)


@backends
def test_rows_of_no_group_touch_nothing(backend):
    """NaN in a row that goes nowhere, and in the weights of an expert without tokens, stays where it is."""
    x, weights = integers(10, 6), integers(3, 6, 5)
    ids = torch.tensor([0, 2, -1, 0, 0, -1, 2, 2, 0, 2])
    expected = loop(x, weights, ids)
    x[ids < 0], weights[1] = torch.nan, torch.inf
    x.requires_grad_(), weights.requires_grad_()
    y = gs.ops.grouped_matmul(x, weights, ids, backend=backend)
    assert torch.equal(y, expected)
    dy = integers(10, 5)
    dy[ids < 0] = torch.nan
    y.backward(dy)
    assert x.grad.isfinite().all() and not x.grad[ids < 0].any()
    assert weights.grad.isfinite().all() and not weights.grad[1].any()


@backends
def test_an_index_serves_several_products(backend):
    ids = torch.randint(-1, 6, (90, 2))
    index = gs.Pattern.from_ids(ids.flatten(), 6)
    x, weights = integers(90, 8), integers(6, 8, 11)
    assert_same_bits(
        gs.ops.grouped_matmul(x, weights, ids, index=index, backend=backend),
        gs.ops.grouped_matmul(x, weights, ids, backend=backend),
    )
    hidden, second = integers(180, 11), integers(6, 11, 3)
    assert torch.equal(
        gs.ops.grouped_matmul(hidden, second, ids.flatten(), index=index, backend=backend),
        loop(hidden, second, ids.flatten()),
    )


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8], ids=str)
def test_any_integer_routes_to_any_number_of_experts(dtype):
    x, weights = integers(3, 1), torch.arange(300.0).view(300, 1, 1)
    y = gs.ops.grouped_matmul(x, weights, torch.tensor([100, 0, 7], dtype=dtype))
    assert torch.equal(y.flatten(), x.flatten() * torch.tensor([100.0, 0.0, 7.0]))


def test_threads_and_runs():
    x, weights = torch.randn(400, 33).requires_grad_(), torch.randn(7, 33, 18).requires_grad_()
    ids = (torch.rand(400, 2) ** 3 * 7).long()
    every = []
    for threads in (1, 2, 3, 8, 8):
        torch.set_num_threads(threads)
        y = gs.ops.grouped_matmul(x, weights, ids)
        every.append((y.detach(), *torch.autograd.grad(y.square().sum(), (x, weights))))
    for other in every[1:]:
        for one, two in zip(every[0], other, strict=True):
            assert_same_bits(one, two)
