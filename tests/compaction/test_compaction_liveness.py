"""Law: any subset of the channels reported dead may go; nothing that matters is reported; nothing dead is missed."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from compaction_nets import NETS
from torch import Tensor, nn

from gossamer.compaction import ChannelGraph, dead, shrink_
from gossamer.compaction.equality import difference


def sparse_weights(model: nn.Module, density: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * (torch.rand(parameter.shape) < density))


@pytest.mark.parametrize("name", ["sequence", "residual", "grouped 4", "concat", "chunked", "dense", "glu", "squeeze"])
def test_any_subset_of_the_dead_may_go(name: str) -> None:
    """Of weights drawn anew; the graph says what may be joined, whatever they are."""
    net = NETS[name]
    model = net.build().double().eval()
    graph = ChannelGraph.build(model, net.inputs())
    for _ in range(2):
        sparse_weights(model, 0.15)
        found = dead(graph, model)
        for share in (1.0, 0.5):
            small = copy.deepcopy(model)
            keep = {key: ~(mask & (torch.rand(mask.shape) < share)) for key, mask in found.items()}
            shrink_(small, graph, keep)
            fresh = net.inputs()
            assert difference([model(fresh)], [small(fresh)]) <= 1e-12


def influential(model: nn.Sequential, x: Tensor, layer: int, channel: int) -> bool:
    """Does removing the channel change the output for some reachable input? Cut its column and look."""
    cut = copy.deepcopy(model)
    with torch.no_grad():
        cut[layer].weight[:, channel] = 0
    return difference([model(x)], [cut(x)]) > 1e-13


@pytest.mark.parametrize("seed", range(6))
def test_dead_is_exactly_what_has_no_influence_in_linear_chains(seed: int) -> None:
    """Without activations nothing hides a channel but zeros, so the brute-force answer is the whole answer."""
    torch.manual_seed(seed)
    model = nn.Sequential(*(nn.Linear(6, 6, bias=False) for _ in range(4))).double()
    sparse_weights(model, 0.2)
    x = torch.randn(64, 6, dtype=torch.float64)
    graph = ChannelGraph.build(model, x)
    found = dead(graph, model)
    for layer in range(1, 4):
        brute = [not influential(model, x, layer, channel) for channel in range(6)]
        if all(brute):
            brute[0] = False  # one channel always stays
        assert found[str(layer - 1)].tolist() == brute


ACTIVATIONS = {
    "relu": (F.relu, True), "gelu": (F.gelu, True), "silu": (F.silu, True), "tanh": (torch.tanh, True),
    "hardswish": (F.hardswish, True), "sigmoid": (torch.sigmoid, False), "softplus": (F.softplus, False),
    "exp": (torch.exp, False), "cos": (torch.cos, False), "abs": (torch.abs, True),
    "times itself": (lambda y: y * torch.sigmoid(y + 1), True), "plus one": (lambda y: y + 1, False),
    "leaky": (F.leaky_relu, True), "clamped above zero": (lambda y: y.clamp(min=0.1), False),
}  # fmt: skip


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_zero_row_is_dead_where_the_activation_keeps_zero(name: str) -> None:
    activation, keeps_zero = ACTIVATIONS[name]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(activation(self.a(x)))

    torch.manual_seed(0)
    model = Net().double()
    with torch.no_grad():
        model.a.weight[1], model.a.bias[1] = 0, 0
    graph = ChannelGraph.build(model, torch.randn(2, 4, dtype=torch.float64))
    assert dead(graph, model)["a"].tolist() == [False, keeps_zero, False, False, False]


def test_a_negative_constant_before_relu_is_dead_in_eval_only() -> None:
    """Dropout between them could not revive it, but the rule does not know: training asks for plain zeros."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    with torch.no_grad():
        model[0].weight[2], model[0].bias[2] = 0, -0.5
    graph = ChannelGraph.build(model, torch.randn(2, 4, dtype=torch.float64))
    assert dead(graph, model, training=False)["0"].tolist() == [False, False, True]
    assert dead(graph, model, training=True)["0"].tolist() == [False, False, False]
    assert dead(graph, model.train()).keys() == {"0"} and not dead(graph, model)["0"].any()
    assert dead(graph, model.eval())["0"][2]


def test_constants_that_cancel_keep_their_makers() -> None:
    """Channel 0 of b is 0.5 * 2 - 1 = 0: dead, but then nothing it was made of may go in its stead."""
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2), nn.Linear(2, 2)).double().eval()
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.copy_(torch.tensor([0.5, 1.0, 0.0]))
        model[1].weight.copy_(torch.tensor([[2.0, -1.0, 0.0], [1.0, 1.0, 1.0]]))
        model[1].bias.zero_()
    x = torch.randn(4, 2, dtype=torch.float64)
    graph = ChannelGraph.build(model, x)
    found = dead(graph, model)
    assert found["0"].tolist() == [False, False, True] and found["1"].tolist() == [True, False]
    for parts in itertools.product([True, False], repeat=2):
        small = copy.deepcopy(model)
        shrink_(small, graph, {key: ~mask for part, (key, mask) in zip(parts, found.items(), strict=True) if part})
        assert difference([model(x)], [small(x)]) <= 1e-15


def test_attention_heads_die_by_their_projection_or_their_values() -> None:
    for where in ("proj", "value"):
        torch.manual_seed(0)
        net = NETS["vit"]
        model = net.build().double().eval()
        x = net.inputs()
        graph = ChannelGraph.build(model, x)
        with torch.no_grad():
            if where == "proj":
                model.attn.proj.weight[:, 3:6] = 0
            else:
                rows = torch.arange(36).reshape(3, 4, 3)[2, 1]
                model.attn.qkv.weight[rows], model.attn.qkv.bias[rows] = 0, 0
        assert dead(graph, model)["attn.qkv"].tolist() == [False, True, False, False]


def test_values_decide_at_the_time_of_the_call() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    graph = ChannelGraph.build(model, torch.randn(2, 4))
    assert not dead(graph, model)["0"].any()
    with torch.no_grad():
        model[1].weight[:, 0] = 0
    assert dead(graph, model)["0"].tolist() == [True, False, False]
    with torch.no_grad():
        model[1].weight[1, 0] = -0.0
    assert dead(graph, model)["0"].tolist() == [True, False, False], "minus zero is zero"
    with torch.no_grad():
        model[1].weight[1, 0] = float("nan")
    assert not dead(graph, model)["0"].any(), "NaN is not zero"


def test_copies_carry_the_value_of_their_source() -> None:
    """A buffer of zeros that is filled is not zero, whichever way the graph writes it."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            z = torch.zeros_like(y)
            z.copy_(y)
            return self.b(z.to(torch.float32).double() + torch.zeros_like(y))

    torch.manual_seed(0)
    model = Net().double()
    x = torch.randn(2, 4, dtype=torch.float64)
    for route in ("export", "fx"):
        graph = ChannelGraph.build(model, x, route)
        assert dead(graph, model)["a"].tolist() == [False] * 5
    with torch.no_grad():
        model.b.weight[:, 2] = 0
    assert dead(graph, model)["a"].tolist() == [False, False, True, False, False]


def test_dropout_that_is_always_on_rescales_constants() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(F.relu(F.dropout(self.a(x), 0.5, training=True) - 1.0))

    model = Net().double().eval()
    with torch.no_grad():
        model.a.weight[0], model.a.bias[0] = 0, 0.75  # dropout makes 1.5 or 0 of it, never 0.75
    assert not dead(ChannelGraph.build(model, torch.randn(2, 4).double()), model)["a"].any()


def test_columns_read_with_a_filled_constant_are_alive() -> None:
    """ones(C) @ W sums W's rows: no activation has labels there, the weight has."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 5), nn.Linear(5, 3), nn.Conv2d(6, 2, 1)
            self.d = nn.Conv2d(6, 4, 1, groups=2)

        def forward(self, x: Tensor) -> Tensor:
            ones = torch.ones(2, 6, 3, 3, dtype=x.dtype)
            offset = self.b(torch.full((1, 5), 0.5, dtype=x.dtype))
            return (
                self.b(F.relu(self.a(x)))
                + offset
                + self.c(ones).mean()
                + self.c(self.d(ones).repeat(1, 2, 1, 1)[:, :6]).mean()
            )

    torch.manual_seed(0)
    model = Net().double().eval()
    with torch.no_grad():
        model.a.weight[:2], model.a.bias[:2] = 0, 0
    x = torch.randn(2, 4, dtype=torch.float64)
    for route in ("export", "fx"):
        graph = ChannelGraph.build(model, x, route)
        found = dead(graph, model)
        assert not any(bool(mask.any()) for mask in found.values()), found
