"""The suite of routing runs, its routes are those that it says, and its ways spend what they should."""

import pytest
import torch

pytest.importorskip("transformers")

from gossamer import bench
from gossamer.bench.route.quality import beats
from gossamer.bench.route.routes import along, spaced
from gossamer.bench.route.speed import LAYERS, AllButOne, model_of, policies
from gossamer.routing.radial import Radial


def test_every_section_runs_and_makes_its_tables():
    result = bench.run("route", bench.Settings(quick=True, reps=1, seeds=(0,)))
    for name, section in bench.sections("route").items():
        rows = result["sections"][name]["rows"]
        for table in (section.table, *section.further.values()):
            assert rows and table.text(rows).count("\n") == len(rows) + 2


@pytest.mark.parametrize("share", [0.9, 0.7, 0.5, 0.2])
def test_a_known_route_is_taken_and_a_router_is_asked_for_each_jump(share):
    route = spaced(10, share)
    assert route[0] == 0 and route[-1] == 9 and len(route) == max(2, round(10 * share))
    model = model_of(64, bench.Settings(quick=True))
    route = spaced(LAYERS, share)
    radial = Radial(model, policy=along(route, LAYERS, 64), sink=0).eval()
    with torch.no_grad():
        radial(torch.zeros(1, 5, dtype=torch.int64))
    assert [unit for unit, ran in enumerate(radial.run.ran) if ran] == route
    assert radial.run.walk.decisions == 5 * (len(route) + (route[-1] != LAYERS - 1))


def test_gathers_are_timed_with_gathers():
    model = model_of(64, bench.Settings(quick=True))
    radial = Radial(model, policy=AllButOne(LAYERS, 64), sink=0).eval()
    with torch.no_grad():
        radial(torch.zeros(1, 5, dtype=torch.int64))
    assert radial.run.ran == [4] * LAYERS
    assert len(policies(64)) == 5


def test_a_difference_counts_beyond_two_deviations():
    assert beats([1.0, 1.1, 1.2], [2.0, 2.11, 2.21]) == "+1.007 (better)"
    assert beats([2.0, 2.1, 2.2], [1.0, 1.1, 1.21]) == "-0.997 (worse)"
    assert beats([1.0, 2.0, 3.0], [1.1, 1.9, 3.2]).endswith("(even)")
