"""Law: every module equals its dense form, in what it computes and in all gradients."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

import gossamer as gs
from gossamer.nn import AttentionIndex, BlockSparseAttention, Experts, ReLUFeedForward, Unpadded, block_sparse_attention
from gossamer.nn.experts import ACTIVATIONS, balance_loss
from gossamer.testing.clock import Clock

D = torch.float64


def close(a: Tensor, b: Tensor) -> None:
    """Sums of at most some hundred float64 products of numbers around 1."""
    torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def gradients(y: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
    return list(torch.autograd.grad((y * weight).sum(), inputs, retain_graph=True))


def same_gradients(y: Tensor, z: Tensor, inputs: list[Tensor]) -> None:
    close(y, z)
    for a, b in zip(gradients(y, inputs), gradients(z, inputs), strict=True):
        close(a, b)


# ---------------------------------------------------------------- experts


def loop_over_experts(moe: Experts, x: Tensor, ids: Tensor, gates: Tensor | None) -> Tensor:
    flat, ids = x.reshape(-1, moe.dim), ids.reshape(-1, ids.shape[-1])
    gates = torch.ones(ids.shape, dtype=x.dtype) if gates is None else gates.reshape(ids.shape)
    y = torch.zeros_like(flat)
    for e in range(moe.experts):
        token, j = (ids == e).nonzero(as_tuple=True)
        h = flat[token] @ moe.up[e]
        act = ACTIVATIONS[moe.activation]
        h = act(h[:, : moe.hidden]) * h[:, moe.hidden :] if moe.gated else act(h)
        y = y.index_add(0, token, (h @ moe.down[e]) * gates[token, j, None])
    return y.view(x.shape)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(("top_k", "activation"), [(1, "relu"), (2, "silu"), (3, "gelu")])
def test_experts_are_a_loop_over_experts(top_k: int, activation: str, gated: bool) -> None:
    moe = Experts(12, 20, experts=5, top_k=top_k, gated=gated, activation=activation, dtype=D)
    x = torch.randn(4, 7, 12, dtype=D, requires_grad=True)
    ids, gates, _ = moe.route(x.reshape(-1, 12))
    inputs = [x, moe.up, moe.down, moe.router.weight]
    same_gradients(moe(x), loop_over_experts(moe, x, ids, gates), inputs)


def test_experts_take_a_routing_from_outside() -> None:
    moe = Experts(6, 8, experts=4, dtype=D)
    x = torch.randn(9, 6, dtype=D, requires_grad=True)
    ids = torch.tensor([[0, 3], [3, -1], [-1, -1], [1, 0], [0, 0], [2, 1], [3, 2], [0, 1], [1, 2]])
    gates = torch.rand(9, 2, dtype=D, requires_grad=True)
    for weights in (gates, None):
        kept = torch.where(ids >= 0, 1.0 if weights is None else weights, 0.0).to(D)
        expected = loop_over_experts(moe, x, ids, kept)
        same_gradients(moe(x, ids, weights), expected, [x, moe.up, moe.down])
    assert bool((moe(x, ids)[2] == 0).all())


@pytest.mark.parametrize("used", [[3], [0, 7]], ids=["one expert", "two of eight"])
def test_five_thousand_tokens_on_few_experts(used: list[int]) -> None:
    """No capacity: a routing that an index with 4096 places an expert would corrupt. Integers: exact in float32."""
    moe = Experts(4, 8, experts=8)
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        moe.up.copy_(torch.randint(-2, 3, moe.up.shape, generator=g))
        moe.down.copy_(torch.randint(-2, 3, moe.down.shape, generator=g))
    x = torch.randint(-3, 4, (5000, 4), generator=g).float().requires_grad_()
    ids = torch.tensor(used)[torch.arange(5000) % len(used)].unsqueeze(1)
    y, z = moe(x, ids), loop_over_experts(moe, x, ids, None)
    assert torch.equal(y, z)
    inputs = [x, moe.up, moe.down]
    for a, b in zip(torch.autograd.grad(y.sum(), inputs), torch.autograd.grad(z.sum(), inputs), strict=True):
        assert torch.equal(a, b)


def test_balance_loss_is_one_when_even_and_experts_when_all_on_one() -> None:
    ids = torch.arange(12).view(12, 1) % 4
    assert float(balance_loss(torch.full((12, 4), 0.25), ids)) == pytest.approx(1.0)
    one = torch.eye(4)[torch.zeros(12, dtype=torch.long)]
    assert float(balance_loss(one, torch.zeros(12, 1, dtype=torch.long))) == pytest.approx(4.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, D], ids=str)
def test_what_goes_nowhere_takes_no_part_in_balance_loss(dtype: torch.dtype) -> None:
    probabilities = torch.rand(9, 4).softmax(-1).to(dtype).requires_grad_()
    ids = torch.tensor([[0, 1], [-1, -1], [2, -1], [3, 0], [-1, 2], [-1, -1], [1, 0], [0, 3], [2, 2]])
    routed = (ids >= 0).any(1)
    share = torch.bincount(ids[ids >= 0], minlength=4) / (ids >= 0).sum()
    expected = 4 * (share * probabilities[routed].double().mean(0)).sum()
    for kind in (torch.int64, torch.int32, torch.int8):
        loss = balance_loss(probabilities, ids.to(kind))
        torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)  # float32 sums of nine numbers
    (grad,) = torch.autograd.grad(loss, probabilities)
    assert bool((grad[~routed] == 0).all()) and bool((grad[routed] != 0).any())


def test_balance_loss_counts_more_tokens_than_a_half_type_can() -> None:
    ids = torch.zeros(5000, 1, dtype=torch.int64)
    ids[4000:] = 1
    loss = balance_loss(torch.full((5000, 2), 0.5, dtype=torch.bfloat16), ids)
    assert loss.dtype == torch.float32 and float(loss) == pytest.approx(1.0)


@pytest.mark.parametrize("tokens", [0, 3])
def test_balance_loss_without_a_routed_token_is_zero(tokens: int) -> None:
    probabilities = torch.rand(tokens, 4, requires_grad=True)
    loss = balance_loss(probabilities, torch.full((tokens, 2), -1))
    loss.backward()
    assert float(loss.detach()) == 0.0 and not bool(probabilities.grad.any())


def test_ids_may_be_narrower_than_the_number_of_experts() -> None:
    """300 is 44 in eight bits, and 128 is below zero in them."""
    probabilities = torch.rand(2, 300).softmax(1)
    for dtype, experts, wanted in ((torch.uint8, 300, [[5], [200]]), (torch.int8, 128, [[5], [-1]])):
        moe, x, ids = Experts(4, 4, experts=experts), torch.randn(2, 4), torch.tensor(wanted)
        torch.testing.assert_close(moe(x, ids.to(dtype)), moe(x, ids))
        assert balance_loss(probabilities, ids.to(dtype)) == balance_loss(probabilities, ids)
    run, x = Unpadded(nn.Linear(4, 4)), torch.randn(1, 200, 4)
    lengths = torch.tensor([100])
    torch.testing.assert_close(run(x, lengths=lengths.to(torch.int8)), run(x, lengths=lengths))


def test_bad_balance_is_refused() -> None:
    rows = torch.rand(3, 4)
    for ids, error, message in (
        (torch.tensor([[0], [4], [1]]), ValueError, "ids must be below experts=4, got 4"),
        (torch.tensor([0, 1, 2]), ValueError, r"ids must have shape \[3, j\], got \[3\]"),
        (torch.ones(3, 1), TypeError, "ids must be an integer tensor, got torch.float32"),
    ):
        with pytest.raises(error, match=message):
            balance_loss(rows, ids)
    with pytest.raises(ValueError, match="probabilities must be floats"):
        balance_loss(rows[0], torch.zeros(3, 1, dtype=torch.long))


def test_bad_experts_are_refused() -> None:
    for options, message in [
        ({"experts": 0}, "experts must be"),
        ({"experts": 2, "top_k": 3}, "at most experts=2, got 3"),
        ({"experts": 2, "activation": "tanh"}, "'tanh'"),
    ]:
        with pytest.raises(ValueError, match=message):
            Experts(4, 4, **options)
    moe = Experts(4, 4, experts=2)
    with pytest.raises(ValueError, match="come with ids"):
        moe(torch.randn(3, 4), gates=torch.ones(3, 1))
    with pytest.raises(ValueError, match="ids must have shape"):
        moe(torch.randn(3, 4), torch.zeros(2, 1, dtype=torch.long))
    with pytest.raises(ValueError, match="below"):
        moe(torch.randn(3, 4), torch.full((3, 1), 2))


# ---------------------------------------------------------------- ReLU feed-forward


@pytest.mark.parametrize("tile", ["auto", (32, 1), (1, 20), (8, 4), (1, 1)])
@pytest.mark.parametrize("bias", [True, False])
def test_relu_feed_forward_is_dense(tile, bias: bool) -> None:
    block = ReLUFeedForward(10, 20, bias, tile=tile, dtype=D)
    with torch.no_grad():
        block.up.weight[::2] = -10.0  # features that positive inputs never use
    x = torch.rand(3, 13, 10, dtype=D).requires_grad_()
    inputs = [x, *block.parameters()]
    assert bool((block.up(x).relu() == 0).flatten(0, 1).all(0).any()) or not bias
    same_gradients(block(x), block.down(block.up(x).relu()), inputs)


# ---------------------------------------------------------------- padded batches


def test_unpadded_runs_on_real_tokens_only() -> None:
    seen = []

    class Network(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(tuple(x.shape))
            return super().forward(x)

    network = Network(nn.Linear(6, 9), nn.LayerNorm(9), nn.GELU(), nn.Linear(9, 4)).to(D)
    lengths = torch.tensor([5, 0, 2])
    mask = torch.arange(5) < lengths[:, None]
    x = torch.randn(3, 5, 6, dtype=D, requires_grad=True)
    expected = nn.Sequential(*network)(x) * mask[..., None]
    inputs = [x, *network.parameters()]
    same_gradients(Unpadded(network)(x, lengths=lengths), expected, inputs)
    same_gradients(Unpadded(network)(x, mask), expected, inputs)
    assert seen == [(7, 6)] * 2
    poisoned = torch.where(mask[..., None], x, float("nan"))  # padding plays no part at all
    close(Unpadded(network)(poisoned, mask), expected)


def test_unpadded_refuses_what_does_not_fit() -> None:
    run, x = Unpadded(nn.Linear(2, 2)), torch.randn(2, 3, 2)
    with pytest.raises(TypeError, match="one of the two"):
        run(x)
    with pytest.raises(ValueError, match=r"between 0 and 3 tokens, got \[4, 1\]"):
        run(x, lengths=torch.tensor([4, 1]))
    with pytest.raises(ValueError, match="mask must be bool"):
        run(x, torch.ones(2, 3))


# ---------------------------------------------------------------- attention


def masked_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    y = scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return torch.where(mask.any(-1, keepdim=True), y, 0)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("queries", "keys", "tile"), [(16, 24, (4, 8)), (13, 13, (4, 4)), (9, 7, (16, 2))])
def test_attention_is_masked_attention(queries: int, keys: int, tile: tuple[int, int], causal: bool) -> None:
    torch.manual_seed(1)
    grid = -(-queries // tile[0]), -(-keys // tile[1])
    tiles = torch.rand(3, *grid) < 0.5
    tiles[0, 0] = False  # queries that see nothing
    tiles[1:, :, 0] = True
    heads = [gs.Pattern.from_tile_mask(head, tile, shape=(queries, keys)) for head in tiles]
    q, k, v = (
        torch.randn(2, 3, tokens, width, dtype=D, requires_grad=True)
        for tokens, width in ((queries, 5), (keys, 5), (keys, 6))
    )
    lower = torch.ones(queries, keys, dtype=torch.bool).tril() if causal else torch.tensor(True)
    each = torch.stack([head.to_mask() for head in heads]) & lower
    inputs = [q, k, v]
    same_gradients(block_sparse_attention(q, k, v, heads, causal=causal), masked_attention(q, k, v, each), inputs)
    one = heads[0].to_mask() & lower
    mine = block_sparse_attention(q, k, v, heads[0], causal=causal, scale=0.3)
    same_gradients(mine, masked_attention(q * 0.3 * 5**0.5, k, v, one), inputs)
    assert not bool(one.any(-1).all()) and bool(each[1:].any(-1).all())


@pytest.mark.parametrize("each", [False, True])
def test_attention_of_nothing(each: bool) -> None:
    """No batch, no tokens, no features."""
    for batch, tokens, width in ((0, 8, 4), (2, 0, 4), (0, 0, 4), (2, 8, 0)):
        pattern = gs.Pattern.full((tokens, tokens), (4, 4))
        q = torch.randn(batch, 3, tokens, width, requires_grad=True)
        y = block_sparse_attention(q, q, q, [pattern] * 3 if each else pattern)
        y.sum().backward()
        assert y.shape == q.shape == q.grad.shape
    layer = BlockSparseAttention(12, 3, [gs.Pattern.full((8, 8), (4, 4))] * 3)
    for batch in (0, 2, 0):
        assert layer(torch.zeros(batch, 8, 12)).shape == (batch, 8, 12)


def test_attention_with_large_scores_does_not_overflow() -> None:
    q = torch.randn(8, 4) * 1e3
    pattern = gs.Pattern.full((8, 8), (4, 4))
    y = block_sparse_attention(q, q, torch.eye(8), pattern)
    torch.testing.assert_close(y, scaled_dot_product_attention(q[None], q[None], torch.eye(8)[None])[0])


def test_attention_module_and_its_index() -> None:
    tokens = torch.arange(12)
    window = gs.Pattern.from_mask((tokens[:, None] - tokens).abs() < 4, (4, 4))
    layer = BlockSparseAttention(8, 2, window, causal=True, dtype=D)
    x = torch.randn(3, 12, 8, dtype=D, requires_grad=True)
    q, k, v = layer.qkv(x).view(3, 12, 3, 2, 4).permute(2, 0, 3, 1, 4)
    dense = masked_attention(q, k, v, window.to_mask().tril()).transpose(1, 2).flatten(2)
    same_gradients(layer(x), layer.out(dense), [x, *layer.parameters()])
    index = layer._index
    layer(x)
    assert layer._index is index  # built once per batch size
    assert layer(x[:1]).shape == (1, 12, 8)


@pytest.mark.parametrize(
    ("each", "present", "sparse", "first", "right"),
    [
        (False, 0.1, 0.5, "sparse", "sparse"), (True, 0.1, 1.4, "sparse", "dense"), (False, 0.9, 3.0, "dense", "dense"),
    ],
)  # fmt: skip
def test_attention_takes_the_faster_form_and_says_why(
    each: bool, present: float, sparse: float, first: str, right: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a rule of thumb first, and by the clock, that only the two forms move, where this was wrong."""
    torch.manual_seed(0)
    clock, ran, run = Clock(), [], BlockSparseAttention._run

    def timed(self: BlockSparseAttention, choice: str, *args: Any) -> Tensor:
        ran.append(choice)
        clock.advance(1.0 if choice == "dense" else sparse)
        return run(self, choice, *args)

    monkeypatch.setattr("gossamer.measure.clock.now", clock)
    monkeypatch.setattr(BlockSparseAttention, "_run", timed)
    heads = [gs.Pattern.from_tile_mask(torch.rand(8, 8) < present, (2, 2)) for _ in range(2)]
    layer = BlockSparseAttention(8, 2, heads if each else heads[0], causal=True)
    x = torch.randn(3, 16, 8)
    expected = layer(x)
    assert not ran and layer.tuner.stats() == {}  # a gradient is wanted: the sparse form, nobody is asked
    with torch.inference_mode():
        for _ in range(500):
            y = layer(x)
        torch.testing.assert_close(y, expected)
        assert ran[0] == first and ran[-50:].count(right) >= 45
        assert f"attention: {right}, " in layer.tuner.explain() and "of tiles nonzero" in layer.tuner.explain()
        assert (first == right) or "where the prior says" in layer.tuner.explain()
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert other.tuner.key != layer.tuner.key and other.tuner.stats() == {}
            torch.testing.assert_close(other(x), expected)
        torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), expected)
        torch.use_deterministic_algorithms(True)
        del ran[:]
        try:
            assert layer(x).shape == x.shape and ran == [first]
        finally:
            torch.use_deterministic_algorithms(False)


def test_attention_visits_only_present_tiles() -> None:
    index = AttentionIndex.of(gs.Pattern.from_tile_mask(torch.eye(4).bool(), (4, 4)), 6)
    assert index.seen.shape == (24, 4, 4) and index.pattern.grid == (24, 24)


class Reads(TorchDispatchMode):
    """Counts the numbers that the host reads from tensors: each is a wait for an accelerator."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_heads_are_joined_without_waiting_for_each() -> None:
    def reads(heads: int) -> int:
        patterns = [gs.Pattern.from_mask(torch.rand(8, 8) < 0.5, (2, 2)) for _ in range(heads)]
        with Reads() as seen:
            AttentionIndex.of(patterns, 3)
        return seen.count

    assert reads(2) == reads(9) > 0


def test_autocast_keeps_the_dtype_of_the_weights() -> None:
    full = gs.Pattern.full((6, 6), (2, 2))
    modules = (Experts(8, 8, experts=2), ReLUFeedForward(8, 16, tile=(2, 1)), BlockSparseAttention(8, 2, full))
    for module in modules:
        with torch.autocast("cpu", torch.bfloat16):
            x = nn.Linear(8, 8)(torch.randn(2, 6, 8))
            y = module(x)
        assert x.dtype == torch.bfloat16 and y.isfinite().all()
        y.float().sum().backward()


def test_bad_attention_is_refused() -> None:
    q, pattern = torch.randn(2, 3, 8, 4), gs.Pattern.full((8, 8), (4, 4))
    with pytest.raises(ValueError, match="q, k and v must have shapes"):
        block_sparse_attention(q, q[..., :3], q, pattern)
    with pytest.raises(ValueError, match="one for each head"):
        block_sparse_attention(q, q, q, [pattern] * 2)
    with pytest.raises(ValueError, match="pattern is for 6 heads of"):
        block_sparse_attention(q, q, q, gs.Pattern.full((4, 8), (4, 4)))
    with pytest.raises(ValueError, match="multiple of heads"):
        BlockSparseAttention(7, 2, pattern)
    with pytest.raises(ValueError, match="agree in shape"):
        block_sparse_attention(q[:, :2], q[:, :2], q[:, :2], [pattern, gs.Pattern.full((8, 8), (8, 8))])
