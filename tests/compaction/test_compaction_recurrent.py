"""Law: recurrent layers shrink by a route that is found without being named, or say why they cannot."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gossamer as gs
from gossamer.compaction import ChannelGraph, zero_channels_


class Recurrent(nn.Module):
    def __init__(self, cell: type, batch_first: bool = True, **options: Any) -> None:
        super().__init__()
        self.first = batch_first
        self.rnn = cell(6, 12, batch_first=batch_first, **options)
        width = (options.get("proj_size") or 12) * (2 if options.get("bidirectional") else 1)
        self.fc = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.rnn(x)[0]
        return self.fc(y[:, -1] if self.first else y[-1])


@pytest.mark.parametrize(("cell", "batch_first"), [(nn.LSTM, True), (nn.LSTM, False), (nn.GRU, False), (nn.RNN, True)])
def test_hidden_units_go(cell: type, batch_first: bool) -> None:
    torch.manual_seed(0)
    net, x = (
        Recurrent(cell, batch_first).double(),
        torch.randn(4, 3, 6, dtype=torch.float64),
    )  # a step of time is a part of the graph
    graph = ChannelGraph.build(net, x)
    assert graph.route == "fx" and [(group.name, group.kind) for group in graph.removable] == [("rnn", "inner")]
    zero_channels_(net, graph, {"rnn": torch.arange(12) % 3 > 0})
    small = gs.compact(net, x, round_to=None, check_latency=False)
    assert small.model.rnn.hidden_size == 8 and small.model.rnn.batch_first == batch_first
    longer = torch.randn(3, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(small.model(longer), net(longer), rtol=1e-12, atol=1e-12)


REASONS = [
    (nn.LSTM, {"num_layers": 2}, "has one hidden_size for 2 layers"),
    (nn.GRU, {"bidirectional": True}, "has one hidden_size for 2 directions"),
    (nn.RNN, {"bidirectional": True}, "has one hidden_size for 2 directions"),
    (nn.LSTM, {"proj_size": 4}, "has one hidden_size for a projection"),
]


@pytest.mark.parametrize(("cell", "options", "reason"), REASONS)
def test_one_hidden_size_for_several_widths_stays(cell: type, options: dict, reason: str) -> None:
    net = nn.Sequential(nn.Linear(6, 6), Recurrent(cell, **options))
    graph = ChannelGraph.build(net, torch.randn(2, 2, 6))
    assert [group.name for group in graph.removable] == ["0"]  # what feeds the layer can shrink
    assert {group.frozen for group in graph.groups if group.name.startswith("1.rnn")} == {
        f"nn.{cell.__name__} {reason}"
    }


def test_chase_drains_hidden_units_and_training_goes_on() -> None:
    torch.manual_seed(0)
    net = Recurrent(nn.LSTM)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    gs.training.Chase(
        net, optimizer, density=0.4, channel_sparsity=0.4, total_steps=12, explore_every=3, channel_every=3,
        compact_every=1, init="random",
    )  # fmt: skip
    for _ in range(12):
        optimizer.zero_grad()
        net(torch.randn(4, 5, 6)).square().mean().backward()
        optimizer.step()
    assert net.rnn.hidden_size == 7 and net.fc.weight.shape == (3, 7)


def test_a_vector_alone_is_a_matrix_of_one_row() -> None:
    class Vectors(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.v = nn.Parameter(torch.randn(8, 4)), nn.Parameter(torch.randn(8, 6))
            self.last, self.u = nn.Linear(6, 5), nn.Parameter(torch.randn(5))

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.relu(self.w @ x) @ self.v) @ self.u

    torch.manual_seed(0)
    net, x = Vectors(), torch.randn(4)
    graph = ChannelGraph.build(net, x)
    assert [(group.name, group.channels) for group in graph.removable] == [("w", 8), ("v", 6), ("last", 5)]
    zero_channels_(net, graph, {group.name: torch.arange(group.channels) % 2 == 0 for group in graph.removable})
    small = gs.compact(net, x, round_to=None, check_latency=False)
    assert [tuple(p.shape) for p in small.model.parameters()] == [(4, 4), (4, 3), (3,), (3, 3), (3,)]
    torch.testing.assert_close(small.model(x), net(x))
