"""Law: blocks of one class share their graphs, as torch's own do, and exported modules take any number of tokens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend
from torch.export import Dim, export

from gossamer.compaction import ChannelGraph
from gossamer.nn import BlockSparseAttention, BlockSparseLinear, Experts, ReLUFeedForward, Unpadded
from gossamer.nn.block_sparse.gradient_capture import GradientCapture
from gossamer.pattern import Pattern

BODIES = {
    "torch": lambda: nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16)),
    "linear": lambda: BlockSparseLinear(16, 16, block=4, density=0.5),
    "static linear": lambda: BlockSparseLinear(16, 16, block=4, density=0.5, mode="static"),
    "linear whose gradient is captured": lambda: BlockSparseLinear(16, 16, block=4, density=0.5),
    "experts": lambda: Experts(16, 8, experts=3, top_k=2),
    "feed-forward": lambda: ReLUFeedForward(16, 32, tile=(4, 1)),
}


class Block(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


@pytest.mark.parametrize("name", BODIES)
def test_twelve_blocks_share_two_graphs(name: str) -> None:
    """One for the input of the network, which wants no gradient, and one for all other blocks."""
    torch._dynamo.reset()
    net = nn.Sequential(*(Block(BODIES[name]()) for _ in range(12)))
    captures = [GradientCapture(block.body.values) for block in net] if "captured" in name else []
    for block, capture in zip(net, captures, strict=False):
        capture.open()
        block.body.capture_gradient(capture.handle)
    x = torch.randn(2, 5, 16)
    expected = net(x)
    counter = CompileCounterWithBackend("aot_eager")
    for block in net:
        block.compile(fullgraph=True, backend=counter)
    for _ in range(2):
        y = net(x)
        y.sum().backward()
    torch.testing.assert_close(y, expected)
    assert counter.frame_count == 2 and all(len(capture.pairs) == 2 for capture in captures)


def test_feed_forward_says_what_to_give_it() -> None:
    with pytest.raises(Exception, match=r"tile='auto' reads .* give the block a tile"):
        torch.compile(ReLUFeedForward(8, 8), backend="aot_eager", fullgraph=True)(torch.randn(3, 8))


@pytest.mark.parametrize(("top_k", "strict"), [(1, False), (2, True)])
def test_exported_experts_take_any_number_of_tokens(top_k: int, strict: bool) -> None:
    moe = Experts(8, 8, experts=3, top_k=top_k)
    shapes = ({0: Dim("batch"), 1: Dim("tokens")},)
    program = export(moe, (torch.randn(2, 5, 8),), dynamic_shapes=shapes, strict=strict)
    assert all(limits.upper > 1 << 40 for limits in program.range_constraints.values())
    for batch, tokens in ((2, 5), (1, 1), (7, 3), (2, 40000)):
        x = torch.randn(batch, tokens, 8)
        torch.testing.assert_close(program.module()(x), moe(x))


@torch.no_grad()
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", ["linear", "feed-forward"])
def test_other_modules_are_exported_alike(name: str, strict: bool) -> None:
    module = BODIES[name]()
    program = export(module, (torch.randn(5, 16),), dynamic_shapes=({0: Dim("tokens")},), strict=strict)
    for tokens in (5, 1, 33):
        x = torch.randn(tokens, 16)
        torch.testing.assert_close(program.module()(x), module(x))


def _attention(each: bool) -> BlockSparseAttention:
    one, other = (Pattern.from_mask(torch.ones(8, 8).tril(-low).bool() | torch.eye(8).bool(), (2, 2)) for low in (0, 5))
    return BlockSparseAttention(16, 2, [one, other] if each else one, causal=True)


@pytest.mark.parametrize("each", [False, True])
def test_one_graph_of_attention_serves_every_batch(each: bool) -> None:
    torch._dynamo.reset()
    attention, counter = _attention(each), CompileCounter()
    compiled = torch.compile(attention, backend=counter, fullgraph=True, dynamic=True)
    for batch in range(2, 14):
        x = torch.randn(batch, 8, 16)
        torch.testing.assert_close(compiled(x), attention(x))
    assert counter.frame_count == 1


@torch.no_grad()
@pytest.mark.parametrize("strict", [False, True])
def test_exported_attention_takes_any_batch(strict: bool) -> None:
    attention, batches = _attention(True), Dim("n", min=2, max=512)
    program = export(attention, (torch.randn(3, 8, 16),), dynamic_shapes=({0: batches},), strict=strict)
    for batch in (2, 33):
        x = torch.randn(batch, 8, 16)
        torch.testing.assert_close(program.module()(x), attention(x))


@torch.no_grad()
@pytest.mark.parametrize("how", ["compile", "strict", "not strict"])
@pytest.mark.parametrize("name", ["torch", "linear", "experts"])
def test_padding_is_left_out_in_a_graph(name: str, how: str) -> None:
    """The number of real tokens is known when the graph runs; lengths that cannot be are refused there as well."""
    torch._dynamo.reset()
    run, x = Unpadded(BODIES[name]()), torch.randn(2, 5, 16)
    if how == "compile":
        graph = torch.compile(run, backend="eager", fullgraph=True)
    else:
        shapes = {"x": {0: Dim("batch"), 1: Dim("tokens")}, "lengths": {0: Dim("batch")}}
        given = {"lengths": torch.tensor([3, 1])}
        graph = export(run, (x,), given, dynamic_shapes=shapes, strict=how == "strict").module()
    for tokens, lengths in ((5, [3, 1]), (5, [0, 5]), (9, [2, 8])):
        x, real = torch.randn(2, tokens, 16), torch.tensor(lengths)
        torch.testing.assert_close(graph(x, lengths=real), run(x, lengths=real))
    with pytest.raises(RuntimeError, match="lengths must be between 0 and"):
        graph(x, lengths=torch.tensor([2, 10]))


@pytest.mark.parametrize("route", ["export", "fx"])
def test_networks_of_such_modules_are_captured(route: str) -> None:
    """Recording a graph, of tensors that hold nothing, asks them nothing."""
    net = nn.Sequential(*(Block(BODIES[name]()) for name in ("linear", "static linear", "experts")))
    ChannelGraph.build(net, torch.randn(5, 16), route=route)
