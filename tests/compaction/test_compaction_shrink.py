"""Law: shrink_ keeps every Parameter object, slices all that belongs to it, and undoes itself when it fails."""

from __future__ import annotations

import copy

import pytest
import torch
from compaction_nets import NETS, MiniViT, Residual, Sequence, Tied
from torch import nn

from gossamer.compaction import ChannelGraph, shrink_

X = torch.randn(2, 3, 8, 8)


def test_parameters_stay_the_same_objects_without_gradients() -> None:
    net = Sequence()
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    net(X).sum().backward()
    optimizer.step()
    before = dict(net.named_parameters())
    untouched = net.fc.bias.grad
    momentum = optimizer.state[net.conv2.weight]["momentum_buffer"].clone()
    keep = {"conv1": torch.arange(8) % 2 == 0, "conv2": torch.arange(12) < 5}
    kept = shrink_(net, ChannelGraph.build(net, X), keep, optimizer)

    assert all(parameter is before[name] for name, parameter in net.named_parameters())
    assert net.conv2.weight.shape == (5, 4, 3, 3) and net.conv2.weight.grad is None
    assert net.fc.bias.grad is untouched
    assert {axis: index.tolist() for axis, index in kept["conv2.weight"].items()} == {
        0: [0, 1, 2, 3, 4], 1: [0, 2, 4, 6]
    }  # fmt: skip
    assert torch.equal(optimizer.state[net.conv2.weight]["momentum_buffer"], momentum[:5, ::2])
    assert (net.conv2.in_channels, net.conv2.out_channels, net.bn2.num_features) == (4, 5, 5)
    assert (net.fc.in_features, net.fc.out_features) == (5, 5)
    assert net.bn1.running_mean.shape == net.bn1.running_var.shape == (4,)
    assert {name for name, _ in kept.items()} == {
        "conv1.weight", "bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var", "conv2.weight", "conv2.bias",
        "bn2.weight", "bn2.bias", "bn2.running_mean", "bn2.running_var", "fc.weight",
    }  # fmt: skip
    net(X).sum().backward()
    optimizer.step()


def test_backward_works_while_an_earlier_loss_is_alive() -> None:
    """The old loss keeps gradient accumulators that remember the old shapes."""
    net = Sequence()
    loss = net(X).sum()
    loss.backward()
    shrink_(net, ChannelGraph.build(net, X), {"conv1": torch.arange(8) < 3})
    net(X).sum().backward()
    assert net.conv1.weight.grad.shape == (3, 3, 3, 3)
    assert loss.isfinite()


def test_gradient_hooks_survive() -> None:
    net = Sequence()
    seen = []
    net.conv1.weight.register_post_accumulate_grad_hook(lambda p: seen.append(tuple(p.grad.shape)))
    shrink_(net, ChannelGraph.build(net, X), {"conv1": torch.arange(8) < 3})
    net(X).sum().backward()
    assert seen == [(3, 3, 3, 3)]


def test_memory_format_survives() -> None:
    net = Sequence().to(memory_format=torch.channels_last)
    shrink_(net, ChannelGraph.build(net, X), {"conv1": torch.arange(8) < 5, "conv2": torch.arange(12) < 7})
    assert net.conv2.weight.is_contiguous(memory_format=torch.channels_last)


def test_tied_weights_stay_tied() -> None:
    net = Tied()
    ids = torch.randint(0, 11, (2, 5))
    shrink_(net, ChannelGraph.build(net, ids), {"embed": torch.arange(8) % 2 == 1})
    assert net.head.weight is net.embed.weight and net.head.weight.shape == (11, 4)
    assert (net.embed.embedding_dim, net.head.in_features, net.mid.out_features) == (4, 4, 4)


def test_heads_and_their_attributes() -> None:
    net = MiniViT()
    kept = shrink_(net, ChannelGraph.build(net, X), {"attn.qkv": torch.tensor([True, False, True, True])})
    assert (net.attn.heads, net.attn.size) == (3, 3)
    assert net.attn.qkv.weight.shape == (27, 12) and net.attn.proj.in_features == 9
    assert kept.attributes["attn"] == {"heads": 3}
    index = torch.arange(36).reshape(3, 4, 3)[:, [0, 2, 3]].flatten()
    assert torch.equal(kept["attn.qkv.weight"][0], index)


def test_shrinking_twice_with_the_returned_graph() -> None:
    net = Residual().eval()
    graph = ChannelGraph.build(net, X)
    kept = shrink_(net, graph, {"stem": torch.arange(8) != 3, "a": torch.arange(6) < 4})
    again = ChannelGraph.build(net, X)
    assert [(g.name, g.channels, g.kind) for g in kept.graph.removable] == [
        (g.name, g.channels, g.kind) for g in again.removable
    ]
    shrink_(net, kept.graph, {"stem": torch.arange(7) != 0})
    assert net.stem.out_channels == 6 and net.a.out_channels == 4
    with pytest.raises(ValueError, match="build the graph again"):
        shrink_(net, graph, {"stem": torch.arange(8) != 3})


def test_empty_and_full_requests_change_nothing() -> None:
    net = Residual()
    before = copy.deepcopy(net.state_dict())
    graph = ChannelGraph.build(net, X)
    assert shrink_(net, graph, {}) == {} and shrink_(net, graph, {"a": torch.ones(6, dtype=torch.bool)}) == {}
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_grouped_convolution_may_end_with_one_group() -> None:
    net = NETS["grouped 2"].build().eval()
    x = torch.randn(2, 3, 8, 8)
    kept = shrink_(net, ChannelGraph.build(net, x), {"up": torch.tensor([False, True])})
    assert (net.mid.groups, net.mid.in_channels, net.mid.out_channels) == (1, 8, 8)
    assert kept.graph.group("up").channels == 1


@pytest.mark.parametrize("make", [torch.optim.Adafactor, torch.optim.LBFGS])
def test_unknown_optimizer_state_is_refused_before_anything_changes(make: type) -> None:
    torch.manual_seed(0)
    net = Sequence()
    optimizer = make(net.parameters())

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = net(X).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match="cannot be sliced"):
        shrink_(net, ChannelGraph.build(net, X), {"conv1": torch.arange(8) < 5}, optimizer)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_shared_memory_is_never_split() -> None:
    """Two parameters over one storage: replacing one would silently untie them."""
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4, bias=False), nn.Linear(4, 6, bias=False))
    net[3].weight.data = net[2].weight.data.view(6, 4)
    graph = ChannelGraph.build(net, torch.randn(2, 4))
    assert not graph.removable
    assert "3.weight shares its memory with 2.weight" in graph.explain()
