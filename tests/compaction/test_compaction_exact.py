"""Law: a compacted model computes what the original computes, and loses every channel that was pruned.

Bit by bit on integer networks; to rounding on random ones (float32 1e-5, float64 1e-12, relative to the largest
output: the summation order is all that differs).
"""

from __future__ import annotations

import math

import pytest
import torch
from compaction_nets import NETS
from torch import Tensor, nn

import gossamer as gs
from gossamer.compaction import ChannelGraph, zero_channels_

INTEGER = [name for name, net in NETS.items() if net.integer]


def some_channels(graph: ChannelGraph, seed: int) -> dict[str, Tensor]:
    """About 40% of every group dies, at least one channel of each, and one stays."""
    generator = torch.Generator().manual_seed(seed)
    keep = {}
    for group in graph.removable:
        order = torch.randperm(group.channels, generator=generator)
        mask = torch.ones(group.channels, dtype=torch.bool)
        mask[order[: max(1, min(group.channels - 1, round(0.4 * group.channels)))]] = False
        keep[group.name] = mask
    return keep


def make_integer(model: nn.Module) -> None:
    """Every value a nonzero integer, normalisations exact: variance 1 or 4, an even weight and no epsilon."""
    values = torch.tensor([-3.0, -2.0, -1.0, 1.0, 2.0, 3.0])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(values[torch.randint(0, 6, parameter.shape)])
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm3d)):
                module.eps = 0.0
                module.running_mean.copy_(torch.randint(-2, 3, module.running_mean.shape))
                module.running_var.copy_(torch.tensor([1.0, 4.0])[torch.randint(0, 2, module.running_var.shape)])
                module.weight.copy_(torch.tensor([-4, -2, 2, 4])[torch.randint(0, 4, module.weight.shape)])


def make_random(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            fan = math.prod(parameter.shape[1:]) if parameter.dim() > 1 else 1
            parameter.copy_(torch.randn(parameter.shape) / math.sqrt(fan))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(torch.randn(buffer.shape))
            elif name.endswith("running_var"):
                buffer.copy_(torch.rand(buffer.shape) + 0.5)


def pruned(name: str, dtype: torch.dtype, seed: int, integer: bool) -> tuple[nn.Module, Tensor, dict[str, Tensor]]:
    torch.manual_seed(seed)
    net = NETS[name]
    model = net.build().to(dtype).eval()
    (make_integer if integer else make_random)(model)
    x = net.inputs()
    x = x.to(dtype) if x.is_floating_point() else x
    graph = ChannelGraph.build(model, x)
    keep = some_channels(graph, seed)
    zero_channels_(model, graph, keep)
    return model, x, keep


def compacted(model: nn.Module, x: Tensor, keep: dict[str, Tensor], route: str = "auto") -> nn.Module:
    before = {key: value.clone() for key, value in model.state_dict().items()}
    small = gs.compact(model, x, round_to=None, check_latency=False, route=route)
    assert not small.unfit, small.explain()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items()), "the original changed"
    widths = {key: (int(mask.sum())) for key, mask in keep.items()}
    widths = {key: value["before"] for key, value in small.report["channels"].items()} | widths
    assert {key: value["after"] for key, value in small.report["channels"].items()} == widths, small.explain()
    assert sum(p.numel() for p in small.model.parameters()) < sum(p.numel() for p in model.parameters())
    return small.model


def both_routes(model: nn.Module, x: Tensor, keep: dict[str, Tensor]) -> list[nn.Module]:
    """What each route makes of it: both lose the channels that the graph of the first one names."""
    return [compacted(model, x, keep, route) for route in ("auto", "fx")]


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", INTEGER)
def test_integer_networks_bit_by_bit(name: str, seed: int) -> None:
    model, x, keep = pruned(name, torch.float64, seed, integer=True)
    smaller = both_routes(model, x, keep)
    for _ in range(3):
        x = NETS[name].inputs()
        expected = model(x)
        assert all(torch.equal(small(x), expected) for small in smaller)
        assert expected.abs().max() < 2**53, "not exact in float64: the test would prove nothing"
        assert expected.abs().max() > 0


# What is cut out does not depend on the dtype: some networks in float32 show that it runs there. Those of integers
# have been through float64.
ROUNDED = [(name, torch.float64, 1e-12) for name in NETS if name not in INTEGER]
ROUNDED += [(name, torch.float32, 1e-5) for name in list(NETS)[::9]]


@pytest.mark.parametrize(("name", "dtype", "bound"), ROUNDED)
def test_random_networks_to_rounding(name: str, dtype: torch.dtype, bound: float) -> None:
    model, x, keep = pruned(name, dtype, 2, integer=False)
    smaller = both_routes(model, x, keep) if dtype is torch.float64 else [compacted(model, x, keep)]
    for _ in range(2):
        x = NETS[name].inputs()
        x = x.to(dtype) if x.is_floating_point() else x
        expected = model(x)
        assert all((expected - small(x)).abs().max() <= bound * expected.abs().max() for small in smaller)
        assert expected.std() > 0.01, "a constant output would prove nothing"


@pytest.mark.parametrize("name", ["residual", "vit", "shuffle", "flat"])
def test_other_batch_sizes_than_the_example(name: str) -> None:
    model, x, keep = pruned(name, torch.float64, 4, integer=False)
    small = compacted(model, x, keep)
    for batch in (1, 4):
        x = torch.randn(batch, *x.shape[1:], dtype=torch.float64)
        assert (model(x) - small(x)).abs().max() <= 1e-12 * model(x).abs().max()


def test_readers_alone_or_writers_alone_are_enough() -> None:
    """A channel nobody reads is dead; so is one that is zero everywhere."""
    for role in ("reader", "writer"):
        torch.manual_seed(0)
        model = NETS["concat"].build().double().eval()
        x = NETS["concat"].inputs()
        graph = ChannelGraph.build(model, x)
        keep = some_channels(graph, 0)
        tensors = dict(model.named_parameters())
        with torch.no_grad():
            for group in graph.removable:
                for member in group.members:
                    if member.role == role:
                        index = member.index[~keep[group.name]].flatten()
                        tensors[member.tensor].index_fill_(member.axis, index, 0)
        small = compacted(model, x, keep)
        assert (model(x) - small(x)).abs().max() <= 1e-12 * model(x).abs().max()


def test_dead_inputs_cascade_to_outputs_and_back() -> None:
    """Only the first layer is emptied of channel 0 and the last of channel 1: the chain between follows."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(4))).double()
    with torch.no_grad():
        for layer in model:
            layer.weight.copy_(torch.eye(4) + torch.diag(torch.ones(2), 2))
        model[0].weight[2:] = 0  # rows 2, 3 of the first layer: then rows 2, 3 of every later one
        model[3].weight[:, 1] = 0  # column 1 of the last layer: then columns 1 of every earlier one
    small = gs.compact(model, torch.randn(3, 4).double(), round_to=None, check_latency=False)
    assert [tuple(layer.weight.shape) for layer in small.model] == [(1, 4), (1, 1), (1, 1), (4, 1)]


@pytest.mark.parametrize("layer", [nn.GRU, nn.LSTM, nn.RNN])
def test_hidden_units_of_recurrent_layers(layer: type[nn.RNNBase]) -> None:
    """Taken apart into steps, a hidden unit is a channel that owns one row of every gate."""
    torch.manual_seed(0)
    model = NETS["recurrent"].build()
    model.gru = layer(8, 7)
    model.double().eval()
    x = NETS["recurrent"].inputs()
    graph = ChannelGraph.build(model, x, "fx")
    keep = some_channels(graph, 0)
    zero_channels_(model, graph, keep)
    small = compacted(model, x, keep, route="fx")
    assert (small.gru.input_size, small.gru.hidden_size) == (int(keep["a"].sum()), int(keep["gru"].sum()))
    x = torch.randn(4, 6, 6, dtype=torch.float64)  # another length and batch than the example
    assert (model(x) - small(x)).abs().max() <= 1e-12 * model(x).abs().max()
