"""Law: two ranks choose the masks of one process on the whole batch; local gradients would not."""

from __future__ import annotations

from typing import Any

import distributed_worker
import pytest
import torch
from forked import together
from training_cases import build

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
