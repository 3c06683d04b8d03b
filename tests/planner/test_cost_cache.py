"""Curves never fall; files say whose they are, and a wrong one is refused aloud."""

from __future__ import annotations

import itertools
import json
import logging
import os
import random
from pathlib import Path

import pytest
import torch
from cost_curves import database
from hypothesis import given
from hypothesis import strategies as st

from gossamer import files
from gossamer.planner.costs import cache as cache_module
from gossamer.planner.costs.cache import (
    LIMIT,
    Database,
    Key,
    current,
    file_for,
    forget,
    machine_of,
    text_of,
)
from gossamer.planner.costs.curve import Curve, isotonic

VALUES = st.lists(st.floats(0.001, 1000.0), min_size=1, max_size=12)


@given(VALUES, st.integers(0, 99))
def test_isotonic_is_the_nearest_sequence_that_never_falls(values, seed):
    fit = isotonic(values)
    assert all(a <= b + 1e-9 for a, b in itertools.pairwise(fit))
    assert sum(fit) == pytest.approx(sum(values))

    def far(other):
        return sum((a - b) ** 2 for a, b in zip(values, other, strict=True))

    rng = random.Random(seed)
    for _ in range(20):  # no other rising sequence is nearer
        other = sorted(x + rng.uniform(-1, 1) for x in fit)
        assert far(fit) <= far(other) + 1e-6
    if values == sorted(values):
        assert fit == pytest.approx(values)


def test_isotonic_weights():
    assert isotonic([3.0, 1.0], [1.0, 3.0]) == [1.5, 1.5]
    with pytest.raises(ValueError, match="weights must be 2 positive numbers"):
        isotonic([1.0, 2.0], [1.0, 0.0])


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=8, unique=True), st.data())
def test_curve_and_its_inverse(densities, data):
    seconds = data.draw(st.lists(st.floats(1e-6, 10.0), min_size=len(densities), max_size=len(densities)))
    curve = Curve.fit(densities, seconds)
    grid = [i / 50 for i in range(51)]
    times = [curve(x) for x in grid]
    assert all(a <= b + 1e-12 for a, b in itertools.pairwise(times))
    for budget in (times[0] / 2, times[0], times[25], times[-1], times[-1] * 2):
        last = curve.reaches(budget)
        assert 0.0 <= last <= 1.0
        if budget >= times[0]:
            assert curve(last) <= budget * (1 + 1e-6)
        assert all(curve(x) > budget * (1 - 1e-6) for x in grid if x > last + 1e-6)


@pytest.mark.parametrize("densities, seconds", [
    ((), ()), ((0.0, 1.0), (1.0,)), ((0.5, 0.5), (1.0, 1.0)), ((0.0, 1.5), (1.0, 1.0)), ((0.0, 1.0), (2.0, 1.0)),
    ((0.0,), (0.0,)), ((0.0,), (float("nan"),)), ((0.0,), (float("inf"),)),
])  # fmt: skip
def test_impossible_curves(densities, seconds):
    with pytest.raises(ValueError):
        Curve(densities, seconds)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GOSSAMER_CACHE", str(tmp_path))
    forget()
    yield tmp_path
    forget()


def test_saved_curves_come_back(cache):
    assert current().curves == {} and current().problem is None
    made = database()
    path = made.save()
    assert path.parent == cache and [p.name for p in cache.iterdir()] == [path.name]
    assert current().curves == made.curves and current().measured == "a formula"


def test_curves_belong_to_threads_and_instruction_set(cache):
    database().save()
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    assert current().curves == {} and current().problem is None
    torch.set_num_threads(before)
    assert current().curves
    names = {file_for({**machine_of(), key: "other"}) for key in machine_of()}
    assert len(names | {file_for(machine_of())}) == len(machine_of()) + 1


def _break(change):
    """A file whose checksum is right and whose content is not: someone wrote it so."""

    def broken(text):
        content = json.loads(text)
        change(content)
        return json.dumps(files.sealed(content))

    return broken


def _digit(text):
    """One digit of one time is another."""
    place = text.index('"seconds"')
    place += next(i for i, letter in enumerate(text[place:]) if letter.isdigit())
    return text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :]


BROKEN = {
    "empty": lambda text: "",
    "cut off": lambda text: text[: len(text) // 2],
    "one digit": _digit,
    "no checksum": lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != "sha256"}),
    "deeply nested": lambda text: "[" * 100_000 + "]" * 100_000,
    "nested inside": lambda text: text[:-3] + ', "more": ' + "[" * 900 + "]" * 900 + "}",
    "large": lambda text: text + " " * LIMIT,
    "a number beyond all": _break(lambda c: c["curves"][0].update(seconds=[10**400])),
    "not text": lambda text: b"\xff\xfe\x00\x01",
    "a list": lambda text: "[]",
    "newer format": _break(lambda c: c.update(format=99)),
    "the format before keys of any op": _break(lambda c: c.update(format=2)),
    **{f"another {key}": _break(lambda c, key=key: c["machine"].update({key: "other"})) for key in machine_of()},
    "no machine": _break(lambda c: c.pop("machine")),
    "no curves": _break(lambda c: c.pop("curves")),
    "a curve that falls": _break(lambda c: c["curves"][2].update(seconds=[9.0, *c["curves"][2]["seconds"][1:]])),
    "negative seconds": _break(lambda c: c["curves"][0].update(seconds=[-1.0])),
    "NaN": _break(lambda c: c["curves"][0].update(seconds=[float("nan")])),
    "seconds as text": _break(lambda c: c["curves"][0].update(seconds=["1"])),
    "an op without a name": _break(lambda c: c["curves"][0].update(op=None)),
    "a negative extent": _break(lambda c: c["curves"][0].update(shape=[1, -2, 3])),
    "no alternative": _break(lambda c: c["curves"][0].pop("alternative")),
    "a curve that is a number": _break(lambda c: c["curves"].append(3)),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_wrong_file_is_refused_aloud_and_replaced_by_the_next(name, cache, caplog):
    path = database().save()
    broken = BROKEN[name](path.read_text())
    path.write_bytes(broken if isinstance(broken, bytes) else broken.encode())
    forget()
    with caplog.at_level(logging.WARNING):
        found = current()
        current()
    assert found.curves == {}
    assert str(path) in found.problem and "`gossamer tune` writes it anew" in found.problem
    assert len(caplog.records) == 1, "said once, not at every product"
    database().save()
    assert current().problem is None and current().curves


def test_changed_bytes_give_the_same_curves_or_none(cache):
    path, draw = database().save(), random.Random(0)
    content, right = path.read_bytes(), current().curves
    for _ in range(200):
        changed = bytearray(content)
        bit = draw.randrange(8 * len(content))
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed[: draw.randrange(len(content))] if draw.random() < 0.2 else changed)
        forget()
        found = current()
        assert found.curves == right if found.problem is None else not found.curves


@pytest.mark.parametrize("block", [Path.mkdir, os.mkfifo], ids=["folder", "pipe"])
def test_what_is_no_file_is_neither_read_nor_replaced(cache, block):
    """A pipe without a writer would hold its reader for ever."""
    path = file_for(machine_of())
    block(path)
    assert "is not used" in current().problem
    with pytest.raises(ValueError, match="expected a file or nothing there"):
        database().save()
    assert not path.is_file() and [p.name for p in cache.iterdir()] == [path.name]


@pytest.mark.parametrize("what", ["gossamer", "torch", "cpu", "build", "isa", "threads"])
def test_another_version_or_machine_has_other_curves(cache, monkeypatch, what):
    """The name of the file and its content both say what the times depend on; each is enough to keep them apart."""
    path, content = database().save(), files.parse_json(database().save().read_bytes())
    if what in ("isa", "threads"):
        monkeypatch.setattr(*{"isa": (cache_module, "_isa", lambda: "other"),
                              "threads": (torch, "get_num_threads", lambda: 99)}[what])  # fmt: skip
    else:
        fixed = cache_module._fixed()
        monkeypatch.setattr(cache_module, "_fixed", lambda: {**fixed, what: "other"})
    forget()
    assert current().curves == {} and current().problem is None and file_for(machine_of()) != path
    with pytest.raises(ValueError, match="measured on another machine or version"):
        Database.from_json(content, machine_of())


def test_without_a_home_plans_go_on_and_tuning_names_the_variable(monkeypatch):
    for name in ("GOSSAMER_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for a user without an entry in passwd
    forget()
    assert current().curves == {} and current().problem is None
    with pytest.raises(FileNotFoundError, match=r"no home folder.*GOSSAMER_CACHE"):
        database().save()
    forget()


@pytest.mark.parametrize(("variables", "folder"), [
    ({"GOSSAMER_CACHE": "~/here"}, "/u/here"),
    ({"XDG_CACHE_HOME": "/x"}, "/x/gossamer"),
    ({"XDG_CACHE_HOME": "relative"}, "/u/.cache/gossamer"),
    ({}, "/u/.cache/gossamer"),
])  # fmt: skip
def test_where_the_curves_are(monkeypatch, variables, folder):
    for name in ("GOSSAMER_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/u", **variables}.items():
        monkeypatch.setenv(name, value)
    assert str(files.cache_folder()) == folder


def test_merge_replaces_and_keeps():
    old, new = database(), Database(machine_of(), measured="later")
    key, other = list(old.curves)[:2]
    new.curves[key] = Curve((1.0,), (42.0,))
    both = old.merge(new)
    assert both.curves[key].seconds == (42.0,) and both.curves[other] == old.curves[other]
    assert both.measured == "later"
    with pytest.raises(ValueError, match="other is of another machine"):
        old.merge(Database({"device": "x"}))


def test_only_shapes_with_every_curve_are_offered():
    db = database()
    assert db.shapes([("matmul", "dense"), ("matmul", "(32, 1)")], "float32", "cpu") == [(512, 512, 64)]
    assert db.shapes([("matmul", "(4, 4)")], "float32", "cpu") == []
    assert db.shapes([("matmul", "dense")], "bfloat16", "cpu") == []
    assert db.shapes([("matmul", "dense")], "float32", "cuda") == []
    assert text_of(db.machine) == text_of(machine_of())
    assert Key("matmul", "dense", (512, 512, 64), "float32") in db.curves
