"""Law: SRigL keeps a constant fan-in per living neuron, and an ablated neuron is gone everywhere."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from training_cases import build, images, loss, run, train

from gossamer.compaction import dead
from gossamer.training import SRigL


def fan_ins(sparse: SRigL) -> dict[str, set[int]]:
    """Distinct numbers of weights over the rows that have any."""
    return {n: set(m.flatten(1).sum(1)[m.flatten(1).any(1)].tolist()) for n, m in sparse.masks.items()}


SALIENT = {"mlp": (0.0, 2), "conv": (0.3, 0.8), "residual": (0.0, 0.8), "mobile": (0.8, 2), "attention": (0.3, 2)}


@pytest.mark.parametrize(
    ("network", "salient"), [(network, salient) for network, each in SALIENT.items() for salient in each]
)
def test_fan_in_is_constant_after_every_update(network: str, salient: float) -> None:
    model, opt, sparse = build("srigl", "nesterov", network, min_salient=salient)
    updates = 0
    for step in train(model, opt, 24):
        parts = {layer.name: layer.view(layer.tensor.mask) for layer in sparse.layers}
        if step % 4 == 0 or step < 4:
            for name, mask in parts.items():
                assert len(set(mask.sum(1)[mask.any(1)].tolist())) <= 1, name
        updates += len(sparse.history)
    assert updates and sparse.nnz() <= round(0.3 * sum(sparse.sizes.values()))
    assert all(pattern.is_uniform for pattern in sparse.patterns().values()) or salient or network == "attention"


def test_without_ablation_only_the_floor_is_lost() -> None:
    _, _, sparse = build("srigl", min_salient=0)
    lost = [budget - int(layer.tensor.mask.sum()) for budget, layer in zip(sparse.budget, sparse.layers, strict=True)]
    assert all(0 <= gap < layer.shape[0] for gap, layer in zip(lost, sparse.layers, strict=True))


def test_ablated_neurons_are_gone_from_every_tensor() -> None:
    model, opt, sparse = build("srigl", "adamw", "conv", min_salient=0.95, example_inputs=images()[0])
    run(model, opt, 24)
    alive = sparse.channels()
    ablated = sum(event["ablated"] for event in sparse.history)
    assert ablated == sum(int((~a).sum()) for a in alive.values()) > 0
    for group, weight, norm, reader in (("0", 0, 1, 3), ("3", 3, 4, 8)):
        gone = ~alive[group]
        assert bool((model[weight].weight[gone] == 0).all())
        assert bool((model[norm].weight[gone] == 0).all()) and bool((model[norm].bias[gone] == 0).all())
        columns = model[reader].weight.unflatten(1, (len(gone), -1))[:, gone]
        assert bool((columns == 0).all())
    assert bool((model[0].bias[~alive["0"]] == 0).all())
    found = dead(sparse.graph, model)
    assert all(bool(found[name][~a].all()) for name, a in alive.items())
    assert list(alive) == ["0", "3"]  # never the classifier's neurons


def test_weights_of_ablated_neurons_go_to_the_others() -> None:
    model, opt, sparse = build("srigl", "momentum", "mlp", min_salient=0.95)
    before = fan_ins(sparse)["1.weight"]
    run(model, opt, 20)
    living = int(sparse.channels()["1"].sum())
    assert living < 32
    assert fan_ins(sparse)["1.weight"] == {min(sparse.budget[0] // living, 48)}
    assert max(before) < sparse.budget[0] // living


def test_one_neuron_always_stays() -> None:
    model, opt, sparse = build("srigl", "sgd", "mlp", min_salient=10_000)
    run(model, opt, 24)
    assert {name: int(alive.sum()) for name, alive in sparse.channels().items()} == {"1": 1, "3": 1}
    assert torch.isfinite(loss(model, *images()))


@pytest.mark.parametrize(
    ("crowd", "second", "expected"),
    [
        (5, [0.5, 0.0], [[0, 0, 1, 1, 1, 0], [0, 0, 0, 1, 1, 1]]),
        (4, [0.5, 0.6], [[0, 1, 1, 1, 0, 0], [0, 1, 0, 0, 1, 1]]),
    ],
    ids=["two too many", "one too many"],
)
def test_a_row_with_too_many_keeps_its_largest(crowd: int, second: list[float], expected: list[list[int]]) -> None:
    """The reference trims over-full neurons by sorting the boolean mask, which keeps the first columns instead."""
    model = nn.Linear(6, 2, bias=False)
    opt = torch.optim.SGD(model.parameters(), lr=0.0)
    sparse = SRigL(
        model, opt, density=0.5, total_steps=99, update_every=1, min_salient=0, drop_fraction=1 / 6,
        drop_schedule="constant",
    )  # fmt: skip
    weight = torch.tensor([[float(i + 1 if i < crowd else 0) for i in range(6)], [*second, 0.0, 0.0, 0.0, 0.0]])
    sparse.masks["weight"].copy_(weight != 0)
    model.weight.data = weight
    model.weight.grad = torch.arange(12.0).view(2, 6)
    opt.step()
    # the smallest of all, 0.5, is dropped; row 0 keeps its 3 largest; row 1 grows to 3 by its largest gradients
    assert sparse.masks["weight"].int().tolist() == expected


def test_residual_neurons_are_not_ablated() -> None:
    model, opt, sparse = build("srigl", "momentum", "residual", min_salient=5_000)
    run(model, opt, 12)
    assert set(sparse.channels()) == {"a", "c"}
    assert bool(sparse.masks["stem.weight"].flatten(1).any(1).all())


def test_fan_in_in_tiles() -> None:
    model, opt, sparse = build("srigl", "momentum", "mlp", tile=(4, 4), min_salient=0)
    run(model, opt, 12)
    for layer in sparse.layers:
        assert len(set(layer.active().view(layer.grid).sum(1).tolist())) == 1
