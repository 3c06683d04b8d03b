"""Names of the version before work for one more, and say where they went."""

import importlib

import pytest

import gossamer as gs
from gossamer import planner


@pytest.mark.parametrize("name", sorted(planner._MOVED))
def test_what_moved_is_found_and_said(name):
    place, now = planner._MOVED[name]
    with pytest.warns(DeprecationWarning, match=f"gossamer.planner.{name} is now {place}.{now}"):
        found = getattr(planner, name)
    assert found is getattr(importlib.import_module(place), now)


def test_modules_that_moved():
    with pytest.warns(DeprecationWarning, match="gossamer.planner.costs.cache now"):
        from gossamer.planner.database import Key
    assert Key is planner.Key


def test_a_plan_answers_to_its_old_words():
    plan = gs.planner.Plan("m", (1, 8), 0.2, 0.8, (), "prior", "", "")
    with pytest.warns(DeprecationWarning, match="Plan.is_profitable"):
        assert plan.pays(0.5)
    with pytest.warns(DeprecationWarning, match="Plan.occupied"):
        assert plan.covered == 0.2


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'cover'"):
        _ = planner.cover
