"""A tuner learns from times, on synthetic kernels whose costs are known: right, soon, cheaply, whatever the noise."""

import copy
import gc
import itertools
import pickle
import random
import threading

import pytest
import torch

from gossamer import planner
from gossamer.planner.tuner.question import DENSE_FROM, EXPLORATION
from gossamer.planner.tuner.site import BREAK_EVEN

PLAIN = ("dense", "skip")
WEIGHT = ("dense", "skip_x", "skip_dy")


def skipping(fixed, slope):
    """Seconds of a layer whose dense path takes 1 and whose skipping ones fixed + slope * density."""

    def seconds(path, densities):
        name = path.removeprefix("skip_") if "_" in path else "x"
        return 1.0 if path == "dense" else fixed + slope * densities[name]

    return seconds


def steady(random):
    return 1.0 + 0.05 * abs(random.gauss(0.0, 1.0))


def busy(random):
    """A neighbour takes the machine in every seventh call."""
    return steady(random) * (3.0 if random.random() < 0.15 else 1.0)


def spoiled(random):
    return steady(random) * (10.0 if random.random() < 0.02 else 1.0)


class Run:
    """A layer called again and again."""

    def __init__(self, seconds, densities, *, calls=3000, candidates=PLAIN, pass_="forward", noise=steady, seed=0):
        rng = random.Random(seed)
        self.site = planner.Site("layer")
        self.paths, self.spent, self.best = [], 0.0, 0.0
        for call in range(calls):
            now = densities(call)
            path = self.site.choose(pass_, candidates, "shape")
            cold = 1.0 if path in self.paths else 9.0
            seen = now if path != "dense" or self.site.samples(pass_) else {}
            self.site.observe(pass_, path, seconds(path, now) * cold * noise(rng), seen)
            self.paths.append(path)
            self.spent += seconds(path, now)
            self.best += min(seconds(other, now) for other in candidates)

    @property
    def regret(self):
        return self.spent / self.best - 1.0


@pytest.mark.parametrize("noise", [steady, spoiled])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("fixed", "slope", "density", "right"),
    [(0.15, 0.9, 0.5, "skip"), (0.1, 0.5, 0.2, "skip"), (0.3, 1.0, 0.9, "dense"), (2.0, 1.0, 0.5, "dense")],
)
def test_the_cheaper_path_is_found_within_ten_calls_and_kept(fixed, slope, density, right, seed, noise):
    run = Run(skipping(fixed, slope), lambda call: {"x": density}, noise=noise, seed=seed)
    assert set(run.paths[10:50]) == {right}
    assert sum(path != right for path in run.paths[:10]) <= 4
    assert run.site.stats()["forward"]["path"] == right
    assert run.regret < 0.02  # the first trial, and a hundredth for those that follow


@pytest.mark.parametrize("seed", range(5))
def test_a_neighbour_on_the_machine_may_mislead_a_site_but_not_for_long(seed):
    run = Run(skipping(0.15, 0.9), lambda call: {"x": 0.4}, noise=busy, seed=seed)
    assert run.regret < 0.03
    assert run.paths.count("skip") > 2800


@pytest.mark.parametrize(("density", "right"), [({"x": 0.3, "dy": 0.8}, "skip_x"), ({"x": 0.8, "dy": 0.3}, "skip_dy")])
def test_the_gradient_by_weight_skips_the_emptier_operand(density, right):
    run = Run(skipping(0.15, 1.0), lambda call: density, candidates=WEIGHT, pass_="weight")
    assert set(run.paths[14:50]) == {right}
    assert run.regret < 0.012


def test_densities_may_jump_at_any_call():
    for seed in range(40):
        rng = random.Random(seed)
        Run(
            skipping(0.15, 1.0),
            lambda call, rng=rng: {"x": rng.choice((0.1, 0.9, 1.0)), "dy": rng.choice((0.1, 0.9, 1.0))},
            candidates=WEIGHT, pass_="weight", calls=400, seed=seed,
        )  # fmt: skip


def test_an_operand_without_zeros_is_never_skipped_and_sampled_now_and_then():
    run = Run(skipping(0.0, 0.1), lambda call: {"x": 1.0})
    assert set(run.paths) == {"dense"}
    stats = run.site.stats()["forward"]
    assert stats["density"] == {"x": 1.0} and stats["saved"] == 0.0


def test_samples_of_a_dense_operand_are_rare():
    site, samples = planner.Site(), 0
    for _ in range(1000):
        path = site.choose("input", PLAIN, "shape")
        samples += site.samples("input")
        site.observe("input", path, 1.0, {"dy": 1.0} if site.samples("input") else {})
    assert 10 <= samples <= 100


def test_a_density_that_falls_makes_the_site_skip_and_one_that_rises_makes_it_stop():
    costs = skipping(0.15, 1.07)
    falls = Run(costs, lambda call: {"x": max(1.0 - call / 1000, 0.2)})
    assert falls.paths[100:200].count("dense") > 90 and falls.paths[850:950].count("skip") > 90
    assert falls.site.stats()["forward"]["switches"] == 1
    rises = Run(costs, lambda call: {"x": min(0.2 + call / 1000, 1.0)})
    assert rises.paths[200:300].count("skip") > 90 and set(rises.paths[1200:1300]) == {"dense"}
    assert falls.regret < 0.02 and rises.regret < 0.02


@pytest.mark.parametrize(("seconds", "right"), [(1e-4, "dense"), (1e-2, "skip")])
def test_a_gain_of_microseconds_is_no_gain(seconds, right):
    """The operator's own overhead would eat it: what counts is the whole call."""
    run = Run(lambda path, d: seconds * (1.0 if path == "dense" else 0.7), lambda call: {"x": 0.5}, calls=300)
    assert run.paths[20:].count(right) > 270


def test_equal_paths_do_not_make_a_site_dither():
    run = Run(lambda path, densities: 1.0, lambda call: {"x": 0.7})
    assert run.site.stats()["forward"]["switches"] == 0


def test_a_wrong_start_is_put_right_by_a_later_trial():
    """The first twenty calls fall into a time when skipping is slow for reasons of its own."""
    calls = iter(range(10**6))
    run = Run(lambda path, d: (3.0 if path == "skip" and next(calls) < 12 else 0.5) if path == "skip" else 1.0,
              lambda call: {"x": 0.5})  # fmt: skip
    assert run.paths[12] == "dense" and run.paths[-1] == "skip"
    assert run.paths.index("skip", 60) < 400


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("cost", [1.1, 1.3, 2.0, 20.0])
def test_exploration_after_the_first_trial_takes_no_more_than_its_share(cost, seed):
    run = Run(lambda path, d: 1.0 if path == "dense" else cost, lambda call: {"x": 0.5}, calls=8000, seed=seed)
    lost = sum(cost - 1.0 for path in run.paths[10:] if path == "skip")
    assert lost <= 1.1 * EXPLORATION * 8000  # and a tenth, for the noise in what a site believes a trial to have cost
    if cost < 2.0:
        assert "skip" in run.paths[10:]


@pytest.mark.parametrize("kind", ["bursts of others", "a lasting change"])
def test_what_comes_out_of_the_blue_must_come_twice(kind):
    """From call 50 on skipping takes three times as long: for the six calls of one trial, or for good."""
    site, paths, slow = planner.Site(), [], 0
    for call in range(300):
        path = site.choose("forward", PLAIN, "shape")
        slow += call > 50 and path == "dense"
        late = call > 50 and (kind == "a lasting change" or 0 < slow <= 3)
        site.observe("forward", path, 1.0 if path == "dense" else 1.5 if late else 0.5, {"x": 0.5})
        paths.append(path)
    assert paths[150:].count("skip") > 140 if kind == "bursts of others" else paths[150:].count("dense") > 140


def test_trials_that_confirm_become_rare():
    run = Run(lambda path, d: 1.0 if path == "dense" else 1.4, lambda call: {"x": 0.5}, calls=8000)
    tried = [call for call, path in enumerate(run.paths) if path == "skip"]
    starts = [call for before, call in itertools.pairwise(tried) if call - before > 10]
    gaps = [after - before for before, after in itertools.pairwise(starts)]
    assert 50 <= starts[0] < 120 and gaps == sorted(gaps) and 1000 <= gaps[-1] < 1020
    assert any(90 < gap < 500 for gap in gaps)


@pytest.mark.parametrize(("before", "after", "right"), [(0.93, 0.2, "skip"), (0.2, 0.93, "dense")])
def test_a_density_that_jumps_long_after_is_seen_soon(before, after, right):
    run = Run(skipping(0.15, 1.07), lambda call: {"x": before if call < 2500 else after}, calls=2700)
    assert right not in run.paths[2400:2500] and run.paths[2560:].count(right) > 130


def test_new_shapes_all_the_time_do_not_explore_all_the_time():
    site, paths = planner.Site(), []
    for call in range(2000):
        shape = ("shape", call // 3)
        path = site.choose("forward", PLAIN, shape)
        site.observe("forward", path, 1.0 if path == "dense" else 5.0, {"x": 0.4})
        paths.append(path)
    assert len(site._shared.questions["forward"].situations) < 100
    assert sum(4.0 for path in paths[12:] if path == "skip") < 0.02 * 2000


def test_a_shape_without_a_trial_goes_by_the_one_before():
    site = planner.Site()
    for _ in range(400):
        path = site.choose("forward", PLAIN, "usual")
        site.observe("forward", path, 1.0 if path == "dense" else 0.3, {"x": 0.2})
    for call in range(8):
        shape = ("odd", call)
        path = site.choose("forward", PLAIN, shape)
        site.observe("forward", path, 20.0 if path == "dense" else 0.3, {"x": 0.2})
    assert site.choose("forward", PLAIN, "another") == "skip"


def test_a_shape_in_use_is_not_forgotten_for_many_that_are_not():
    site, paths = planner.Site(), []
    for call in range(200):
        path = site.choose("forward", PLAIN, ("odd", call))
        site.observe("forward", path, 1.0 if path == "dense" else 0.3, {"x": 0.2})
        paths.append(site.choose("forward", PLAIN, "usual"))
        site.observe("forward", paths[-1], 1.0 if paths[-1] == "dense" else 0.3, {"x": 0.2})
    assert paths[10:48].count("skip") == 38 and paths.count("dense") <= 8


def test_a_second_shape_starts_afresh_and_the_first_goes_on_as_before():
    site = planner.Site()
    cost = {("large", "skip"): 0.5, ("small", "skip"): 2.0}

    def run(shape, calls):
        paths = []
        for _ in range(calls):
            paths.append(site.choose("forward", PLAIN, shape))
            site.observe("forward", paths[-1], cost.get((shape, paths[-1]), 1.0), {"x": 0.5})
        return paths

    assert set(run("large", 40)[10:]) == {"skip"}
    assert set(run("small", 40)[10:]) == {"dense"}
    assert set(run("large", 5)) == {"skip"}


def test_another_number_of_threads_is_another_shape():
    site = planner.Site()
    threads = torch.get_num_threads()
    for _ in range(40):
        path = site.choose("forward", PLAIN, "shape")
        site.observe("forward", path, 1.0 if path == "dense" else 0.5, {"x": 0.5})
    torch.set_num_threads(threads + 1)
    try:
        tried = set()
        for _ in range(4):
            tried.add(path := site.choose("forward", PLAIN, "shape"))
            site.observe("forward", path, 1.0 if path == "dense" else 0.5, {"x": 0.5})
    finally:
        torch.set_num_threads(threads)
    assert tried == {"dense", "skip"}


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("pass_", ["forward", "input"])
def test_deterministic_choices_follow_densities_and_never_times(deterministic, pass_):
    operand = {"forward": "x", "input": "dy"}[pass_]
    for slow in ("dense", "skip"):
        for density in (0.05, BREAK_EVEN[pass_] - 0.01, BREAK_EVEN[pass_] + 0.01, 1.0):
            site = planner.Site()
            right = "skip" if density < BREAK_EVEN[pass_] else "dense"
            for call in range(30):
                path = site.choose(pass_, PLAIN, "shape", {operand: density})
                assert path == right
                site.observe(pass_, path, 9.0 if path == slow else 1.0, {operand: 0.5 if call % 2 else density})


def test_deterministic_without_a_prior_is_dense(deterministic):
    tuner = planner.Tuner({"product": {"skip": "x"}})
    for _ in range(20):
        assert tuner.choose("product", PLAIN, "shape") == "dense"
        tuner.observe("product", "dense", 1.0, {"x": 0.01})


def test_deterministic_without_foreknowledge_samples_first(deterministic):
    site = planner.Site()
    assert site.choose("forward", PLAIN, "shape") == "dense" and site.samples("forward")
    site.observe("forward", "dense", 1.0, {"x": 0.2})
    assert site.choose("forward", PLAIN, "shape") == "skip"


def test_what_was_saved_is_what_the_paths_differ_by():
    run = Run(skipping(0.15, 0.85), lambda call: {"x": 0.5}, noise=lambda random: 1.0)
    stats = run.site.stats()["forward"]
    assert stats["saved"] == pytest.approx(0.425 * stats["calls"]["skip"], rel=0.01)  # all but the first trial's
    assert stats["seconds"]["skip"] == pytest.approx(0.575) and sum(stats["calls"].values()) == 3000


def test_a_forced_path_is_counted_without_being_asked_for():
    site = planner.Site()
    site.observe("forward", "skip", 0.5, {"x": 0.3})
    stats = site.stats()["forward"]
    assert stats["path"] == "skip" and stats["calls"] == {"skip": 1} and stats["density"] == {"x": 0.3}


def test_refusals_are_kept_once():
    site = planner.Site()
    for reason in ("groups=2", "float16", "groups=2"):
        site.refuse(reason)
    assert site.refused == ("groups=2", "float16")


def test_the_registry_holds_no_site_alive():
    site = planner.Site("gone")
    key = site.key
    assert planner.site(key) is site
    del site
    gc.collect()
    for dead in (key, 0):
        with pytest.raises(ValueError, match=f"key .* {dead}"):
            planner.site(dead)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda site: pickle.loads(pickle.dumps(site))])
def test_a_copy_is_a_site_of_its_own_that_knows_nothing(duplicate):
    site = planner.Site("layer")
    site.choose("forward", PLAIN, "shape")
    site.observe("forward", "dense", 1.0, {"x": 0.5})
    other = duplicate(site)
    assert other.name == "layer" and other.key != site.key and planner.site(other.key) is other
    assert other.stats() == {} and site.stats() != {}
    tuner = duplicate(planner.Tuner({"product": {"skip": "x"}}, name="own", every=4))
    assert (tuner.name, tuner.every, tuner.alternatives) == ("own", 4, {"product": {"skip": "x"}})


def test_threads_share_a_site():
    site, failures = planner.Site(), []

    def work(shape, winner):
        try:
            for _ in range(500):
                path = site.choose("forward", PLAIN, shape)
                site.observe("forward", path, 0.5 if path == winner else 1.0, {"x": 0.5})
            if site.choose("forward", PLAIN, shape) != winner:
                failures.append(shape)
        except Exception as error:  # a thread's exception is lost otherwise
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i, PLAIN[i % 2])) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert sum(site.stats()["forward"]["calls"].values()) == 2000


def test_bad_arguments_are_named():
    site = planner.Site()
    with pytest.raises(ValueError, match=r"question must .* 'backward'"):
        site.choose("backward", PLAIN, "shape")
    with pytest.raises(ValueError, match=r"candidates must hold 'dense'"):
        site.choose("forward", ("skip",), "shape")
    assert site.stats() == {}


def test_the_reason_names_what_was_observed():
    site = Run(skipping(0.15, 0.85), lambda call: {"x": 0.5}, calls=40, noise=lambda random: 1.0).site
    text = site.explain()
    for word in ("forward: skip", "by a trial of", "skip takes 0.5", "of dense", "50% of x nonzero", "calls, median"):
        assert word in text, word
    assert "no zeros to skip" in Run(skipping(0.0, 0.1), lambda call: {"x": 1.0}, calls=40).site.explain()
    idle = Run(lambda path, d: 1e-5, lambda call: {"x": 0.1}, calls=40).site
    assert "too little work for any gain" in idle.explain()
    assert planner.Site().explain() == "nothing was asked yet"


def test_a_prior_needs_no_trials_and_the_tuner_can_be_asked_anything():
    """Attention that is block-sparse where its pattern is sparse enough: no times, costs known beforehand."""
    cost = {"dense": lambda tiles: 1.0, "blocks": lambda tiles: 0.1 + 1.5 * tiles}
    tuner = planner.Tuner(
        {"attention": {"blocks": "tiles"}}, lambda _, one, at: cost[one](at.get("tiles")), every=4, window=4
    )
    found = []
    for call in range(24):
        if tuner.bypassed("shape") is None:
            density = 0.2 if call < 12 else 0.9
            tiles = {"tiles": density}
            found.append((call, tuner.choose("attention", ("dense", "blocks"), "shape", tiles, reports=False)))
    calls = {0: "blocks", 4: "blocks", 8: "blocks", 12: "blocks", 13: "dense", 17: "dense", 21: "dense"}
    assert dict(found) == calls
    assert sum(tuner.stats()["attention"]["calls"].values()) == 24


def test_limits_are_in_order():
    assert max(BREAK_EVEN.values()) < DENSE_FROM < 1.0
