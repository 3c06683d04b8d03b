"""Law: two ranks choose the tiles of one process on the whole batch: scores are of the mean gradient."""

from __future__ import annotations

from typing import Any

import pytest
import tiles_worker
import torch
from forked import together


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes over gloo saved."""
    folder = tmp_path_factory.mktemp("ranks")
    assert together(tiles_worker.rank_of, str(folder / "rendezvous"), str(folder)) == [0, 0]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("case", tiles_worker.CASES)
def test_ranks_are_one_process_on_the_whole_batch(ranks: list[dict[str, Any]], case: str) -> None:
    whole = tiles_worker.train(case, 0, False, slice(0, 16))
    for rank in ranks:
        assert rank[case]["events"] == whole["events"] >= 3
        for t, (mine, other) in enumerate(zip(rank[case]["masks"], whole["masks"], strict=True)):
            assert all(torch.equal(mine[name], other[name]) for name in mine), t
    for a, b, c in zip(ranks[0][case]["weights"], ranks[1][case]["weights"], whole["weights"], strict=True):
        assert torch.equal(a, b)
        # float64, sixteen steps of sums in another order
        torch.testing.assert_close(a, c, rtol=1e-10, atol=1e-12)


def test_a_capacity_that_would_have_to_grow_is_named(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert "1.values needs" in rank["too small"] and "DistributedDataParallel" in rank["too small"]
