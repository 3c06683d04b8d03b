"""Law: two ranks choose the masks of one process on the whole batch; local gradients would not."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import distributed_worker
import pytest
import torch
import torch.distributed as dist
from forked import together
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from training_cases import build, images, loss

import gossamer as gs
from gossamer.training import MEST, RigL
from gossamer.training.distributed import digest


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes over gloo saved."""
    folder = tmp_path_factory.mktemp("ranks")
    assert together(distributed_worker.main, str(folder / "rendezvous"), str(folder)) == [0, 0]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def equal(a: list[dict[str, torch.Tensor]], b: list[dict[str, torch.Tensor]]) -> bool:
    return all(torch.equal(x[name], y[name]) for x, y in zip(a, b, strict=True) for name in x)


def single(case: str) -> dict[str, Any]:
    """One process, both halves of every batch in the order the ranks have them."""
    return distributed_worker.train(case, distributed_worker.network(0), False, slice(0, 16))


@pytest.mark.parametrize("case", distributed_worker.CASES)
def test_ranks_agree(ranks: list[dict[str, Any]], case: str) -> None:
    first, second = (rank[case] for rank in ranks)
    assert first["events"] == second["events"] >= 3
    assert equal(first["masks"], second["masks"]) and not equal(first["masks"][:4], first["masks"][8:12])
    assert all(torch.equal(a, b) for a, b in zip(first["weights"], second["weights"], strict=True))
    assert first["alive"].keys() == second["alive"].keys()
    assert all(torch.equal(first["alive"][name], second["alive"][name]) for name in first["alive"])


@pytest.mark.parametrize("case", ["rigl", "set", "snfs", "srigl", "chase"])
def test_two_ranks_are_one_process_on_the_whole_batch(ranks: list[dict[str, Any]], case: str) -> None:
    whole = single(case)
    assert equal(ranks[0][case]["masks"], whole["masks"])
    for a, b in zip(ranks[0][case]["weights"], whole["weights"], strict=True):
        # float64, sixteen steps of sums in another order
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


def test_the_mutant_with_local_gradients_is_caught(ranks: list[dict[str, Any]]) -> None:
    """The very assertion above fails for mean |g_r| in place of |mean g_r|, although its ranks agree."""
    assert not equal(ranks[0]["local"]["masks"], single("rigl")["masks"])


def test_ranks_that_drift_apart_are_noticed(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["no ddp"].startswith("RuntimeError: masks differ between ranks after step 4")
        assert "DistributedDataParallel" in rank["no ddp"]
        assert rank["independent"] >= 3


def test_masks_of_rank_zero_are_broadcast(ranks: list[dict[str, Any]]) -> None:
    assert equal([ranks[0]["broadcast"]], [ranks[1]["broadcast"]])


def test_compaction_under_ddp_is_refused(ranks: list[dict[str, Any]]) -> None:
    assert all(rank["compact"].startswith("ValueError: compact_every does not work with") for rank in ranks)


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of one rank."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("traced", [True, False], ids=["example inputs", "first batch"])
def test_compaction_is_refused_before_the_first_step_where_ddp_comes_later(alone: None, traced: bool) -> None:
    x, y = images(seed=0)
    options = {"compact_every": 1, "example_inputs": x if traced else None}
    model, _, method = build("chase", **options)
    with pytest.raises(ValueError, match="compact_every does not work with DistributedDataParallel"):
        loss(DistributedDataParallel(model), x, y)
    assert method.step == 0
    copy.deepcopy(model)(x)  # what looks for a wrapper does not come along
    method.detach()
    loss(DistributedDataParallel(model), x, y).backward()


@pytest.mark.parametrize(("density", "k"), [(0.25, 4), (0.5625, 9)])
def test_a_fan_in_that_would_have_to_change_inside_ddp_is_named(alone: None, density: float, k: int) -> None:
    layers = [gs.nn.FanInLinear(16, 16, fan_in=n) for n in (6, k)]
    before = [layer.pattern.to_tile_mask() for layer in layers]
    model = DistributedDataParallel(nn.Sequential(*reversed(layers)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(RuntimeError, match=rf"1.values needs {k} inputs in each of 16 rows and has 6.*fan_in={k},"):
        RigL(model, optimizer, density=density, total_steps=9, distribution="uniform")
    assert all(torch.equal(a, b.pattern.to_tile_mask()) for a, b in zip(before, layers, strict=True))
    RigL(model, optimizer, density=density, total_steps=9, distribution="uniform", exclude=["1.values"])


def test_a_fan_in_does_not_grow_in_a_wrapper_that_comes_later(alone: None) -> None:
    model = nn.Sequential(gs.nn.FanInLinear(16, 16, fan_in=4), nn.Linear(16, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"total_steps": 20, "update_every": 2, "soft": True, "mutation": (0.5, 0.0), "mutation_ends": (0.7,)}
    MEST(model, optimizer, density=0.25, exclude=["1.weight"], **options)
    wrapped = DistributedDataParallel(model)
    with pytest.raises(
        RuntimeError, match=r"0\.values needs 6 inputs in each of 16 rows and has 4, which cannot change"
    ):
        for _ in range(4):
            optimizer.zero_grad()
            wrapped(torch.randn(8, 16)).square().mean().backward()
            optimizer.step()


def test_distributed_needs_a_process_group() -> None:
    with pytest.raises(RuntimeError, match="distributed=True needs"):
        build("rigl", distributed=True)


def test_digest_sees_every_bit() -> None:
    _, _, sparse = build("static")
    tensors = list(sparse.tensors.values())
    before = digest(tensors)
    tensors[1].mask[3, 4] ^= True
    assert digest(tensors) != before
    tensors[1].mask[3, 4] ^= True
    assert digest(tensors) == before
