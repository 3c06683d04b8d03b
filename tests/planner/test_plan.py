"""Plans on machines of known cost: the least is chosen, the choice is stable, dense bounds the loss."""

from __future__ import annotations

import copy
import pickle
import random
import re
import threading
from dataclasses import replace

import cost_curves as known
import pytest
import torch

from gossamer.planner.call_sites import Planner
from gossamer.planner.costs.cache import Database
from gossamer.planner.plan import TILES, plan
from gossamer.tuning.regret import regret

ROWS, K, N = known.SHAPE
B = torch.ones(K, N)
UNTUNED = Database({"threads": 2, "isa": "avx512"})


def _rows(share: float) -> torch.Tensor:
    """[ROWS, K] with this share of the rows nonzero, evenly spread."""
    a = torch.zeros(ROWS, K)
    steps = (torch.arange(ROWS + 1, dtype=torch.float64) * share).floor()
    a[steps.diff() > 0] = 1.0
    return a


def _columns(share: float) -> torch.Tensor:
    return _rows(share).t().contiguous()


@pytest.mark.parametrize("a, kind, tile", [
    (_rows(0.25), "m", (1, K)), (_columns(0.25), "k", (32, 1)), (_rows(1.0), "dense", None),
    (_rows(0.98), "dense", None), (_columns(0.9), "dense", None),
])  # fmt: skip
def test_the_cheapest_is_chosen(a, kind, tile):
    choice = plan(a, B, database=known.database())
    assert (choice.kind, choice.tile) == (kind, tile)
    assert choice.candidates[0].total == min(candidate.total for candidate in choice.candidates)
    assert any(candidate.kind == "dense" for candidate in choice.candidates)
    assert choice.source == "measured"


def test_sparse_b_is_the_transposed_problem():
    b = _rows(0.25).t()  # zeros in whole columns, and lying so that its transpose is contiguous
    a = torch.ones(N, K)
    choice = plan(a, b, "b", database=known.database())
    assert (choice.kind, choice.tile) == ("n", (K, 1)) and choice.candidates[0].copy == 0.0
    copied = plan(a, b.contiguous(), "b", database=known.database())
    assert copied.candidates[0].copy == pytest.approx(1e-3)
    assert copied.occupied == pytest.approx(choice.occupied, abs=0.05)
    assert plan(a, b, "b", axis="k", database=known.database()).kind == "dense"


def test_axis_restricts_and_tiles_replace():
    kinds = {c.kind for c in plan(_rows(0.1), B, axis="k", database=known.database()).candidates}
    assert kinds == {"dense", "k"}
    tiles = {c.tile for c in plan(_rows(0.1), B, tiles=[(8, 1)], database=known.database()).candidates}
    assert tiles == {None, (8, 1)}


def test_break_even_is_where_the_product_alone_costs_as_much_as_dense():
    choice = plan(_columns(0.25), B, database=known.database())
    even = (known.DENSE - 2e-4) / known.DENSE * known.RATES[(32, 1)]
    assert choice.break_even == pytest.approx(even, abs=1e-6)
    assert choice.is_profitable(even - 0.01) and not choice.is_profitable(even + 0.01)
    assert not plan(_rows(1.0), B, database=known.database()).is_profitable(0.0)


def test_explain_names_everything():
    text = plan(_rows(0.25), B, database=known.database()).explain()
    for word in ("[512, 512] @ [512, 64]", "zeros in a", f"m, tile (1, {K})", "dense", "k (32, 1)", "block (16, 16)",
                 "25.0%", "10.00 ms", "measured: on this machine, a formula", "<-"):  # fmt: skip
        assert word in text, word
    assert text.count("<-") == 1


def test_scaled_costs_keep_their_ratios_and_far_shapes_are_not_trusted():
    near = plan(torch.zeros(1024, 1024), torch.ones(1024, 128), database=known.database())
    assert near.source == "measured" and "scaled by the work" in near.basis
    dense = next(c for c in near.candidates if c.kind == "dense")
    assert dense.total == pytest.approx(8 * known.DENSE)
    far = plan(torch.zeros(64, 64), torch.ones(64, 2), database=known.database())
    assert far.source == "prior"


def test_without_measurements_the_source_is_called_a_prior():
    empty = Database({"threads": 2, "isa": "avx512"}, problem="some file is not used")
    a = torch.zeros(2048, 1024)
    a[:64] = 1.0
    choice = plan(a, torch.ones(1024, 512), database=empty)
    assert choice.source == "prior" and choice.kind == "m"
    assert "gossamer tune" in choice.explain() and "some file is not used" in choice.explain()
    assert plan(torch.ones(2048, 1024), torch.ones(1024, 512), database=empty).kind == "dense"


def test_batches():
    a = _rows(0.25).view(4, ROWS // 4, K)
    choice = plan(a, torch.ones(4, K, N), database=known.database())
    assert choice.kind == "m"
    odd = plan(torch.zeros(4, 130, K), torch.ones(4, K, N), tiles=TILES, database=known.database())
    assert not any(c.tile == (32, 1) for c in odd.candidates)
    assert "would straddle two matrices" in odd.explain()
    assert plan(a, torch.ones(K, N), database=known.database()).kind == "m"


@pytest.mark.parametrize("a, b", [
    (torch.zeros(0, 4), torch.zeros(4, 4)), (torch.zeros(4, 0), torch.zeros(0, 4)),
    (torch.zeros(4, 4).half(), torch.zeros(4, 4).half()),
])  # fmt: skip
def test_what_no_kernel_takes_is_dense_and_says_so(a, b):
    choice = plan(a, b)
    assert choice.kind == "dense" and choice.notes


class Steps:
    """A planner fed one matrix after another, with the choice after each."""

    def __init__(self, **settings):
        self.planner = Planner(database=known.database(), every=4, window=1, **settings)

    def __call__(self, a: torch.Tensor, times: int) -> list[str]:
        return [self.planner(a, B).kind for _ in range(times)]


def test_a_decision_is_sampled_every_so_many_calls():
    steps = Steps()
    assert steps(_rows(0.25), 12) == ["m"] * 12
    assert steps.planner.evaluations == 3


def test_a_switch_needs_two_evaluations():
    steps = Steps()
    assert steps(_rows(0.25), 4) == ["m"] * 4
    # Evaluated at the fifth call, confirmed at the next.
    assert steps(_rows(1.0), 4) == ["m", "dense", "dense", "dense"]


def test_one_odd_evaluation_changes_nothing():
    steps = Steps()
    assert steps(_rows(0.25), 4) + steps(_rows(1.0), 1) + steps(_rows(0.25), 8) == ["m"] * 13


def test_a_small_gain_is_not_worth_a_switch():
    """Dense beats rows by less than 5 percent at this density, so what is in force stays, either way."""
    density = 0.96
    assert 0.0 < known.seconds((1, 0), density) / known.DENSE - 1.0 < 0.05
    a = _rows(density)
    down, up = Steps(), Steps()
    assert down(_rows(0.25), 4) + down(a, 12) == ["m"] * 16
    assert "kept: the cheapest gains" in down.planner(a, B).explain()
    assert up(_rows(1.0), 4) + up(_rows(0.92), 12) == ["dense"] * 16
    assert down.planner(a, B).occupied == pytest.approx(density, abs=0.02)


@pytest.mark.parametrize(("before", "after"), [(1.0, 0.5), (0.5, 1.0)])
def test_a_leap_of_density_is_noticed_at_the_next_sample(before, after):
    """Whatever the samples of earlier calls say: at the sixteenth call, or where it is confirmed, at the one after."""
    planner = Planner(database=known.database())
    first = {planner(_rows(before), B).kind for _ in range(100)}
    kinds = [planner(_rows(after), B).kind for _ in range(40)]
    assert len(first) == 1 and set(kinds[17:]).isdisjoint(first) and len(set(kinds[17:])) == 1


def test_samples_of_other_candidates_are_not_averaged():
    planner = Planner(database=known.database(), every=1, tiles=[(1, 0)])
    rows = _rows(0.5)
    assert {planner(rows, B).kind for _ in range(4)} == {"m"}
    planner.tiles = [(32, 1)]  # as many candidates, and columns of bands are all covered
    assert planner(rows, B).candidates[-1].occupied == pytest.approx(1.0)


def test_costs_follow_the_curves():
    base, a = known.database(), _rows(0.25)
    assert plan(a, B, database=base).kind == "m"
    for key, curve in base.curves.items():  # as many curves as before
        if key.alternative == "dense":
            base.curves[key] = replace(curve, seconds=tuple(1e-9 for _ in curve.seconds))
    assert plan(a, B, database=base).kind == "dense"


def test_sites_are_told_apart_by_the_memory_of_b():
    planner, other = Planner(database=known.database()), B.clone()
    assert planner(_rows(0.25), B).kind == "m"
    assert planner(_rows(1.0), other).kind == "dense"
    assert planner(_rows(0.25), B).kind == "m" and planner.evaluations == 2
    planner.reconsider(_rows(0.25), B)
    planner(_rows(0.25), B)
    assert planner.evaluations == 3


def test_an_address_that_is_used_again_is_another_site_and_a_view_is_the_same():
    planner, memory = Planner(database=known.database()), B.numpy().copy()
    first = torch.from_numpy(memory)
    assert {planner(_rows(0.25), first[:]).kind for _ in range(3)} == {"m"} and planner.evaluations == 1
    address = first.data_ptr()
    del first
    second = torch.from_numpy(memory)
    assert second.data_ptr() == address
    assert planner(_rows(1.0), second).kind == "dense" and planner.evaluations == 2


@pytest.mark.parametrize(("faster", "first"), [(1, "m"), (20, "dense")])
def test_operands_that_live_for_one_call_are_one_site(faster, first):
    """As activations do. Where one product is not worth a sample, the second call takes it, for those to come."""
    costs = known.database()
    for key, curve in costs.curves.items():
        costs.curves[key] = replace(curve, seconds=tuple(seconds / faster for seconds in curve.seconds))
    planner, a = Planner(database=costs), _rows(0.25)
    kinds = [planner(a, torch.ones(K, N)).kind for _ in range(33)]
    assert kinds == [first, *["m"] * 32] and planner.evaluations == 3
    layers = [torch.ones(K, N) for _ in range(3)]  # at once: they are told apart
    planner, full = Planner(database=costs), _rows(1.0)
    for _ in range(4):
        layers = [torch.ones(K, N) for _ in layers]
        kinds = [planner(x, layer).kind for x, layer in zip((a, full, a), layers, strict=True)]
    assert kinds == ["m", "dense", "m"]


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda planner: pickle.loads(pickle.dumps(planner))])
def test_a_copy_of_a_planner_has_its_settings_and_knows_no_site(duplicate):
    planner = Planner(every=4, window=1, database=known.database())
    assert planner(_rows(0.25), B).kind == "m"
    other = duplicate(planner)
    assert (other.every, other.window, other.evaluations) == (4, 1, 0) and "no product" in other.explain()
    assert other(_rows(0.25), B).kind == "m" and planner.evaluations == other.evaluations == 1


def test_threads_share_a_planner():
    planner, others = Planner(database=known.database()), [B.clone() for _ in range(4)]
    kinds: list[str] = []

    def work(b, share):
        kinds.extend(f"{planner(_rows(share), b).kind} {share}" for _ in range(50))

    threads = [threading.Thread(target=work, args=(b, (0.25, 1.0)[i % 2])) for i, b in enumerate(others)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(kinds) == 200 and set(kinds) == {"m 0.25", "dense 1.0"}
    assert planner.explain().count("chosen: ") == 4


def test_deterministic_plans_depend_on_the_operands_alone():
    planner = Planner(database=known.database())
    torch.use_deterministic_algorithms(True)
    try:
        kinds = [planner(_rows(share), B).kind for share in (0.25, 1.0, 0.96, 0.25)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert kinds == ["m", "dense", "dense", "m"]


def test_forgotten_sites_are_decided_anew():
    planner = Planner(database=known.database(), most_sites=2)
    others = [torch.ones(K, N) for _ in range(3)]
    for other in (*others, others[2]):
        assert planner(_rows(0.25), other).kind == "m"
    assert planner.evaluations == 3 and sum(map(len, planner._sites.values())) <= 2


def test_small_products_are_dense_unseen_and_tuning_may_change_that():
    a, b = torch.zeros(128, 128), torch.ones(128, 16)
    slow = Database(UNTUNED.machine)
    for key, curve in known.database().curves.items():
        where = (128, 128, 16)
        slow.curves[replace(key, shape=where)] = curve
    once = plan(a, b, database=UNTUNED)
    assert once.kind == "dense" and "not sampled" in once.explain()
    planner = Planner(every=1, database=UNTUNED)
    assert planner(a, b).kind == "dense"
    planner.database = slow
    assert [planner(a, b).kind for _ in range(3)][-1] == "m"


@pytest.mark.parametrize("wobble", [0.0, 0.1])
def test_regret_over_held_out_masks(wobble):
    """With curves off by up to a tenth and samples of an eighth of the rows, the loss stays near those errors."""
    rng = random.Random(0)
    costs = known.database(lambda seconds: seconds * rng.uniform(1 - wobble, 1 + wobble))
    result = regret(known.SHAPE, database=costs, measure=known.measure)
    assert len(result.cases) == 16
    assert result.median <= 1.0 + wobble
    assert {case.chosen for case in result.cases} >= {"dense", f"(1, {K})", "(32, 1)"}
    assert next(case for case in result.cases if case.name == "no zeros").chosen == "dense"
    # Whatever a sample misses, once the tiles are found a product that does not pay is left to dense.
    for case in result.cases:
        assert min(case.seconds, known.DENSE + known.DETECT) <= (1.1 + wobble) * case.dense_seconds
    assert "median" in str(result) and len(result.to_dict()["rows"]) == 16


BAD = [
    (lambda: plan(B, B), ValueError, "b must have 64 rows, a's columns, got shape (512, 64)"),
    (lambda: plan(B.t(), B, "c"), ValueError, "sparse must be 'a' or 'b', got 'c'"),
    (lambda: plan(B.t(), B, axis="n"), ValueError, "axis must be one of 'auto', 'm', 'k' with sparse='a', got 'n'"),
    (lambda: plan(B.t(), B, "b", axis="m"), ValueError, "'auto', 'k', 'n' with sparse='b', got 'm'"),
    (lambda: plan([1], B), TypeError, "a must be a tensor, got list"),
    (lambda: plan(B.t().int(), B.int()), TypeError, "a must be a strided float64, float32, bfloat16 or float16 tensor"),
    (lambda: plan(B.t(), B.double()), TypeError, "b must have a's dtype torch.float32, got torch.float64"),
    (lambda: plan(B.t(), B.to_sparse()), TypeError, "b must be a strided"),
    (lambda: plan(B.t(), torch.stack([B, B])), ValueError, "b must be one matrix or match the batch of a"),
    (lambda: plan(B[0], B), ValueError, "a must have 2 or 3 dimensions, got shape (64,)"),
    (lambda: plan(B.t(), B, tiles=[(-1, 1)]), ValueError, "tile must be a pair of ints of at least 0"),
    (lambda: Planner(every=0), ValueError, "every must be an int of at least 1, got 0"),
    (lambda: Planner(gain=-1.0), ValueError, "gain must be a fraction of at least 0"),
]


@pytest.mark.parametrize("call, error, said", BAD, ids=[row[2] for row in BAD])
def test_bad_input(call, error, said):
    with pytest.raises(error, match=re.escape(said)):
        call()
