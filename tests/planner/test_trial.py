"""A trial of paths: whose turn it is, who is left, and what it cost."""

import pytest

from gossamer import planner
from gossamer.planner.tuner.trial import Trial

PLAIN = ("skip", "dense")


def reported(**seconds):
    trial = Trial(PLAIN, (), expected=False)
    for path, times in seconds.items():
        for one in times:
            trial.report(path, one, 1.0, cold=False)
    return trial


def test_a_trial_costs_what_its_slower_paths_take_without_bursts():
    """A burst of something else will not come again: what the next trial costs must not be reckoned from it."""
    trial = reported(dense=[1.0, 1.0, 7.0], skip=[1.5, 9.0, 1.5])
    assert trial.loss("dense") == pytest.approx(3 * 0.5) and trial.loss("skip") == 0.0


def test_cold_calls_are_no_cost_of_the_next_trial():
    trial = Trial(PLAIN, ("skip",), expected=False)
    trial.report("skip", 9.0, 1.0, cold=True)
    for path, seconds in (("dense", 1.0), ("skip", 1.2)):
        trial.report(path, seconds, 1.0, cold=False)
    assert trial.loss("dense") == pytest.approx(0.2)


def test_paths_take_turns_and_a_clear_loser_goes_after_two():
    trial, turns = Trial(PLAIN, (), expected=False), []
    while not trial.over("dense", lambda path: 1.0, lambda path: True) if turns else True:
        turns.append(trial.next())
        trial.report(turns[-1], 1.0 if turns[-1] == "dense" else 2.0, 1.0, cold=False)
    assert turns == ["dense", "skip", "dense", "skip"] and trial.alive == ["dense"]


def test_a_path_that_may_no_longer_ends_the_trial_even_if_nobody_else_had_a_turn():
    trial = Trial(PLAIN, ("skip",), expected=False)
    assert trial.next() == "skip"
    trial.report("skip", 1.0, 1.0, cold=True)
    assert trial.over("dense", lambda path: 1.0, lambda path: path == "dense")
    assert trial.best() == {"skip": 1.0}


@pytest.mark.parametrize(("predicted", "true", "tried", "right"), [
    (0.5, 0.5, True, "blocks"), (0.5, 1.5, True, "dense"), (1.3, 0.7, True, "blocks"), (9.0, 0.1, False, "dense"),
])  # fmt: skip
def test_a_trusted_prior_is_tried_within_its_share_where_it_is_near(predicted, true, tried, right):
    tuner = planner.Tuner({"attention": {"blocks": "tiles"}}, lambda _, one, at: 1.0 if one == "dense" else predicted)
    took = []
    for _ in range(3000):
        choice = tuner.bypassed("shape")
        if choice is None:
            choice = tuner.choose("attention", ("dense", "blocks"), "shape", {"tiles": 0.2})
            tuner.observe("attention", choice, 1.0 if choice == "dense" else true)
        took.append(choice)
    other = "dense" if right == "blocks" else "blocks"
    assert took[-500:].count(other) <= 15 and ("blocks" in took and "dense" in took) == tried
    if min(predicted, 1.0) == min(true, 1.0):  # the prior was right: what was lost, was lost by trying
        assert sum(max(true, 1.0) - min(true, 1.0) for one in took if one != right) <= 0.011 * min(true, 1.0) * 3000
    said = tuner.explain()
    assert (f"blocks takes {true:.2f} of dense where the prior says {predicted:.2f}" in said) == tried
    assert tried or "attention: dense, the cheapest by the prior" in said
