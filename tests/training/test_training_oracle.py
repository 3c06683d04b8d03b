"""Law: updates choose what a few lines of numpy say they should, ties included; mutants of the choice are caught."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from training_cases import NETWORKS, build, images, loss, run, train

from gossamer.kernels.reference.select import topk_mask as reference_topk
from gossamer.training import SET, Chase, RigL
from gossamer.training.fan_in import fill_rows
from gossamer.training.random import uniform
from gossamer.training.ranking import lowest, widths
from gossamer.training.select import rewire, topk
from gossamer.training.tracing import find


def best(scores: np.ndarray, k: int, allowed: np.ndarray, largest: bool) -> set[int]:
    """k places in the order of (score, place)."""
    sign = -1.0 if largest else 1.0
    return set(sorted(np.flatnonzero(allowed), key=lambda i: (sign * scores[i], i))[:k])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("seed", range(15))
def test_topk_is_the_sorted_choice(seed: int, largest: bool, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 300))
    scores = rng.choice([rng.normal(size=n), rng.integers(0, 4, n).astype(float)][seed % 2], n)  # half the cases: ties
    allowed = rng.random(n) < 0.7
    k = int(rng.integers(0, allowed.sum() + 1))
    scores = scores.astype("f4" if dtype == torch.float32 else "f8")
    got = topk(torch.from_numpy(scores), k, largest=largest, allowed=torch.from_numpy(allowed))
    assert set(np.flatnonzero(got.numpy())) == best(scores, k, allowed, largest)
    if 0 < k < allowed.sum():
        assert torch.equal(got, reference_topk(torch.from_numpy(scores), k, largest, torch.from_numpy(allowed)))


def paper_rigl(w: np.ndarray, g: np.ndarray, mask: np.ndarray, k: int) -> np.ndarray:
    """Evci et al., algorithm 1, lines 7-11, by sorting."""
    drop = best(np.abs(w), k, mask, largest=False)
    kept = mask.copy()
    kept[list(drop)] = False
    kept[list(best(np.abs(g), k, ~kept, largest=True))] = True
    return kept


@pytest.mark.parametrize("seed", range(30))
def test_rigl_update_is_the_papers(seed: int) -> None:
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    model = nn.Linear(int(rng.integers(2, 30)), int(rng.integers(2, 30)), bias=False)
    fraction = float(rng.choice([0.1, 0.3, 0.9]))
    opt = torch.optim.SGD(model.parameters(), lr=0.0)
    sparse = RigL(
        model, opt, density=float(rng.choice([0.2, 0.5, 0.8])), total_steps=1000, update_every=1,
        drop_fraction=fraction, drop_schedule="constant", seed=seed,
    )  # fmt: skip
    for _ in range(3):
        gradient = torch.randint(-3, 4, model.weight.shape).float() if seed % 3 == 0 else torch.randn_like(model.weight)
        mask = sparse.masks["weight"].numpy().reshape(-1).copy()
        weight = model.weight.detach().numpy().reshape(-1).copy()
        model.weight.grad = gradient.clone()
        opt.step()
        expected = paper_rigl(weight, gradient.numpy().reshape(-1), mask, int(fraction * mask.sum()))
        assert np.array_equal(sparse.masks["weight"].numpy().reshape(-1), expected)
        assert np.array_equal(model.weight.detach().numpy().reshape(-1), np.where(expected, weight, 0.0))


def test_a_threshold_is_not_an_exact_choice() -> None:
    """The mutant `score > k-th score` (and >=) misses the budget as soon as scores tie."""
    scores = torch.tensor([3.0, 2.0, 2.0, 2.0, 1.0])
    threshold = scores.sort(descending=True).values[2 - 1]
    assert int((scores > threshold).sum()) == 1 and int((scores >= threshold).sum()) == 4
    assert topk(scores, 2).tolist() == [True, True, False, False, False]


def test_off_by_one_mutant_is_caught_by_the_budget() -> None:
    active, scores = torch.ones(100, dtype=torch.bool), torch.rand(100)
    kept = active & (scores >= scores.sort().values[30 - 1])  # "drop 30", off by one
    assert int(kept.sum()) == 71
    assert int(rewire(active, drop=30, grow=0, drop_scores=scores).sum()) == 70


def test_dropped_weights_regrow_with_their_value_or_not_at_all() -> None:
    for regrow in (True, False):
        model = nn.Linear(4, 1, bias=False)
        opt = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
        sparse = RigL(
            model, opt, density=0.5, total_steps=99, update_every=1, drop_fraction=0.5, drop_schedule="constant",
            regrow_dropped=regrow,
        )  # fmt: skip
        sparse.masks["weight"].copy_(torch.tensor([[True, True, False, False]]))
        model.weight.data = torch.tensor([[1.0, 0.5, 0.0, 0.0]])
        model.weight.grad = torch.tensor([[0.0, 9.0, 1.0, 2.0]])  # the smallest weight has the largest gradient
        opt.step()
        assert model.weight.tolist() == ([[1.0, 0.5, 0.0, 0.0]] if regrow else [[1.0, 0.0, 0.0, 0.0]])
        assert sparse.masks["weight"].tolist() == [[True, regrow, False, not regrow]]


def test_signed_drop_takes_half_from_each_sign() -> None:
    weights = torch.tensor([[0.1, 0.2, 0.3, 0.4, -1.0, -2.0, -3.0, -4.0]])
    model = nn.Linear(8, 1, bias=False)
    opt = torch.optim.SGD(model.parameters(), lr=0.0)
    SET_ = SET(model, opt, density=1.0, total_steps=9, drop="signed", drop_fraction=0.5)
    model.weight.data.copy_(weights)
    layer = SET_.layers[0]
    dropped = topk(SET_.drop_scores(layer), 4, largest=False)
    assert weights[0][dropped].tolist() == pytest.approx([0.1, 0.2, -1.0, -2.0])
    assert weights[0][topk(SET_.magnitude(layer), 4, largest=False)].min() > 0  # the plain rule takes positives only


def test_random_growth_is_reproducible_and_moves_with_seed_and_step() -> None:
    def masks(seed: int) -> list[torch.Tensor]:
        model, opt, sparse = build("set", "sgd", seed=seed)
        return [sparse.masks["1.weight"].clone() for _ in train(model, opt, 9)]

    torch.manual_seed(5)
    first = masks(0)
    torch.manual_seed(6)  # the global generator plays no part
    assert all(torch.equal(a, b) for a, b in zip(first, masks(0), strict=True))
    assert not torch.equal(first[4], masks(1)[4])


def test_every_draw_has_its_own_numbers() -> None:
    one = {"seed": 0, "name": "a.weight", "step": 4, "purpose": "grow"}
    first = uniform(64, **one)
    assert torch.equal(first, uniform(64, **one)) and torch.equal(first[:8], uniform(8, **one))
    for change in ({"seed": 1}, {"name": "b.weight"}, {"step": 8}, {"purpose": "init"}):
        assert not torch.equal(first, uniform(64, **{**one, **change}))


def test_snfs_averages_the_dense_gradient() -> None:
    model, opt, sparse = build("snfs", "sgd", dtype=torch.float64, momentum=0.75)
    average = torch.zeros_like(model[1].weight)
    for t in range(7):
        opt.zero_grad()
        loss(model, *images(seed=t, dtype=torch.float64)).backward()
        average = 0.75 * average + 0.25 * model[1].weight.grad
        opt.step()
        # float64, two roundings a step
        assert torch.allclose(sparse.average["1.weight"], average, rtol=1e-13, atol=1e-16)
    assert bool((average[~sparse.masks["1.weight"]] != 0).any())  # dense: before the mask


def test_random_unfired_reaches_every_weight_first() -> None:
    model, opt, sparse = build(
        "set", "sgd", density=0.25, grow="random_unfired", drop_fraction=0.5, update_every=1, regrow_dropped=False
    )
    run(model, opt, 8)  # 0.25 + 6 * 0.125 = 1
    assert sparse.stats()["itop"] > 0.95
    model, opt, sparse = build("set", "sgd", density=0.25, drop_fraction=0.5, update_every=1, regrow_dropped=False)
    run(model, opt, 8)
    assert sparse.stats()["itop"] < 0.8


def umm(model: nn.Module, weight: str) -> np.ndarray:
    w = model.get_parameter(weight).detach().double().numpy()
    return np.abs(w).reshape(w.shape[0], -1).mean(1)


def test_umm_is_density_times_mean_magnitude_of_the_live() -> None:
    model, opt, sparse = build("chase", "sgd", "conv", example_inputs=images()[0])
    run(model, opt, 6)
    scores, mask = sparse.removed.umm()["0"], sparse.masks["0.weight"].flatten(1)
    weights = model[0].weight.detach().double().flatten(1).abs()
    assert np.allclose(scores.numpy(), umm(model, "0.weight"), rtol=1e-14)
    density = mask.double().mean(1)
    live = weights.sum(1) / mask.sum(1).clamp_min(1)
    assert torch.allclose(scores, density * live, rtol=1e-14)


def test_umm_of_a_residual_group_pools_its_writers() -> None:
    torch.manual_seed(0)
    model = NETWORKS["residual"]()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    sparse = Chase(model, opt, density=1.0, extra_density=0.0, total_steps=10, scope="all", example_inputs=images()[0])
    scores = sparse.removed.umm()
    for name, writers in {"stem": ["stem", "b"], "down": ["down", "d"], "a": ["a"], "c": ["c"]}.items():
        rows = f"{writers[0]}.weight", 0
        group = next(n for n, g in sparse.removed.groups.items() if rows in {(m.tensor, m.axis) for m in g.members})
        w = [model.get_parameter(f"{x}.weight").detach().double().flatten(1).abs() for x in writers]
        expected = sum(x.sum(1) for x in w) / sum(x.shape[1] for x in w)
        assert torch.allclose(scores[group], expected, rtol=1e-14), name


@pytest.mark.parametrize("seed", range(30))
def test_removal_walks_channels_by_score(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = {f"g{i}": int(rng.integers(1, 12)) for i in range(int(rng.integers(1, 5)))}
    scores = {n: torch.from_numpy(rng.integers(0, 5, c).astype("f8")) for n, c in sizes.items()}
    alive = {n: torch.from_numpy(rng.random(c) < 0.8) for n, c in sizes.items()}
    for a in alive.values():
        a[0] = True
    floors = {n: min(int(a.sum()), int(rng.integers(1, 4))) for n, a in alive.items()}
    most = sum(int(a.sum()) - floors[n] for n, a in alive.items())
    remove = int(rng.integers(0, most + 1))
    # brute force: one channel at a time, the smallest of all groups above their floor
    left = {n: a.clone() for n, a in alive.items()}
    for _ in range(remove):
        choices = [
            (float(scores[n][c]), g, c)
            for g, n in enumerate(left) if int(left[n].sum()) > floors[n]
            for c in left[n].nonzero().flatten().tolist()
        ]  # fmt: skip
        _, g, c = min(choices)
        left[list(left)[g]][c] = False
    keep = widths(scores, alive, floors=floors, remove=remove)
    for name, width in keep.items():
        mine = alive[name].clone()
        mine[lowest(scores[name], alive[name], width)] = False
        assert torch.equal(mine, left[name])
    with pytest.raises(ValueError, match="cannot remove"):
        widths(scores, alive, floors=floors, remove=most + 1)


@pytest.mark.parametrize("seed", range(30))
def test_rounded_widths_stay_exact_and_even(seed: int) -> None:
    rng = np.random.default_rng(seed)
    k = int(rng.choice([2, 4, 8]))
    sizes = {f"g{i}": k * int(rng.integers(3, 9)) for i in range(int(rng.integers(1, 6)))}
    scores = {n: torch.from_numpy(rng.random(c)) for n, c in sizes.items()}
    alive = {n: torch.ones(c, dtype=torch.bool) for n, c in sizes.items()}
    remove = int(rng.integers(0, sum(sizes.values()) - k * len(sizes) + 1))
    keep = widths(scores, alive, floors=dict.fromkeys(sizes, 1), remove=remove, steps=dict.fromkeys(sizes, k))
    assert sum(sizes.values()) - sum(keep.values()) == remove
    assert sum(width % k != 0 for width in keep.values()) <= 1
    assert all(1 <= width <= sizes[name] for name, width in keep.items())


@pytest.mark.parametrize("seed", range(20))
def test_fill_rows_by_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, cols = int(rng.integers(1, 9)), int(rng.integers(1, 9))
    columns, living = rng.random(cols) < 0.7, rng.random(rows) < 0.7
    columns[0] = living[0] = True
    allowed = np.outer(living, columns)
    k = int(rng.integers(0, columns.sum() + 1))
    kept = rng.random((rows, cols)) < 0.4
    w, g = rng.integers(0, 4, (rows, cols)).astype("f4"), rng.integers(0, 4, (rows, cols)).astype("f4")
    got = fill_rows(*(torch.from_numpy(x) for x in (kept, w, g)), k, torch.from_numpy(allowed)).numpy()
    for r in range(rows):
        if not living[r]:
            assert not got[r].any()
            continue
        stay = best(w[r], k, kept[r] & allowed[r], largest=True)
        free = allowed[r].copy()
        free[list(stay)] = False
        assert set(np.flatnonzero(got[r])) == stay | best(g[r], k - len(stay), free, largest=True)
        assert got[r].sum() == k


def test_graph_names_every_trained_group() -> None:
    model, _, sparse = build("static", network="conv")
    assert list(find(sparse, images()[0]).groups) == ["0", "3"] and loss(model, *images()) > 0
