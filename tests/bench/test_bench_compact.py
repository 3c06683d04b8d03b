"""The compact suite: its networks lose the channels that Chase chose, and its rows say how they were chosen."""

import dataclasses

import pytest
import torch

import gossamer as gs
from gossamer.bench import Settings, sections
from gossamer.bench.compact import scoring, trained
from gossamer.bench.compact.chase import SHARE


@pytest.fixture(autouse=True)
def small(monkeypatch):
    def few(source, *, seed):
        splits = gs.data.load(source, seed=seed)
        return dataclasses.replace(splits, train_x=splits.train_x[:128], train_y=splits.train_y[:128])

    monkeypatch.setattr(scoring, "load", few)
    monkeypatch.setattr(trained, "load", few)
    monkeypatch.setattr(scoring, "NETWORKS", ("convnet",))
    monkeypatch.setattr(trained, "CELLS", (("resnet20", "cost", "all"),))


def test_scoring_compares_both_ways_on_the_same_networks():
    rows = scoring.rows(Settings(seeds=(0, 1), quick=True))
    kinds = ["dense", "none", "group", "cost"]
    assert [(row["seed"], row["normalize"]) for row in rows] == [(s, k) for s in (0, 1, "mean") for k in kinds]
    for row in rows:
        assert (row["flops"] == 1.0) == (row["normalize"] == "dense") and 0 <= row["accuracy"] <= 1
    none, group, cost = rows[-3:]
    assert group["flops"] < none["flops"] < 1.0 and cost["flops"] < none["flops"]
    assert group["accuracy"] == pytest.approx((rows[2]["accuracy"] + rows[6]["accuracy"]) / 2)
    text = scoring.SECTION.table.text(rows)
    assert text.count("\n") == 2 + len(kinds) and "seed 0 %" in text and '`"cost"`' in text and "mean %" in text


def test_trained_rows_hold_the_channels_that_chase_left():
    (row,) = trained.rows(Settings(quick=True, reps=2))
    left = sum(alive for alive, _ in row["widths"].values())
    total = sum(size for _, size in row["widths"].values())
    assert row["chosen_by"] == "Chase" and row["share_removed"] == pytest.approx(1 - left / total)
    assert total - left == round(SHARE * total)
    assert len({alive / size for alive, size in row["widths"].values()}) > 1  # not one share for all
    assert row["counts"]["compact"]["flops"] < 0.9 * row["counts"]["dense"]["flops"]
    assert {entry["name"] for entry in row["rows"]} == {"dense", "compact"}
    text = trained.SECTION.table.text([row])
    assert "resnet20" in text and "40" in text


def test_the_suite_has_its_sections_and_the_default_is_what_it_found():
    assert {"scoring", "trained", "throughput"} <= sections("compact").keys()
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    method = gs.training.Chase(model, torch.optim.SGD(model.parameters(), lr=0.1), density=0.5, total_steps=9)
    assert method.normalize == "cost"
