"""Interleaved timing: equal things come out equal, unequal things in the right order, bad input is named."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from itertools import pairwise

import pytest
import torch

import gossamer as gs


@pytest.fixture
def takes(clock):
    """A function that takes so many seconds, those of its calls in turn; the library's own looks take none."""
    clock.step = 0.0

    def busy(*seconds: float):
        turns = itertools.cycle(seconds)
        return lambda: clock.advance(next(turns))

    return busy


def test_times_are_seconds_per_call_and_ratios_are_of_the_baseline(takes):
    run = gs.measure.interleave({"slow": takes(2.0), "fast": takes(0.5)}, reps=9, sample=1.0)
    assert run.baseline == "slow" and run["slow"].ratio == run.control.ratio == 1.0 and run["fast"].ratio == 4.0
    assert run.faster("fast") and not run.faster("slow")
    for name, seconds in (("slow", 2.0), ("fast", 0.5)):
        row = run[name]
        assert (row.first, row.min, row.q1, row.median, row.q3, row.reps) == (*[seconds] * 5, 9)
    other = gs.measure.interleave({"slow": takes(2.0), "fast": takes(0.5)}, baseline="fast", reps=1)
    assert other["slow"].ratio == 0.25 and not other.faster("slow")


def test_the_first_call_is_kept_apart(takes):
    """It compiles, allocates and fills caches: no quartile knows of it."""
    first = itertools.chain([8.0], itertools.repeat(1.0))
    run = gs.measure.interleave({"cold": takes(*itertools.islice(first, 100))}, reps=5, warmup=1)
    assert run["cold"].first == 8.0 and run["cold"].q3 == 1.0


def test_medians_and_quartiles_are_of_rounds(takes):
    """Five rounds of 1, 3, 2, 9, 4 seconds after a first call and a warm-up; the baseline always takes 6."""
    run = gs.measure.interleave({"six": takes(6.0), "x": takes(1.0, 1.0, 1.0, 3.0, 2.0, 9.0, 4.0)}, reps=5, warmup=1)
    row = run["x"]
    assert (row.min, row.q1, row.median, row.q3) == (1.0, 2.0, 3.0, 4.0)
    assert (row.ratio_q1, row.ratio, row.ratio_q3) == (1.5, 2.0, 3.0)


def test_a_difference_inside_the_controls_spread_is_no_difference(takes):
    """The baseline takes 1 and 1.5 seconds in turn, itself and as its control: 4 / 3 times as fast is not faster."""
    noisy = takes(1.0, 1.5, 1.0, 1.0, 1.5)
    run = gs.measure.interleave({"noisy": noisy, "other": takes(0.75), "fast": takes(0.25)}, reps=20, warmup=1)
    assert run.control.ratio_q3 == 1.5 and run["other"].ratio == 1 / 0.75 and run["other"].ratio_q1 > 1.0
    assert not run.faster("other") and run.faster("fast")


@pytest.mark.parametrize(("seconds", "calls"), [(1 / 16, 4), (1.0, 1), (3 / 16, 2)])
def test_short_calls_fill_a_sample(takes, seconds, calls):
    """And the control is the same experiment as the baseline, whatever its own warm-up took."""
    counter, call = itertools.count(), takes(seconds)
    run = gs.measure.interleave({"x": lambda: (next(counter), call())}, reps=5, warmup=1, sample=1 / 4)
    assert next(counter) == 2 * (2 + 5 * calls) and run["x"].median == seconds


def _rounds(takes, names: str, reps: int) -> list[str]:
    log: list[str] = []
    call = takes(1.0)
    run = gs.measure.interleave(
        {name: (lambda name=name: (log.append(name), call())) for name in names}, reps=reps, warmup=1
    )
    assert all(row.reps == reps for row in run.rows)
    timed = log[2 * (len(names) + 1) :]  # a first call and one warm-up call for each, the control included
    return ["".join(timed[i : i + len(names) + 1]) for i in range(0, len(timed), len(names) + 1)]


def test_order_rotates_and_every_candidate_runs_in_every_round(takes):
    assert _rounds(takes, "ab", 6) == ["aba", "aab", "aab", "aba", "baa", "baa"]


def test_nobody_always_follows_the_same_one(takes):
    follows = {pair for r in _rounds(takes, "abcd", 10) for pair in pairwise(r)}
    assert {("b", "c"), ("c", "b"), ("c", "d"), ("d", "c")} <= follows


def test_report_is_json_and_prints_every_row(takes):
    run = gs.measure.interleave({"x": takes(1e-4)}, reps=5)
    data = json.loads(json.dumps(run.to_dict()))
    assert data["baseline"] == "x"
    assert {"median", "q1", "q3", "ratio", "reps", "first"} <= data["rows"][0].keys()
    assert "x (control)" in str(run)


@pytest.mark.parametrize(("seconds", "rounds"), [(1e-6, 5), (11.0, 6), (1e9, 20)])
def test_time_budget_stops_after_five_rounds_at_the_earliest(takes, seconds, rounds):
    """Of two seconds each: the candidate and its control."""
    assert gs.measure.interleave({"x": takes(1.0)}, reps=20, seconds=seconds)["x"].reps == rounds


def test_the_clock_is_the_machines():
    """Where no test replaces it."""
    code = "import time; from gossamer.measure import clock; assert clock.now is time.perf_counter"
    subprocess.run([sys.executable, "-c", code], check=True)


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
    with pytest.raises(TypeError, match=r"example_inputs must be a tensor, .*, got str"):
        gs.measure.count(torch.nn.Linear(2, 2), "no")


def test_environment_is_json():
    here = json.loads(json.dumps(gs.measure.environment()))
    assert here["threads"] == torch.get_num_threads()
    assert here["versions"]["torch"].startswith(torch.__version__.split("+")[0])
