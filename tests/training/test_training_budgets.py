"""Law: the number of weights is exactly what was asked for, at the start and after every event."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from training_cases import NETWORKS, build, images, loss, run, train

from gossamer.training import MEST, SET, SNFS, Chase, GradualMagnitude, RigL, Static
from gossamer.training.distribution import allocate, budgets, fill, shares


def shapes(seed: int) -> list[tuple[int, ...]]:
    rng = np.random.default_rng(seed)
    sizes = [1, 3, 10, 16, 64, 200]
    return [
        (
            int(rng.choice(sizes)),
            int(rng.choice(sizes)),
            *((int(rng.integers(1, 5)),) * 2 if rng.random() < 0.5 else ()),
        )
        for _ in range(int(rng.integers(1, 9)))
    ]


def erk(shapes: list[tuple[int, ...]], density: float) -> tuple[list[float], set[int]]:
    """The published iteration: layers that would be denser than 1 join the dense set, and epsilon is solved again."""
    n = [math.prod(s) for s in shapes]
    p = [sum(s) / math.prod(s) for s in shapes]
    dense: set[int] = set()
    while True:
        rest = [i for i in range(len(n)) if i not in dense]
        if not rest:
            return [1.0] * len(n), dense
        budget = sum(density * n[i] for i in rest) - sum((1 - density) * n[i] for i in dense)
        epsilon = budget / sum(p[i] * n[i] for i in rest)
        most = max(epsilon * p[i] for i in rest)
        if most <= 1:
            return [1.0 if i in dense else epsilon * p[i] for i in range(len(n))], dense
        dense |= {i for i in rest if epsilon * p[i] == most}


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("kind", ["uniform", "er", "erk"])
def test_counts_add_up_and_fit(kind: str, seed: int) -> None:
    layers = shapes(seed)
    n = [math.prod(s) for s in layers]
    names = [str(i) for i in range(len(n))]
    for density in (0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 0.99, 1.0):
        total = round(density * sum(n))
        if total == 0:
            continue
        counts = budgets(names, layers, n, density=density, distribution=kind)
        assert sum(counts) == total
        assert all(0 <= c <= size for c, size in zip(counts, n, strict=True))
        exact = fill(total, shares(layers, kind), n)
        assert all(abs(c - e) < 1 for c, e in zip(counts, exact, strict=True))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("density", [0.01, 0.1, 0.5, 0.9])
def test_erk_is_the_published_iteration(seed: int, density: float) -> None:
    layers = shapes(seed)
    n = [math.prod(s) for s in layers]
    expected, dense = erk(layers, density)
    ours = fill(density * sum(n), shares(layers, "erk"), n)
    # both solve the same linear equation; the error is that of a dozen float64 operations
    assert np.allclose(ours, [d * size for d, size in zip(expected, n, strict=True)], rtol=1e-12, atol=1e-9)
    assert {i for i in range(len(n)) if ours[i] == n[i]} >= dense


def test_largest_remainder_example() -> None:
    assert allocate(7, [1.0, 1.0, 1.0], [9, 9, 9]) == [3, 2, 2]  # ties to the first
    assert allocate(0, [1.0], [5]) == [0] and allocate(5, [0.0, 0.0], [3, 2]) == [3, 2]
    assert allocate(4, [0.0, 1.0], [10, 3]) == [1, 3]  # a layer of share zero takes only what nobody else can hold


def test_rounding_each_layer_alone_would_miss_the_budget() -> None:
    """The mutant: floor per layer."""
    layers = [(10, 7), (9, 9), (31, 3)]
    n = [math.prod(s) for s in layers]
    exact = fill(50, shares(layers, "erk"), n)
    assert sum(math.floor(e) for e in exact) == 49 and sum(allocate(50, shares(layers, "erk"), n)) == 50


def test_table_fixes_some_layers_and_the_rest_shares() -> None:
    torch.manual_seed(0)
    model = NETWORKS["conv"]()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    sparse = Static(model, opt, density=0.3, distribution={"0.*": 1.0, "8.weight": 0.5}, total_steps=9)
    sizes = {name: mask.numel() for name, mask in sparse.masks.items()}
    assert sparse.masks["0.weight"].all() and int(sparse.masks["8.weight"].sum()) == sizes["8.weight"] // 2
    assert sparse.nnz() == round(0.3 * sum(sizes.values()))


@pytest.mark.parametrize("network", ["mlp", "residual", "mobile", "attention"])
@pytest.mark.parametrize("method", ["set", "rigl", "snfs", "mest"])
def test_every_event_conserves(method: str, network: str) -> None:
    model, opt, sparse = build(method, "adamw", network, update_every=1, stop=1.0, total_steps=41)
    total = round(0.3 * sum(sparse.sizes.values()))
    layers = {name: int(mask.sum()) for name, mask in sparse.masks.items()}
    soft = {0.0} if method != "mest" else {0.0, 0.1, 0.2}
    for _ in train(model, opt, 40):
        assert sparse.nnz() == total
        if method in ("set", "rigl"):
            assert {name: int(mask.sum()) for name, mask in sparse.masks.items()} == layers
    assert len(sparse.history) == 40 and all(event["nnz"] == total for event in sparse.history)
    assert {event.get("mutation", 0.0) for event in sparse.history} == soft


@pytest.mark.parametrize("method", ["set", "rigl", "snfs", "mest", "granet", "gradual", "srigl", "chase"])
def test_all_tied_scores_and_zero_gradients(method: str) -> None:
    """With every score equal a threshold test keeps all or nothing; an exact choice keeps the budget."""
    model, opt, sparse = build(method, "sgd", "mlp", density=0.25)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)
    sparse.apply()
    before = sparse.nnz()
    for _ in range(24):
        opt.zero_grad()
        (loss(model, *images()) * 0.0).backward()
        opt.step()
    assert len(sparse.history) >= 3
    total = round(0.25 * sum(sparse.sizes.values()))
    if method == "srigl":
        assert before == sparse.nnz() <= total or any(event["ablated"] for event in sparse.history)
    else:
        assert sparse.nnz() == total


@pytest.mark.parametrize("fraction", [0.0, 1.0])
@pytest.mark.parametrize("regrow", [True, False])
@pytest.mark.parametrize("cls", [SET, RigL, SNFS])
def test_drop_fraction_at_its_ends(cls: type[SET], regrow: bool, fraction: float) -> None:
    for density in (0.05, 0.5, 0.97, 1.0):
        model = NETWORKS["mlp"]()
        opt = torch.optim.SGD(model.parameters(), lr=0.1)
        sparse = cls(
            model, opt, density=density, total_steps=9, update_every=2, drop_fraction=fraction,
            drop_schedule="constant", regrow_dropped=regrow,
        )  # fmt: skip
        before = {n: m.clone() for n, m in sparse.masks.items()}
        run(model, opt, 2)
        assert len(sparse.history) == 1 and sparse.nnz() == round(density * sum(sparse.sizes.values()))
        same = all(torch.equal(m, before[n]) for n, m in sparse.masks.items())
        assert same == (fraction == 0.0 or density == 1.0)


def test_empty_and_full_layers() -> None:
    model = NETWORKS["mlp"]()
    opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    table = {"1.weight": 0.0, "3.weight": 1.0}
    sparse = RigL(model, opt, density=0.35, total_steps=99, update_every=2, distribution=table)
    assert int(sparse.masks["1.weight"].sum()) == 0 and bool(sparse.masks["3.weight"].all())
    run(model, opt, 10)
    assert int(sparse.masks["1.weight"].sum()) == 0 and bool(sparse.masks["3.weight"].all())


def test_snfs_moves_weights_between_layers_by_momentum() -> None:
    model, opt, sparse = build("snfs", "sgd", "mlp", momentum=0.0, drop_schedule="constant")
    before = {name: int(mask.sum()) for name, mask in sparse.masks.items()}
    for _ in range(4):
        opt.zero_grad()
        loss(model, *images()).backward()
        model[1].weight.grad.mul_(1e4)  # this layer's momentum dwarfs the others'
        opt.param_groups[0]["lr"] = 0.0
        opt.step()
    after = {name: int(mask.sum()) for name, mask in sparse.masks.items()}
    dropped = {name: int(0.5 * count) for name, count in before.items()}
    assert sum(after.values()) == sum(before.values())
    # mean |momentum| gives the first layer all but a 1e-3 of what was dropped
    assert after["1.weight"] - (before["1.weight"] - dropped["1.weight"]) >= sum(dropped.values()) - 2


def test_snfs_without_redistribution_keeps_every_layer_at_its_budget() -> None:
    model, opt, sparse = build("snfs", network="conv", redistribute="none")
    budget = [int(layer.active().sum()) for layer in sparse.layers]
    first = {name: mask.clone() for name, mask in sparse.masks.items()}
    for _ in train(model, opt, 24):
        assert [int(layer.active().sum()) for layer in sparse.layers] == budget
    assert any(not torch.equal(mask, first[name]) for name, mask in sparse.masks.items())


def test_frozen_layers_that_include_names_keep_their_mask_and_count() -> None:
    for cls in (RigL, SNFS, GradualMagnitude, MEST, Chase):
        torch.manual_seed(0)
        model = NETWORKS["mlp"]()
        model[3].weight.requires_grad_(False)
        opt = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
        timing = {"explore_every": 4, "channel_sparsity": 0.0} if cls is Chase else {"update_every": 4}
        sparse = cls(model, opt, density=0.3, total_steps=24, include=["*.weight"], **timing)
        mask, value = sparse.masks["3.weight"].clone(), model[3].weight.clone()
        run(model, opt, 24)
        assert torch.equal(mask, sparse.masks["3.weight"]) and torch.equal(value, model[3].weight)
        if cls is not GradualMagnitude:
            assert sparse.nnz() == round(0.3 * sum(sparse.sizes.values()))


@pytest.mark.parametrize("method", ["set", "rigl", "snfs", "mest", "gradual", "granet"])
def test_tiles_live_and_die_together(method: str) -> None:
    tile = (4, 5)  # ragged on both axes: 32 x 48, 24 x 32, 5 x 24
    model, opt, sparse = build(method, "adamw", "mlp", tile=tile)
    for _ in train(model, opt, 20):
        for layer in sparse.layers:
            grid = layer.active()
            whole = layer.elements(grid)
            assert torch.equal(whole, layer.tensor.mask)
    assert sum(int(layer.active().sum()) for layer in sparse.layers) == round(0.3 * sparse.units)
    assert all(p.tile == tile and p.nnz == int(layer.active().sum()) for p, layer in zip(
        sparse.patterns().values(), sparse.layers, strict=True))  # fmt: skip


def test_patterns_are_the_masks() -> None:
    _, _, sparse = build("static", network="conv")
    for name, pattern in sparse.patterns().items():
        mask = sparse.masks[name].flatten(1)
        assert torch.equal(pattern.to_mask(), mask) and pattern.nnz == int(mask.sum())


def test_packed_attention_is_three_layers() -> None:
    _, _, sparse = build("static", network="attention")
    names = [layer.name for layer in sparse.layers if layer.tensor.name == "attention.in_proj_weight"]
    assert names == [f"attention.in_proj_weight[{part}]" for part in "qkv"]
    counts = sparse.masks["attention.in_proj_weight"].view(3, 16, 16).sum((1, 2)).tolist()
    assert max(counts) - min(counts) <= 1  # equal shapes, equal budgets


def test_magnitude_init_keeps_the_largest() -> None:
    torch.manual_seed(0)
    model = nn.Linear(30, 20)
    weight = model.weight.detach().clone()
    sparse = Static(model, torch.optim.SGD(model.parameters(), lr=0.1), density=0.2, init="magnitude", total_steps=9)
    mask = sparse.masks["weight"]
    assert weight[mask].abs().min() > weight[~mask].abs().max() and torch.equal(model.weight[mask], weight[mask])
