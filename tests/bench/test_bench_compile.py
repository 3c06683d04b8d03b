"""The suite of the compiler runs, its models have the zeros that they say, and its means are of the right numbers."""

import pytest
import torch

pytest.importorskip("transformers")

from gossamer import bench
from gossamer.bench.compile import overall, sparse_models, ways
from gossamer.bench.section import sections


@pytest.mark.parametrize("share", [0.5, 0.9, 0.98])
def test_biases_are_shifted_to_a_share_of_zeros(share):
    torch.manual_seed(0)
    model = sparse_models.opt(sparse_models.TOY)
    tokens = torch.randint(300, (1, 400))
    before = sparse_models.zeros(model, tokens)
    sparse_models.shift_biases(model, tokens, share)
    assert abs(sparse_models.zeros(model, tokens) - share) < 0.01 < abs(before - share) + 0.3
    assert not any(each._forward_hooks for each in model.modules())


@pytest.mark.slow
def test_a_penalty_makes_a_decoder_sparse_and_it_learns():
    free, _, _ = sparse_models.trained(sparse_models.TOY, 0, 0.0)
    sparse, text, loss = sparse_models.trained(sparse_models.TOY, 150, 0.9)
    tokens = text[None, :128]
    assert sparse_models.zeros(sparse, tokens) > sparse_models.zeros(free, tokens) + 0.05
    assert 0.0 < loss < 5.6  # of 300 tokens, none the likelier: 5.7


def row(ratio, verdict):
    entries = [
        {"name": "inductor", "ratio": 1.0, "median": 0.002},
        {"name": ways.OURS, "ratio": ratio, "verdict": verdict},
    ]
    return {"rows": entries, "control": {"name": "control", "ratio": 1.0}, "baseline": "inductor"}


def test_the_summary_counts_what_is_slower():
    said = ways.summary([row(4.0, "faster"), row(1.0, "inconclusive"), row(0.5, "slower")])
    assert "geometric mean 1.26x over 3 rows, best 4.00x, slower than the fastest dense way in 1" in said
    assert ways.best_dense(row(1.0, "")) == "inductor 2.00 ms"


def test_the_mean_over_the_set_counts_every_section_once():
    measured = {"a": [row(4.0, "faster"), row(1.0, "inconclusive")], "b": [row(0.5, "slower")], "none": []}
    first, second, whole = overall.rows(measured)
    assert first["mean"] == pytest.approx(2.0) and second["mean"] == pytest.approx(0.5)
    assert whole == {
        "section": overall.ALL, "mean": pytest.approx(1.0), "count": 3, "faster": 1, "slower": 1, "best": 4.0,
        "worst": 0.5,
    }  # fmt: skip
    assert overall.rows({}) == [] and "above 1 is faster" in overall.SUMMARY.table.note


def test_how_far_results_lie_apart():
    assert ways._apart([torch.tensor([1.0, 4.5])], [torch.tensor([1.0, 4.0])]) == 0.125
    found = ways._tensors({"logits": torch.ones(2), "past": (torch.zeros(1), None, torch.ones(1, dtype=torch.int64))})
    assert [each.tolist() for each in found] == [[1.0, 1.0], [0.0]]


@pytest.mark.slow
@pytest.mark.parametrize("name", list(sections("compile")))
def test_every_section_runs_and_makes_its_tables(name):
    result = bench.run("compile", bench.Settings(quick=True, reps=1, only=(name,)))
    section, rows = sections("compile")[name], result["sections"][name]["rows"]
    assert rows
    for table in (section.table, *section.further.values()):
        assert table.text(rows).count("\n| ") >= len(rows)
    assert all(apart < 1e-4 for each in rows for apart in each.get("apart", {}).values())
