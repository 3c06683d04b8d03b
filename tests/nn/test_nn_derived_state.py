"""Law: what a module derives from what a user can change is what it would derive now, whoever wrote and how."""

from __future__ import annotations

import copy
import io
import pickle
from functools import partial

import pytest
import torch
from torch import Tensor, nn

import gossamer as gs
from gossamer.nn import (
    BlockSparseAttention,
    BlockSparseLinear,
    Experts,
    ReLUFeedForward,
    StatisticalTopK,
    Unpadded,
)
from gossamer.nn.block_sparse.attention import block_sparse_attention
from gossamer.nn.block_sparse.gradient_capture import GradientCapture
from gossamer.nn.snapshot import Snapshot

TOKENS = torch.arange(16)
X = torch.randn(2, 16, 16)


def window(width: int) -> gs.Pattern:
    return gs.Pattern.from_mask((TOKENS[:, None] - TOKENS).abs() < width, (4, 4), capacity=16)


# ---------------------------------------------------------------- attention


def attend(layer: BlockSparseAttention, x: Tensor) -> Tensor:
    q, k, v = layer.qkv(x).unflatten(-1, (3, layer.heads, -1)).permute(2, 0, 3, 1, 4)
    y = block_sparse_attention(q, k, v, layer.pattern, causal=layer.causal)
    return layer.out(y.transpose(1, 2).flatten(2))


def assign(name, value):
    return lambda layer: setattr(layer, name, value)


def replace_head(layer: BlockSparseAttention) -> None:
    layer.pattern[1] = window(9)


def through_data(layer: BlockSparseAttention) -> None:
    pattern = layer.pattern[0]
    pattern.offsets.data.copy_(window(9).offsets)
    pattern.indices.data.copy_(window(9).indices)


def through_numpy(layer: BlockSparseAttention) -> None:
    pattern = layer.pattern[0]
    pattern.offsets.numpy()[:] = window(9).offsets
    pattern.indices.numpy()[:] = window(9).indices


CHANGES = {
    "another pattern": assign("pattern", window(9)),
    "one for each head": assign("pattern", [window(9), window(1)]),
    "causal": assign("causal", True),
    "more heads": lambda layer: (setattr(layer, "heads", 4), setattr(layer, "pattern", window(2))),
    "an entry of the list": replace_head,
    "copy_": lambda layer: layer.pattern[0].copy_(window(9)),
    "data": through_data,
    "numpy": through_numpy,
}


@pytest.mark.parametrize("change", CHANGES)
def test_attention_is_what_its_attributes_say(change: str) -> None:
    layer = BlockSparseAttention(16, 2, [window(2), window(3)])
    before = layer(X)
    CHANGES[change](layer)
    y, expected = layer(X), attend(layer, X)
    assert torch.equal(y, expected) and not torch.allclose(y, before)
    y.sum().backward()


def test_attention_indexes_once() -> None:
    layer = BlockSparseAttention(16, 2, window(3))
    layer(X)
    index = layer._index[0]
    layer(X)
    assert layer._index[0] is index
    layer(X[:1])
    assert layer._index[0] is not index


def test_attention_refuses_what_no_longer_fits() -> None:
    layer = BlockSparseAttention(16, 2, [window(2), window(3)])
    layer(X)
    layer.heads = 4
    with pytest.raises(ValueError, match="pattern must be one, or one for each of 4 heads, got 2"):
        layer(X)
    layer.heads, layer.pattern = 3, window(2)
    with pytest.raises(ValueError, match="dim must be a multiple of heads, got dim=16, heads=3"):
        layer(X)
    layer.heads, layer.pattern = 2, None
    with pytest.raises(TypeError, match="or one for each head, got NoneType"):
        layer(X)


def test_a_compiled_attention_follows_assignments_and_refuses_a_pattern_written_behind_it() -> None:
    torch._dynamo.reset()
    layer = BlockSparseAttention(16, 2, window(2))
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(X), attend(layer, X))
    layer.causal = True
    torch.testing.assert_close(compiled(X), attend(layer, X))
    layer.pattern = window(9)
    torch.testing.assert_close(compiled(X), attend(layer, X))
    layer.pattern = [window(2).with_capacity(20), window(9)]  # with slack between the heads
    torch.testing.assert_close(compiled(X), attend(layer, X))
    layer.pattern = window(9)
    torch.testing.assert_close(compiled(X), attend(layer, X))
    layer.pattern.copy_(window(2))
    with pytest.raises(RuntimeError, match="a pattern must not be written"):
        compiled(X)


# ---------------------------------------------------------------- tiles of a linear layer


def tiles(seed: int, count: int = 8) -> gs.Pattern:
    chosen = torch.randperm(16, generator=torch.Generator().manual_seed(seed))[:count]
    mask = torch.zeros(16, dtype=torch.bool).index_fill_(0, chosen, True).view(4, 4)
    return gs.Pattern.from_mask(mask.repeat_interleave(4, 0).repeat_interleave(4, 1), (4, 4))


def same_as_dense(layer: BlockSparseLinear, x: Tensor) -> None:
    x = x.detach().clone().requires_grad_()
    expected = x @ layer.to_dense().t() + layer.bias
    y = layer(x)
    torch.testing.assert_close(y, expected)  # sums of sixteen numbers around one
    inputs = [x, layer.values, layer.bias]
    weight = torch.randn(y.shape)
    for a, b in zip(torch.autograd.grad(y, inputs, weight), torch.autograd.grad(expected, inputs, weight), strict=True):
        torch.testing.assert_close(a, b)


def written(layer: BlockSparseLinear, how: str, new: gs.Pattern) -> None:
    offsets, indices = new.offsets, new.indices.view(torch.uint8)
    if how == "copy_":
        layer.offsets.copy_(offsets)
        layer.indices.copy_(indices)
    elif how == "data":
        layer.offsets.data.copy_(offsets)
        layer.indices.data.copy_(indices)
    elif how == "numpy":
        layer.offsets.numpy()[:] = offsets
        layer.indices.numpy()[:] = indices
    elif how == "assigned":
        layer.offsets, layer.indices = offsets, indices
    elif how == "one index":
        row = layer.pattern.to_tile_mask()[0]
        layer.indices.view(torch.int16)[0] = int((~row).nonzero()[0])
    else:
        state = {**layer.state_dict(), "offsets": offsets, "indices": indices}
        layer.load_state_dict(state, assign=how == "assigned state")


@pytest.mark.parametrize("mode", ["dynamic", "static"])
@pytest.mark.parametrize("how", ["copy_", "data", "numpy", "assigned", "one index", "state", "assigned state"])
def test_a_layer_follows_its_buffers(how: str, mode: str) -> None:
    layer = BlockSparseLinear(16, 16, block=4, pattern=tiles(0), mode=mode)
    x = torch.randn(6, 16)
    same_as_dense(layer, x)
    for seed in (1, 2):
        written(layer, how, tiles(seed))
        same_as_dense(layer, x)


def test_assigned_state_is_followed_afterwards() -> None:
    """With assign=True the buffers are the tensors of the state, which stay the user's to write."""
    with torch.device("meta"):
        layer = BlockSparseLinear(16, 16, block=4, density=0.5)
    state = BlockSparseLinear(16, 16, block=4, pattern=tiles(3)).state_dict()
    layer.load_state_dict(state, assign=True)
    same_as_dense(layer, torch.randn(6, 16))
    state["offsets"].copy_(tiles(4).offsets)
    state["indices"].copy_(tiles(4).indices.view(torch.uint8))
    same_as_dense(layer, torch.randn(6, 16))


def test_nonsense_in_a_buffer_is_refused_by_name() -> None:
    layer = BlockSparseLinear(16, 16, block=4, pattern=tiles(0))
    layer.indices.view(torch.int16)[1] = 77
    with pytest.raises(ValueError, match=r"indices\[1\] is 77"):
        layer(torch.randn(2, 16, requires_grad=True))


def test_a_compiled_layer_refuses_buffers_written_behind_it() -> None:
    torch._dynamo.reset()
    layer = BlockSparseLinear(16, 16, block=4, pattern=tiles(0))
    compiled, x = torch.compile(layer, backend="aot_eager", fullgraph=True), torch.randn(3, 16, requires_grad=True)
    torch.testing.assert_close(compiled(x), layer(x))
    layer.update_pattern(tiles(1))
    torch.testing.assert_close(compiled(x), layer(x))
    written(layer, "data", tiles(2))
    with pytest.raises(RuntimeError, match="must not be written but by update_pattern"):
        compiled(x)


def test_labour_is_divided_among_the_threads_there_are_now() -> None:
    crowded = torch.zeros(16, 16, dtype=torch.bool)
    crowded[4] = True
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        layer = BlockSparseLinear(16, 16, block=4, pattern=gs.Pattern.from_mask(crowded, (4, 4)), mode="static")
        assert layer.work is not None
        torch.set_num_threads(1)
        same_as_dense(layer, torch.randn(3, 16))
        assert layer.work is None
    finally:
        torch.set_num_threads(threads)


def test_experts_are_as_many_as_there_are_weights() -> None:
    moe, x = Experts(8, 4, experts=4, top_k=2), torch.randn(9, 8)
    moe.up, moe.down = nn.Parameter(moe.up[1:].detach()), nn.Parameter(moe.down[1:].detach())
    moe.router = nn.Linear(8, 3, bias=False)
    moe.top_k = 1  # gates of one expert are not normalised: each would be one
    ids, gates, probabilities = moe.route(x)
    assert moe.experts == 3 and torch.equal(gates, probabilities.max(-1, keepdim=True).values)
    torch.testing.assert_close(moe(x), moe(x, ids, gates))


# ---------------------------------------------------------------- inference_mode, copies


MODULES = {
    "linear": (lambda: BlockSparseLinear(16, 16, block=4, density=0.5), (X,)),
    "static linear": (lambda: BlockSparseLinear(16, 16, block=4, density=0.5, mode="static"), (X,)),
    "attention": (lambda: BlockSparseAttention(16, 2, window(3)), (X,)),
    "experts": (lambda: Experts(16, 8, experts=3, top_k=2), (X,)),
    "feed-forward": (lambda: ReLUFeedForward(16, 8), (X,)),
    "feed-forward by rows": (lambda: ReLUFeedForward(16, 8, tile=(1, 8)), (X,)),
    "top-k": (lambda: StatisticalTopK(3), (X,)),
    "unpadded": (lambda: Unpadded(nn.Linear(16, 4)), (X, TOKENS.expand(2, 16) < 9)),
}
by_module = pytest.mark.parametrize("name", MODULES)


def train(module: nn.Module, args: tuple[Tensor, ...]) -> Tensor:
    x = args[0].clone().requires_grad_()
    y = module(x, *args[1:])
    y.sum().backward()
    assert x.grad is not None
    return y.detach()


@by_module
def test_inference_then_training_then_decoding(name: str) -> None:
    make, args = MODULES[name]
    module = make()
    with torch.inference_mode():
        first = module(*args)
    # Attention in inference takes turns with a mask, which adds in another order.
    same = partial(torch.allclose, rtol=1e-5, atol=1e-6) if name == "attention" else torch.equal
    with torch.no_grad():
        assert same(module(*args), first)
    assert same(train(module, args), first)


def converted(_: BlockSparseLinear) -> nn.Module:
    return BlockSparseLinear.from_dense(nn.Linear(16, 16), density=0.5, block=4)


def grown(layer: BlockSparseLinear) -> nn.Module:
    layer.update_pattern(tiles(1, 11), overflow="grow")
    return layer


def loaded(layer: BlockSparseLinear) -> nn.Module:
    layer.load_state_dict(BlockSparseLinear(16, 16, block=4, pattern=tiles(1, 5)).state_dict())
    return layer


MAKERS = [converted, grown, loaded, BlockSparseLinear.to_linear, lambda layer: layer.store("int8")]


@pytest.mark.parametrize("make", MAKERS)
def test_what_becomes_of_a_layer_in_inference_mode_trains(make) -> None:
    layer = BlockSparseLinear(16, 16, block=4, density=0.5)
    with torch.inference_mode():
        layer = make(layer)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    train(layer, (X,))
    optimizer.step()
    if isinstance(layer, BlockSparseLinear) and layer.storage == "float32":
        layer.update_pattern(tiles(2, 5))
        same_as_dense(layer, torch.randn(3, 16))


def test_a_pattern_made_in_inference_mode_serves_training() -> None:
    with torch.inference_mode():
        p = gs.Pattern.from_mask(TOKENS[:, None] >= TOKENS, (4, 4))
        t = gs.ops.transpose(p)
        index = gs.nn.AttentionIndex.of(p, 2)
        routing = gs.Pattern.from_ids(TOKENS % 3, 3)
    b = torch.randn(16, 3, requires_grad=True)
    values = gs.ops.gather(torch.randn(16, 16, requires_grad=True), p)
    gs.ops.dsd(values, p, b, transposed=t).sum().backward()
    gs.ops.sdd(b, b.t(), p, transposed=t).sum().backward()
    gs.ops.matmul(torch.randn(16, 16, requires_grad=True), b, index=p).sum().backward()
    gs.ops.grouped_matmul(b, torch.randn(3, 3, 2), TOKENS % 3, index=routing).sum().backward()
    q = torch.randn(2, 16, 4, requires_grad=True)
    gs.nn.block_sparse_attention(q, q, q, index).sum().backward()
    layer = BlockSparseLinear(16, 16, block=4, pattern=p)
    same_as_dense(layer, torch.randn(3, 16))


def through_torch(module: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@by_module
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), through_torch])
def test_copies_after_use(name: str, copied) -> None:
    make, args = MODULES[name]
    module = make()
    y = train(module, args)
    assert torch.equal(train(copied(module), args), y)


def test_a_copy_of_a_layer_whose_gradient_is_captured_is_not() -> None:
    layer = BlockSparseLinear(16, 16, block=4, density=0.5)
    capture = GradientCapture(layer.values)
    capture.open()
    layer.capture_gradient(capture.handle)
    train(copy.deepcopy(layer), (X,))
    assert not capture._this_pass
    train(layer, (X,))
    assert len(capture.pairs) == 1


# ---------------------------------------------------------------- the comparison itself


@pytest.mark.parametrize("size", [4, 5000])
def test_a_snapshot(size: int) -> None:
    """Few bytes and many are compared in two ways."""
    x = torch.arange(size)
    snapshot = Snapshot(x)
    assert snapshot.is_of(x.clone(), rule="") and not snapshot.is_of(x[:3], rule="")
    assert not snapshot.is_of(x, x, rule="") and not snapshot.is_of(x.to(torch.int32), rule="")
    x.data[-1] = 9
    assert not snapshot.is_of(x, rule="")
