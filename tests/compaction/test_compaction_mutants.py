"""Law: the mistakes others make are caught here. Each mutant must change the outputs, or the tests prove nothing."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from compaction_nets import Grouped, Sequence
from torch import Tensor, nn

import gossamer as gs
from gossamer.compaction import ChannelGraph, StructureError, dead, shrink_, zero_channels_
from gossamer.compaction.equality import difference


def outputs_differ(model: nn.Module, mutant: nn.Module, x: Tensor) -> float:
    return difference([model.eval()(x)], [mutant.eval()(x)])


def leaking(padding: int) -> tuple[nn.Module, Tensor]:
    """Only the weights that make channels 1 and 4 are masked; BatchNorm still makes constants of them."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=padding)
    ).double()
    with torch.no_grad():
        net[0].weight[[1, 4]] = 0
        net[1].running_mean.uniform_(-1, 0)
        net[1].weight.uniform_(0.5, 1)
        net[1].bias.uniform_(0, 0.3)
    return net.eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64)


def test_masking_outputs_only_leaves_constants_that_stay() -> None:
    net, x = leaking(padding=1)
    small = gs.compact(net, x, round_to=None, check_latency=False, fold=True)
    assert small.report["channels"]["0"] == {"before": 6, "after": 6}
    constant = small.constants["0"][1].item()
    assert f"1 stays: BatchNorm leaves the constant {constant:.3g}" in small.explain()
    assert constant == pytest.approx(net[2](net[1](torch.zeros(1, 6, 1, 1).double())).flatten()[1].item())

    graph = ChannelGraph.build(net, x)
    mutant = copy.deepcopy(net)
    shrink_(mutant, graph, {"0": torch.tensor([True, False, True, True, False, True])})
    assert outputs_differ(net, mutant, x) > 1e-2


def test_constants_fold_into_the_bias_without_padding() -> None:
    net, x = leaking(padding=0)
    kept = gs.compact(net, x, round_to=None, check_latency=False)
    assert kept.report["channels"]["0"]["after"] == 6
    small = gs.compact(net, x, round_to=None, check_latency=False, fold=True)
    assert small.report["channels"]["0"]["after"] == 4
    x = torch.randn(3, 3, 9, 9, dtype=torch.float64)
    assert outputs_differ(net, small.model, x) <= 1e-12


def test_folding_leaves_layers_that_run_twice_alone() -> None:
    torch.manual_seed(0)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.out = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.b(F.relu(self.a(x))) + self.b(self.c(x)))

    net = Twice().double()
    with torch.no_grad():
        net.a.weight[2] = 0
        net.a.bias[2] = 1.5
    x = torch.randn(5, 4, dtype=torch.float64)
    small = gs.compact(net, x, round_to=None, check_latency=False, fold=True)
    assert small.report["channels"]["a"]["after"] == 6
    assert outputs_differ(net, small.model, x) <= 1e-12


def test_truncating_a_group_is_wrong_and_whole_groups_are_right() -> None:
    """Slicing the first group's indices out of every group silently computes something else."""
    torch.manual_seed(0)
    net = Grouped(4).double().eval()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    graph = ChannelGraph.build(net, x)
    (group,) = graph.removable
    keep = torch.tensor([True, True, False, True])
    zero_channels_(net, graph, {group.name: keep})
    right = gs.compact(net, x, round_to=None, check_latency=False).model
    assert outputs_differ(net, right, x) <= 1e-12
    assert (right.mid.groups, right.mid.in_channels, right.mid.out_channels) == (3, 12, 12)

    mutant = copy.deepcopy(right)
    with torch.no_grad():
        mutant.mid.weight.copy_(net.mid.weight[:12])  # the first rows instead of the surviving groups
    assert outputs_differ(net, mutant, x) > 1e-2


def test_off_by_one_is_caught() -> None:
    torch.manual_seed(0)
    net = Sequence().double().eval()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    graph = ChannelGraph.build(net, x)
    keep = torch.tensor([True, False, True, True, False, True, True, True])
    zero_channels_(net, graph, {"conv1": keep})
    assert torch.equal(~dead(graph, net)["conv1"], keep)
    for shift in (-1, 1):
        mutant = copy.deepcopy(net)
        shrink_(mutant, graph, {"conv1": keep.roll(shift)})
        assert outputs_differ(net, mutant, x) > 1e-3


class Stubborn(nn.Module):
    """Code that states sizes in ways no attribute explains."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.a, self.b = how, nn.Linear(6, 8), nn.Linear(8, 4)
        self.c = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.a(x))
        if self.how == "literal slice":
            return self.c(y[:, :4] - y[:, 4:8])
        if self.how == "literal view":
            return self.b(y.view(-1, 2, 4).transpose(1, 2).reshape(-1, 8))
        if self.how == "scale by width":
            return self.b(y * y.shape[-1] ** -0.5)
        if self.how == "negative slice":
            return self.c(y[:, :4] + y[:, -4:])
        return self.b(y + torch.arange(8, dtype=y.dtype))


@pytest.mark.parametrize("how", ["literal slice", "literal view", "scale by width", "negative slice", "constant"])
def test_code_that_does_not_follow_is_refused_with_a_reason(how: str) -> None:
    torch.manual_seed(0)
    net = Stubborn(how).double().eval()
    x = torch.randn(5, 6, dtype=torch.float64)
    graph = ChannelGraph.build(net, x)
    keep = {group.name: torch.arange(group.channels) > 0 for group in graph.removable}
    zero_channels_(net, graph, keep)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    if keep:
        with pytest.raises(StructureError, match="does not follow"):
            shrink_(net, graph, keep)
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
        assert net.a.out_features == 8
    small = gs.compact(net, x, round_to=None, check_latency=False)
    assert outputs_differ(net, small.model, x) <= 1e-12
    assert sum(p.numel() for p in small.model.parameters()) == sum(p.numel() for p in net.parameters())
    assert "stay" in small.explain()


def test_one_stubborn_group_does_not_hold_the_others_back() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 6), Stubborn("literal view")).double().eval()
    x = torch.randn(5, 6, dtype=torch.float64)
    graph = ChannelGraph.build(net, x)
    zero_channels_(net, graph, {group.name: torch.arange(group.channels) > 1 for group in graph.removable})
    small = gs.compact(net, x, round_to=None, check_latency=False)
    assert list(small.unfit) == ["3.a"]
    assert small.report["channels"] == {
        "0": {"before": 10, "after": 8}, "2": {"before": 6, "after": 4}, "3.a": {"before": 4, "after": 4}
    }  # fmt: skip
    assert outputs_differ(net, small.model, x) <= 1e-12
