"""The section of experts runs, its candidates compute one thing, and its rows say how much of the weights it takes."""

import pytest
import torch

pytest.importorskip("transformers")

from gossamer.bench.compile import moe
from gossamer.bench.section import Settings

QUICK = Settings(quick=True, reps=1)


def test_the_section_runs_and_makes_its_table():
    rows = list(moe.rows(QUICK))
    assert {row["form"] for row in rows} == {"ReLU", "SwiGLU"} and {row["k"] for row in rows} == {1, 2}
    for row in rows:
        assert row["baseline"] in moe.OWN and {*moe.OWN, moe.OURS, moe.READ} == {each["name"] for each in row["rows"]}
    assert moe.SECTION.table.text(rows).count("\n") == len(rows) + 2


@pytest.mark.parametrize("form, matrices", [("ReLU", 2), ("SwiGLU", 3)])
@pytest.mark.parametrize("step, products", [("forward", 1), ("forward and backward", 3)])
def test_candidates_compute_one_thing(form, matrices, step, products):
    cell = moe.Cell(form, 4, 2, 8, "all to one", step)
    calls, facts = moe.calls_of(moe.layer(cell, QUICK), cell, QUICK)
    assert facts["used"] == 2 and facts["gigabytes"] == pytest.approx(2 * matrices * 32 * 64 * 4 / 1e9)
    assert facts["gflop"] == pytest.approx(products * 2 * 8 * 2 * matrices * 32 * 64 / 1e9)
    calls.pop(moe.READ)
    expected = calls.pop("eager")()
    assert set(calls) == {"batched_mm", "grouped_mm", moe.OURS}
    for call in calls.values():
        torch.testing.assert_close(call(), expected)


@pytest.mark.parametrize("k", [1, 2])
def test_routings(k):
    uniform, skewed, one = (
        moe.routed(moe.Cell("ReLU", 8, k, 4096, r)) for r in ("uniform", "zipf", "all to one")
    )  # fmt: skip
    for ids in (uniform, skewed, one):
        assert ids.shape == (4096, k) and (k == 1 or bool((ids[:, 0] != ids[:, 1]).all()))
    counts = skewed.flatten().bincount(minlength=8)
    assert uniform.flatten().bincount(minlength=8).min() > 400 * k and counts[0] > 3 * counts[7] > 0
    assert one.flatten().bincount(minlength=8).count_nonzero() == k


def test_the_full_grid():
    assert len(set(moe.cells(True))) == len(list(moe.cells(True))) == 2 * 3 * 2 * 4 * 3 + 2
    assert sum(cell.experts == 64 and cell.k == 1 for cell in moe.cells(False)) >= 12
