"""RigL that scores a few inputs of each row: those that grow are the best of what was drawn; no dense gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from gossamer.nn import FanInLinear
from gossamer.ops import fan_in_candidates
from gossamer.training import RigL, SRigL, tiles

ROWS, COLS, FAN_IN = 12, 30, 6


def problem(**settings: Any) -> tuple[FanInLinear, torch.optim.Optimizer, RigL]:
    layer = FanInLinear(COLS, ROWS, fan_in=FAN_IN, bias=False, seed=3)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    fixed = {"density": FAN_IN / COLS, "total_steps": 20, "update_every": 2, "stop": 1.0, "drop_fraction": 0.5}
    return layer, optimizer, RigL(layer, optimizer, **{**fixed, **settings})


def step(layer: FanInLinear, optimizer: torch.optim.Optimizer, seed: int, parts: int = 1) -> torch.Tensor:
    """One step; the dense gradient of its weight before it."""
    x, aim = (torch.randn(8, n, generator=torch.Generator().manual_seed(seed)) for n in (COLS, ROWS))
    dense = layer.to_dense().detach().requires_grad_()
    loss = (x @ dense.t() - aim).square().sum()
    (gradient,) = torch.autograd.grad(loss, dense)
    optimizer.zero_grad()
    for some, theirs in zip(x.chunk(parts), aim.chunk(parts), strict=True):  # accumulated
        (layer(some) - theirs).square().sum().backward()
    optimizer.step()
    return gradient.abs()


@pytest.mark.parametrize("parts", [1, 4])
def test_what_grows_is_the_best_of_what_was_drawn(parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[torch.Tensor] = []

    def draw(*args: Any, **how: Any) -> torch.Tensor:
        drawn.append(fan_in_candidates(*args, **how))
        return drawn[-1]

    monkeypatch.setattr(tiles, "fan_in_candidates", draw)
    monkeypatch.setattr(tiles, "candidate_scores", None)  # the dense gradient, by bands
    torch.manual_seed(0)
    layer, optimizer, method = problem(candidates=9)
    for update in range(3):
        step(layer, optimizer, 2 * update)
        old = layer.pattern.indices.long().tolist()
        gradient = step(layer, optimizer, 2 * update + 1, parts)
        grown = 0
        shown = drawn[-1].long().tolist()
        for row, (before, after) in enumerate(zip(old, layer.pattern.indices.long().tolist(), strict=True)):
            new = set(after) - set(before)
            assert new == set(sorted(shown[row], key=lambda at, row=row: -float(gradient[row, at]))[: len(new)])
            grown += len(new)
        assert 0 < grown == method.history[-1]["grown"]
    assert len(drawn) == 3 and not torch.equal(drawn[0].int(), drawn[1].int())
    assert method.nnz() == ROWS * FAN_IN


def test_with_all_inputs_it_is_rigl() -> None:
    found = []
    for candidates in (0, COLS):
        torch.manual_seed(0)
        layer, optimizer, _ = problem(candidates=candidates, regrow_dropped=False, drop_fraction=0.2)
        for at in range(8):
            step(layer, optimizer, at)
        found.append(layer.pattern.indices.int())
    assert torch.equal(*found)


def test_a_row_that_lost_more_than_it_was_shown_gets_its_largest_back() -> None:
    layer, optimizer, method = problem(candidates=1, drop_fraction=1.0, drop_schedule="constant")
    step(layer, optimizer, 0)
    optimizer.param_groups[0]["lr"] = 0.0
    old, least = layer.pattern.indices.long(), layer.values.detach().abs().argmin(1).tolist()
    step(layer, optimizer, 1)
    for before, after, at in zip(old.tolist(), layer.pattern.indices.long().tolist(), least, strict=True):
        assert len(set(after) - set(before)) == 1
        assert set(before) - set(after) == {before[at]}
    assert method.history[-1]["grown"] == ROWS


def test_a_run_that_stopped_goes_on_with_the_same_draws() -> None:
    whole, optimizer, method = problem(candidates=5)
    for at in range(4):
        step(whole, optimizer, at)
    states = [{**each.state_dict()} for each in (whole, optimizer)] + [method.state_dict()]
    states = torch.utils._pytree.tree_map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, states)
    again, other, resumed = problem(candidates=5)
    for each, state in zip((again, other, resumed), states, strict=True):
        each.load_state_dict(state)
    for at in range(4, 10):
        step(whole, optimizer, at)
        step(again, other, at)
    assert torch.equal(whole.indices, again.indices) and torch.equal(whole.values, again.values)


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"candidates=4 is for FanInLinear layers, of which there are none"):
        net = nn.Linear(8, 4)
        RigL(net, torch.optim.SGD(net.parameters(), lr=0.1), density=0.5, total_steps=9, candidates=4)
    with pytest.raises(ValueError, match="candidates must be an integer >= 0, got -1"):
        problem(candidates=-1)
    with pytest.raises(ValueError, match=r"candidates are others in each step, expected grad_window=1, got 2"):
        problem(candidates=4, grad_window=2)
    with pytest.raises(TypeError, match="candidates"):
        net = nn.Linear(8, 4)
        SRigL(net, torch.optim.SGD(net.parameters(), lr=0.1), density=0.5, total_steps=9, candidates=4)
