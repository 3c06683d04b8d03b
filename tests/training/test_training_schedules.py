"""Law: densities and channel counts follow the published equations, number for number."""

from __future__ import annotations

import math

import pytest
import torch
from training_cases import NETWORKS, build, images, run, train

from gossamer.schedule import Schedule
from gossamer.training import Chase, GradualMagnitude, GraNet


@pytest.mark.parametrize("kind", ["linear", "cosine", "cubic"])
def test_schedules_start_and_end_exactly(kind: str) -> None:
    schedule = Schedule(kind, 0.7, 0.1)
    assert schedule(0.0) == pytest.approx(0.7, rel=1e-15) and schedule(1.0) == 0.1
    assert schedule(-1) == schedule(0.0) and schedule(2.0) == 0.1
    middle = {"linear": 0.4, "cosine": 0.4, "cubic": 0.1 + 0.6 / 8}
    assert schedule(0.5) == pytest.approx(middle[kind], rel=1e-14)
    values = [schedule(i / 50) for i in range(51)]
    assert values == sorted(values, reverse=True)


def test_constant_schedule_ignores_its_end() -> None:
    assert [Schedule("constant", 0.3, 0.0)(p) for p in (0, 0.5, 1)] == [0.3] * 3


def test_rigl_fraction_is_half_a_cosine() -> None:
    model, opt, sparse = build("rigl", total_steps=40, update_every=5)
    run(model, opt, 40)
    end = 30
    for event in sparse.history:
        assert event["drop_fraction"] == pytest.approx(0.15 * (1 + math.cos(math.pi * event["step"] / end)), rel=1e-14)
    assert [event["step"] for event in sparse.history] == [5, 10, 15, 20, 25]


@pytest.mark.parametrize("cls", [GradualMagnitude, GraNet])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_gradual_pruning_is_cubic_and_exact(cls: type[GradualMagnitude], scope: str) -> None:
    torch.manual_seed(0)
    model = NETWORKS["conv"]()
    opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sparse = cls(model, opt, density=0.1, initial_density=0.8, total_steps=40, update_every=3, start=0.1, scope=scope)
    n = sum(sparse.sizes.values())
    assert sparse.nnz() == round(0.8 * n)
    run(model, opt, 40)
    steps = [event["step"] for event in sparse.history]
    assert steps == [6, 9, 12, 15, 18, 21, 24, 27, 30]
    for event in sparse.history:
        p = (event["step"] - 4) / 26
        assert event["nnz"] == round(n * (0.1 + 0.7 * (1 - p) ** 3))
    assert sparse.nnz() == round(0.1 * n)


def test_gradual_layers_follow_their_own_lines() -> None:
    torch.manual_seed(0)
    model = NETWORKS["conv"]()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    table = {"0.weight": 0.5, "8.weight": 0.25}
    sparse = GradualMagnitude(model, opt, density=0.1, total_steps=20, update_every=5, distribution=table)
    sizes = list(sparse.sizes.values())
    assert sparse.density() == 1.0
    for step in train(model, opt, 20):
        if sparse.history and sparse.history[-1]["step"] == step:
            left = (1 - step / 15) ** 3
            for mask, size, last in zip(sparse.masks.values(), sizes, sparse.budget, strict=True):
                assert abs(int(mask.sum()) - (last + (size - last) * left)) <= 1
    assert [int(mask.sum()) for mask in sparse.masks.values()] == sparse.budget
    assert sparse.budget[0] == 216 and sparse.budget[2] == 120


def test_gradual_ends_on_target_off_the_grid() -> None:
    model, opt, sparse = build("gradual", total_steps=37, update_every=10, stop=0.7)
    run(model, opt, 37)
    assert [event["step"] for event in sparse.history] == [10, 20, 26]
    assert sparse.nnz() == round(0.3 * sum(sparse.sizes.values()))


def test_mest_bounds() -> None:
    for soft in (False, True):
        model, opt, sparse = build(
            "mest", density=0.2, mutation=(0.4, 0.2, 0.0), mutation_ends=(0.5, 0.75), soft=soft, total_steps=40,
            update_every=4,
        )  # fmt: skip
        n, total = sum(sparse.sizes.values()), round(0.2 * sum(sparse.sizes.values()))
        seen = {}
        for step in train(model, opt, 40):
            seen[step] = sparse.nnz()
        level = {event["step"]: event["mutation"] for event in sparse.history}
        assert level == {4: 0.4, 8: 0.4, 12: 0.4, 16: 0.4, 20: 0.2, 24: 0.2, 28: 0.2, 32: 0.0}
        for event in sparse.history:
            assert seen[event["step"]] == (round(0.2 * (1 + event["mutation"]) * n) if soft else total)
        if not soft:
            assert all(event["dropped"] <= total - round(0.2 * (1 - event["mutation"]) * n) for event in sparse.history)
        assert sparse.nnz() == total


@pytest.mark.parametrize("explore", ["global", "layer"])
def test_chase_soft_bound(explore: str) -> None:
    torch.manual_seed(0)
    model = NETWORKS["conv"]()
    opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sparse = Chase(
        model, opt, density=0.1, channel_sparsity=0.0, total_steps=50, explore_every=4, extra_density=0.05,
        explore=explore,
    )  # fmt: skip
    n, end = sum(sparse.sizes.values()), 40
    run(model, opt, 50)
    steps = [event["step"] for event in sparse.history]
    assert steps == [*range(4, 49, 4)]
    for event in sparse.history:
        t = event["step"]
        bound = 0.1 + 0.05 * (1 + math.cos(math.pi * t / end)) / 2 if t < end else 0.1
        assert event["nnz"] == event["target"] == round(n * bound)
        assert event["phase"] == ("A" if t < end else "B")
    # phase A prunes to the budget before it grows: what it drops is what the bound let in before
    for before, event in zip(sparse.history, sparse.history[1:], strict=False):
        if event["phase"] == "A":
            assert event["dropped"] <= before["nnz"] - round(0.1 * n)
    # phase B replaces rho(t), a cosine from .5 to .005 over the whole training
    for event in sparse.history:
        if event["phase"] == "B":
            rho = 0.005 + 0.495 * (1 + math.cos(math.pi * event["step"] / 50)) / 2
            assert event["dropped"] <= math.ceil(rho * round(0.1 * n)) + (round(n * 0.15) - round(n * 0.1))
    assert sparse.nnz() == round(0.1 * n)


INNER, ALL = ("inner", 0.2), ("all", 0.5)


@pytest.mark.parametrize(
    ("times", "scope", "share"),
    [
        ({"total_steps": 60, "explore_every": 6, "channel_every": 6}, *INNER),
        ({"total_steps": 61, "explore_every": 7, "channel_every": 3}, *ALL),
        ({"total_steps": 50, "explore_every": 10, "channel_every": 4, "channel_stop": 0.5, "explore_stop": 0.9}, *ALL),
        (
            {"total_steps": 50, "explore_every": 10, "channel_every": 4, "channel_stop": 0.95, "explore_stop": 0.6},
            *INNER,
        ),
        ({"total_steps": 30, "explore_every": 100, "channel_every": 100}, *ALL),
        ({"total_steps": 30, "explore_every": 3, "channel_every": 3, "channel_stop": 1.0, "explore_stop": 1.0}, *INNER),
    ],
)
def test_chase_channel_schedule(times: dict, scope: str, share: float) -> None:
    torch.manual_seed(0)
    model = NETWORKS["residual"]()
    opt = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    sparse = Chase(model, opt, density=0.2, channel_sparsity=share, scope=scope, min_width=0.5, **times)
    run(model, opt, times["total_steps"])
    alive = sparse.channels()
    total = sum(a.numel() for a in alive.values())
    assert total == {"inner": 32, "all": 60}[scope]
    end = round(times.get("channel_stop", 0.8) * times["total_steps"])
    removals = [event for event in sparse.history if event["kind"] == "channels"]
    assert [e["step"] for e in removals] == [
        t for t in range(1, end + 1) if t == end or (t + times["explore_every"] // 2) % times["channel_every"] == 0
    ]
    gone = 0
    for event in removals:
        progress = event["step"] / end
        gone += event["removed"]
        assert gone == round(total * share * (1 - (1 - progress) ** 3)) and event["channels"] == total - gone
    assert gone == round(total * share) == total - sum(int(a.sum()) for a in alive.values())
    for name, a in alive.items():
        assert int(a.sum()) >= max(1, int(a.numel() * (1 - share) * 0.5)), name
    assert sparse.nnz() == min(round(0.2 * sum(sparse.sizes.values())), sparse.history[-1]["capacity"])


def test_chase_offsets_removal_by_half_an_exploration() -> None:
    _, _, sparse = build("chase", total_steps=1000, explore_every=100, channel_every=100)
    assert [t for t in range(1, 1001) if "channels" in sparse.events(t)] == [50, 150, 250, 350, 450, 550, 650, 750, 800]
    assert [t for t in range(1, 1001) if "explore" in sparse.events(t)] == [*range(100, 1000, 100)]


def test_chase_reports_capacity_shortage() -> None:
    """Many channels gone at a high density: the budget no longer fits, and the history says so."""
    model, opt, sparse = build("chase", network="conv", density=0.9, channel_sparsity=0.6, min_width=0.1)
    run(model, opt)
    last = sparse.history[-1]
    assert last["capacity"] < last["target"] and sparse.nnz() == last["capacity"]


def test_chase_infeasible_target_is_explained() -> None:
    with pytest.raises(
        ValueError, match=r"channel_sparsity=0\.99 removes 40 of 40 channels, but the floors .* leave only"
    ):
        build(
            "chase", network="conv", channel_sparsity=0.99, min_width=1.0, example_inputs=images()[0], extra_density=0
        )
