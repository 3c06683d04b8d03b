"""A layer that is dense in all passes is bypassed: hardly a call asks, all are counted, and a change is noticed."""

import itertools

import pytest
import torch

from gossamer import planner
from gossamer.planner.tuner.question import CALL

PLAIN = ("dense", "skip")


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def dense_layer(calls, keys=("shape",), cost=3.0, site=None):
    """A layer with two passes, both faster dense; the calls that were not bypassed."""
    site, asked = site or planner.Site(), []
    for call in range(calls):
        key = keys[call % len(keys)]
        if not site.bypass(("forward", "input"), key):
            asked.append(call)
            for pass_, operand in (("forward", "x"), ("input", "dy")):
                path = site.choose(pass_, PLAIN, key)
                seen = {operand: 0.5} if path == "skip" or site.samples(pass_) else {}
                site.observe(pass_, path, 1.0 if path == "dense" else cost, seen)
    return site, asked


@pytest.mark.parametrize("keys", [("shape",), ("a", "b")])
def test_a_layer_that_is_dense_for_good_is_bypassed_and_counted_all_the_same(keys):
    site, asked = dense_layer(3000, keys)
    assert len(asked) < 250 and max(b - a for a, b in itertools.pairwise(asked)) <= 32
    stats = site.stats()
    assert all(sum(one["calls"].values()) == 3000 for one in stats.values())
    assert all(one["calls"]["skip"] > 5 for one in stats.values())  # it goes on trying


@pytest.mark.parametrize(("seconds", "few"), [(0.9 * CALL, True), (1e-2, False)])
def test_work_too_small_for_any_gain_is_left_alone(seconds, few):
    site, paths, asked = planner.Site(), [], 0
    for _ in range(2500):
        if not site.bypass(("forward",), "shape"):
            asked += 1
            paths.append(site.choose("forward", PLAIN, "shape"))
            site.observe("forward", paths[-1], seconds * (1.0 if paths[-1] == "dense" else 5.0), {"x": 0.1})
    assert (asked < 10 and "skip" not in paths) if few else (asked > 75 and "skip" in paths)


def test_what_pays_in_inference_must_pay_for_three_passes_in_training():
    def path(passes, dense=8 * CALL, skip=6 * CALL):
        site = planner.Site()
        for _ in range(40):
            for pass_ in passes:
                way = site.choose(pass_, ("dense", "skip_x") if pass_ == "weight" else PLAIN, "shape")
                gains = way == "skip" and pass_ == "forward"
                site.observe(pass_, way, skip if gains else dense, {"x": 0.5, "dy": 1.0})
        return site.stats()["forward"]["path"]

    assert path(("forward",)) == "skip" and path(("forward", "input", "weight")) == "dense"


@pytest.mark.parametrize(("weight", "right"), [(3 * CALL, "dense"), (30 * CALL, "skip")])
def test_a_layer_that_is_asked_for_one_pass_takes_the_small_gains_of_the_others_too(weight, right):
    """Forward gains half of what three passes cost beyond their kernels; by weight gains nothing, or ten times that."""
    site, dense = planner.Site(), 10 * CALL
    for _ in range(60):
        for pass_, candidates in (("forward", PLAIN), ("input", PLAIN), ("weight", ("dense", "skip_x"))):
            way = site.choose(pass_, candidates, "shape")
            gain = {"forward": 1.5 * CALL, "input": 0.0, "weight": weight - 3 * CALL}[pass_]
            seconds = dense + (weight if pass_ == "weight" else 0.0)
            site.observe(pass_, way, seconds if way == "dense" else seconds - gain, {"x": 0.5, "dy": 1.0})
    stats = site.stats()
    assert stats["forward"]["path"] == right and stats["input"]["path"] == "dense"


def test_a_small_shape_in_between_does_not_bypass_a_large_one_for_long():
    site, asked = planner.Site(), {"small": 0, "large": 0}
    for call in range(2000):
        key = ("small", "large")[call % 2]
        if not site.bypass(("forward",), key):
            asked[key] += 1
            path = site.choose("forward", PLAIN, key)
            site.observe(
                "forward", path, (0.5 * CALL if key == "small" else 1.0) * (path == "dense" or 3.0), {"x": 0.5}
            )
    assert asked["small"] + asked["large"] > 60


def test_a_bypass_ends_for_a_change():
    site, _ = dense_layer(500)
    for density in (0.5, 0.05):
        for _ in range(300):
            if not site.bypass(("forward",), "shape"):
                path = site.choose("forward", PLAIN, "shape")
                site.observe("forward", path, 1.0 if path == "dense" else 0.1 + 6.0 * density, {"x": density})
    assert site.stats()["forward"]["path"] == "skip"
    assert not any(site.bypass(("forward",), "shape") for _ in range(50))


def test_nothing_is_bypassed_before_all_passes_have_settled(deterministic):
    torch.use_deterministic_algorithms(False)
    site, asked = dense_layer(6)
    assert asked == list(range(6))
    site, _ = dense_layer(100)
    assert not site.bypass(("forward", "weight"), "shape") and not site.bypass(("forward",), "another")
    torch.use_deterministic_algorithms(True)
    assert not any(site.bypass(("forward",), "shape") for _ in range(50))


@pytest.mark.parametrize("before", [20, 100, 517, 1500])
@pytest.mark.parametrize("density", [0.5, 0.3])
@pytest.mark.parametrize("passes", [("forward",), ("forward", "input")])
def test_a_large_change_is_noticed_within_32_calls(passes, density, before):
    """A dense layer whose zeros come to more than 0.2 of its operands tries to skip; one whose zeros go stops."""
    site, operand = planner.Site(), {"forward": "x", "input": "dy"}

    def call(now):
        if not site.bypass(passes, "shape"):
            for pass_ in passes:
                path = site.choose(pass_, PLAIN, "shape")
                seen = {operand[pass_]: now} if path == "skip" or site.samples(pass_) else {}
                site.observe(pass_, path, 1.0 if path == "dense" else 0.1 + 1.1 * now, seen)

    for _ in range(before):
        call(1.0)
    assert site.stats()["forward"]["path"] == "dense"
    for now, path in ((density, "skip"), (1.0, "dense")):
        for _ in range(32):
            call(now)
        assert all(one["path"] == path for one in site.stats().values())
        for _ in range(200):
            call(now)
