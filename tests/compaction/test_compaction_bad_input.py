"""Law: bad input gives an error that names the argument, the value and what was expected; nothing changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from compaction_nets import Sequence
from torch import Tensor, nn

import gossamer as gs
from gossamer.compaction import CaptureError, ChannelGraph, InexactError, shrink_, zero_channels_

X = torch.randn(2, 3, 8, 8)


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Noisy(nn.Module):
    """Draws from its own generator: no seed makes it repeat itself."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.b(self.a(x)) * self.calls


def test_a_branch_on_values_names_both_causes() -> None:
    with pytest.raises(CaptureError, match=r"Branching cannot be captured.*export: .*fx: "):
        ChannelGraph.build(Branching(), torch.randn(3))


class Choosing(nn.Module):
    """Keeps the rows that its `choose` finds: how many is known only to the values."""

    def __init__(self, choose: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.choose = nn.Linear(4, 6), nn.Linear(6, 2), choose

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.choose(self.a(x).relu()))


@pytest.mark.parametrize(
    ("choose", "by"),
    [
        (lambda h: h[h.sum(1) > 1], "index"),
        (lambda h: h[(h.sum(1) > 1).nonzero()[:, 0]], "nonzero"),
        (lambda h: h * h.masked_select(h > 0).sum(), "masked_select"),
    ],
)
def test_sizes_that_depend_on_values_are_named(choose: Callable[[Tensor], Tensor], by: str) -> None:
    with pytest.raises(CaptureError, match=f"cannot be captured.*how many elements {by} gives depends on values"):
        gs.compact(Choosing(choose), torch.randn(8, 4))


def test_a_failed_capture_restores_training_flags() -> None:
    net = nn.Sequential(Branching(), nn.Dropout()).train()
    net[1].eval()
    with pytest.raises(CaptureError):
        ChannelGraph.build(net, torch.randn(3))
    assert net.training and net[0].training and not net[1].training


@pytest.mark.parametrize(
    ("inputs", "route", "error", "message"),
    [
        (3, "auto", TypeError, "example_inputs must be a tensor, a tuple .* got int"),
        (X, "jit", ValueError, "route must be one of .* got 'jit'"),
        (torch.randn(2, 4), "auto", CaptureError, "cannot be captured"),
    ],
)
def test_bad_inputs_to_build(inputs: Any, route: str, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        ChannelGraph.build(Sequence(), inputs, route)


def test_lazy_modules_ask_for_a_forward() -> None:
    with pytest.raises(ValueError, match=r"0.weight has no shape yet"):
        ChannelGraph.build(nn.Sequential(nn.LazyLinear(3)), torch.randn(2, 4))


MASKS = [
    ({"nowhere": torch.ones(8, dtype=torch.bool)}, KeyError, "no channel group named 'nowhere'; groups are"),
    ({"conv1": torch.ones(7, dtype=torch.bool)}, ValueError, r"bool tensor of shape \(8,\), got .* \(7,\)"),
    ({"conv1": torch.ones(8)}, ValueError, "must be a bool tensor"),
    ({"conv1": [True] * 8}, ValueError, "got list"),
    ({"conv1": torch.zeros(8, dtype=torch.bool)}, ValueError, "removes all 8 channels, at least one must stay"),
    ({"fc": torch.arange(5) < 3}, ValueError, "a group that stays: graph output"),
]


@pytest.mark.parametrize("action", [shrink_, zero_channels_])
@pytest.mark.parametrize(("keep", "error", "message"), MASKS)
def test_bad_masks(action: Any, keep: dict, error: type, message: str) -> None:
    net = Sequence()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    keep = {"conv2": torch.arange(12) < 5, **keep}
    with pytest.raises(error, match=message):
        action(net, ChannelGraph.build(net, X), keep)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_graph_of_another_model_is_refused() -> None:
    graph = ChannelGraph.build(Sequence((8, 12)), X)
    with pytest.raises(ValueError, match="build the graph again"):
        shrink_(Sequence((8, 10)), graph, {"conv2": torch.arange(12) < 5})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"round_to": 0}, ValueError, 'round_to must be "auto", None or a positive integer, got 0'),
        ({"round_to": 2.5}, ValueError, "got 2.5"),
        ({"round_to": True}, ValueError, "got True"),
        ({"tolerance": -1.0}, ValueError, "tolerance must be at least 0, got -1.0"),
        ({"keep": {"conv1": torch.arange(8) < 6}}, ValueError, r"2 channels that are not dead: \[6, 7\]"),
        ({"optimizer": object()}, TypeError, "must be a torch.optim.Optimizer, or .* got object"),
    ],
)
def test_bad_options_of_compact(options: dict, error: type, message: str) -> None:
    net = Sequence()
    with torch.no_grad():
        net.conv2.weight[:, 0] = 0
    with pytest.raises(error, match=message):
        gs.compact(net, X, check_latency=False, **({"round_to": None} | options))


def test_an_optimizer_of_another_model_is_refused() -> None:
    net, other = Sequence(), Sequence()
    with torch.no_grad():
        net.conv2.weight[:, 0] = 0
    with pytest.raises(ValueError, match="not a parameter of the model"):
        gs.compact(
            net, X, optimizer=torch.optim.SGD(other.parameters(), 0.1), round_to=None, check_latency=False
        )  # fmt: skip


def test_a_model_that_never_repeats_itself_is_refused() -> None:
    with pytest.raises(InexactError, match="two different outputs for one input"):
        gs.compact(Noisy(), torch.randn(3, 4), check_latency=False)


def test_dropout_in_eval_mode_is_no_obstacle() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.ReLU(inplace=True), nn.Linear(6, 2)).train()
    with torch.no_grad():
        net[3].weight[:, 2:] = 0
    small = gs.compact(net, torch.randn(3, 4), round_to=None, check_latency=False)
    assert small.model[0].out_features == 2 and small.model.training


def test_what_is_no_model_is_named(tmp_path) -> None:
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got int"):
        gs.compact(3, X)
    net = Sequence()
    with torch.no_grad():
        net.conv2.weight[:, 0] = 0
    gs.compact(net, X, round_to=None, check_latency=False).save(tmp_path)
    for factory in (net, "Sequence"):
        with pytest.raises(TypeError, match=f"factory must be a function .* got {type(factory).__name__}"):
            gs.load_compact(factory, tmp_path)
