"""How channels of different groups are compared: by cost, whatever the example's sizes, and the same after a resume."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import gossamer as gs
from gossamer.training import Chase
from gossamer.training.ranking import comparable, costs, widths
from gossamer.training.tracing import find


class Uneven(nn.Module):
    """A layer between two 3 x 3 convolutions costs many times one between two of 1 x 1; then neurons."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 3, padding=1)
        self.third, self.fourth = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 4, 1)
        self.hidden, self.out = nn.Linear(4, 32), nn.Linear(32, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.third(self.second(self.first(x).relu()).relu()).relu()
        return self.out(self.hidden(self.fourth(x).mean((2, 3))).relu())


def trained(batch: int, side: int, **options) -> Chase:
    torch.manual_seed(0)
    model = Uneven()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = Chase(
        model, optimizer, density=0.5, channel_sparsity=0.5, total_steps=8, explore_every=4, channel_every=2, **options
    )
    for t in range(8):
        x = torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(t))
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    return method


def left(method: Chase) -> dict[str, int]:
    return {name: int(alive.sum()) for name, alive in method.channels().items()}


def test_a_cost_weighs_operations_three_times_as_much_as_weights() -> None:
    model = Uneven()
    method = Chase(model, torch.optim.SGD(model.parameters()), density=0.5, total_steps=9, channel_sparsity=0.0)
    found = costs(find(method, torch.zeros(2, 3, 6, 6)))
    pixels = 2 * 6 * 6
    weights = {"first": 3 + 9 * 16, "second": 2 * 9 * 16, "third": 9 * 16 + 4}
    for name, count in weights.items():
        assert found[name] == pytest.approx(count**0.25 * (2 * count * pixels) ** 0.75)
    assert found["hidden"] == pytest.approx(7**0.25 * (2 * 7 * 2) ** 0.75)


def test_what_goes_does_not_depend_on_the_examples_sizes() -> None:
    first, *others = [left(trained(batch, side)) for batch, side in ((2, 5), (7, 5), (2, 9))]
    assert all(other == first for other in others)
    assert first["second"] < first["first"] < 16  # the dearer channels go first


def test_neurons_and_channels_each_lose_their_share() -> None:
    method = trained(2, 5)
    assert left(method)["hidden"] == 16
    assert sum(left(method).values()) == (16 + 16 + 16 + 4 + 32) // 2


@pytest.mark.parametrize("dearer", [1.0, 4.0, 9.0])
def test_shares_are_in_proportion_to_the_root_of_the_cost(dearer: float) -> None:
    """However many removals it takes: what is gone counts."""
    size = 600
    scores = {name: torch.rand(size, generator=torch.Generator().manual_seed(i)) for i, name in enumerate("ab")}
    alive = {name: torch.ones(size, dtype=torch.bool) for name in scores}
    for remove in (100, 150, 50):
        keys = comparable(scores, alive, "cost", original={"a": size, "b": size}, costs={"a": 1.0, "b": dearer})
        for name, width in widths(keys, alive, floors={"a": 1, "b": 1}, remove=remove).items():
            order = torch.argsort(keys[name].masked_fill(~alive[name], math.inf))
            weakest = torch.argsort(scores[name].masked_fill(~alive[name], math.inf))
            gone = int(alive[name].sum()) - width
            assert torch.equal(order[:gone], weakest[:gone])
            alive[name][order[:gone]] = False
    lost = {name: size - int(mask.sum()) for name, mask in alive.items()}
    assert lost["a"] + lost["b"] == 300
    assert abs(lost["b"] - math.sqrt(dearer) * lost["a"]) <= 1 + math.sqrt(dearer)


def test_a_resumed_run_keeps_the_costs_it_began_with() -> None:
    method = trained(2, 5)
    assert method.removed is not None
    state = method.state_dict()
    state["channels"]["second"]["cost"] = 7.0
    for example in (torch.zeros(3, 3, 9, 9), None):  # found before the state is loaded, or after
        model = Uneven()
        other = Chase(
            model, torch.optim.SGD(model.parameters(), lr=0.1), density=0.5, channel_sparsity=0.5, total_steps=8,
            explore_every=4, channel_every=2, example_inputs=example,
        )  # fmt: skip
        other.load_state_dict(state)
        model(torch.zeros(3, 3, 9, 9))
        assert other.removed is not None
        assert other.removed.costs == {**method.removed.costs, "second": 7.0}


@pytest.mark.parametrize("cost", [0, -1.0, math.nan, "much", 10**400])
def test_a_state_with_a_cost_that_is_none_is_refused(cost: object) -> None:
    method = trained(2, 5)
    state = method.state_dict()
    state["channels"]["second"]["cost"] = cost
    with pytest.raises(ValueError, match=r"channels\['second'\]\.cost"):
        method.load_state_dict(state)


def test_operations_that_torch_cannot_count_use_each_weight_once() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.out = nn.GRU(6, 24, batch_first=True), nn.Linear(24, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.rnn(x)[0][:, -1])

    model = Recurrent()
    method = Chase(model, torch.optim.SGD(model.parameters()), density=0.5, total_steps=9, channel_sparsity=0.0)
    found = costs(find(method, torch.zeros(2, 5, 6)))
    assert all(math.isfinite(cost) and cost >= 1.0 for cost in found.values()) and found


def test_the_network_is_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    method = Chase(model, torch.optim.SGD(model.parameters()), density=0.5, total_steps=9, channel_sparsity=0.0)
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    channels = find(method, torch.randn(2, 3, 8, 8))
    costs(channels)
    assert model.training and all(module.training for module in model.modules())
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
    assert torch.equal(before["1.running_mean"], kept["1.running_mean"])
    assert gs.measure.count(model, torch.randn(1, 3, 8, 8)).flops > 0
