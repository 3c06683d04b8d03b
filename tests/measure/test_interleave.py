"""Interleaved timing: equal things come out equal, unequal things in the right order, bad input is named."""

from __future__ import annotations

import itertools
import json
import time
from itertools import pairwise

import pytest
import torch

import gossamer as gs


def _busy(seconds: float):
    def call() -> None:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            pass

    return call


def test_ratio_is_baseline_over_candidate_and_control_is_one():
    run = gs.measure.interleave({"slow": _busy(2e-3), "fast": _busy(5e-4)}, baseline="slow", reps=9, sample=1e-3)
    assert 2.5 < run["fast"].ratio < 6
    assert 0.6 < run.control.ratio < 1.6
    assert run.faster("fast")
    assert not run.faster("slow")
    assert run["slow"].q1 <= run["slow"].median <= run["slow"].q3
    assert run["slow"].median >= 2e-3


def test_equal_functions_are_not_called_faster():
    run = gs.measure.interleave({"a": _busy(1e-3), "b": _busy(1e-3)}, reps=9)
    assert not run.faster("b") or run["b"].ratio < 1.3


def test_order_rotates_and_every_candidate_runs_in_every_round():
    log: list[str] = []
    run = gs.measure.interleave(
        {name: (lambda name=name: (log.append(name), time.sleep(2e-3))) for name in "ab"},
        reps=6,
        warmup=1,
        sample=1e-3,
    )
    timed = log[2 * 3 :]  # first call and one warm-up call for each of a, b and the control
    rounds = [tuple(timed[i : i + 3]) for i in range(0, len(timed), 3)]
    assert len(rounds) == 6
    assert all(sorted(r) == ["a", "a", "b"] for r in rounds)
    assert len(set(rounds)) > 1, "the order never changed"
    assert run["a"].reps == 6


def test_nobody_always_follows_the_same_one():
    log: list[str] = []
    gs.measure.interleave(
        {name: (lambda name=name: (log.append(name), time.sleep(2e-3))) for name in "abcd"},
        reps=10,
        warmup=1,
        sample=1e-3,
    )
    timed = log[2 * 5 :]
    rounds = [timed[i : i + 5] for i in range(0, len(timed), 5)]
    follows = {(one, two) for r in rounds for one, two in pairwise(r)}
    assert {("b", "c"), ("c", "b"), ("c", "d"), ("d", "c")} <= follows


def test_report_is_json_and_prints_every_row():
    run = gs.measure.interleave({"x": _busy(1e-4)}, reps=5)
    data = json.loads(json.dumps(run.to_dict()))
    assert data["baseline"] == "x"
    assert {"median", "q1", "q3", "ratio", "reps", "first"} <= data["rows"][0].keys()
    assert "x (control)" in str(run)


def test_time_budget_stops_after_five_rounds_at_the_earliest():
    counter = itertools.count()
    run = gs.measure.interleave({"x": lambda: (next(counter), time.sleep(0.01))}, reps=1000, seconds=1e-6)
    assert run["x"].reps == 5


@pytest.mark.parametrize(
    ("candidates", "kwargs", "words"),
    [
        ({}, {}, "candidates is empty"),
        ({"a": int}, {"baseline": "b"}, "baseline is 'b'"),
        ({"a": int}, {"reps": 0}, "reps is 0"),
        ({"a": int}, {"sample": 0}, "sample is 0"),
    ],
)
def test_bad_input_is_named(candidates, kwargs, words):
    with pytest.raises(ValueError, match=words):
        gs.measure.interleave(candidates, **kwargs)


def test_counts_of_a_known_network():
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1, bias=False),
        torch.nn.BatchNorm2d(8),
        torch.nn.Flatten(),
        torch.nn.Linear(8 * 16, 5),
    )
    with torch.no_grad():
        net[0].weight[4:] = 0
    net.train()
    before = net[1].running_mean.clone()
    counts = gs.measure.count(net, torch.randn(2, 3, 4, 4))
    conv, linear = 2 * 2 * 8 * 3 * 9 * 16, 2 * 2 * 128 * 5
    assert counts.flops == conv + linear
    assert counts.sparse_flops == conv // 2 + linear
    assert counts.parameters == 8 * 27 + 16 + 128 * 5 + 5
    assert counts.nonzeros == 4 * 27 + 8 + 128 * 5 + 5  # norm bias is zero at the start
    assert counts.bytes == 4 * (counts.parameters + 16) + 8
    assert net.training
    assert torch.equal(net[1].running_mean, before)


def test_count_names_a_wrong_input():
    with pytest.raises(TypeError, match="example_inputs is a str"):
        gs.measure.count(torch.nn.Linear(2, 2), "no")


def test_environment_is_json():
    here = json.loads(json.dumps(gs.measure.environment()))
    assert here["threads"] == torch.get_num_threads()
    assert here["versions"]["torch"].startswith(torch.__version__.split("+")[0])
