"""The file of a suite: one row a line, written after every row, the rest of it kept."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from gossamer import bench
from gossamer.bench import Section, Settings, results
from gossamer.bench.section import Table

QUICK = Settings(quick=True, reps=1)
COMMITTED = sorted((Path(__file__).resolve().parents[2] / "benchmarks" / "results").rglob("*.json"))


def fails(settings):
    yield from [{"m": 1}, {"m": 2}]
    raise KeyboardInterrupt


def suite(**rows):
    return {name: Section(run, Table(str)) for name, run in rows.items()}


@pytest.fixture
def two(monkeypatch):
    """A suite whose second section is stopped."""
    found = suite(first=lambda settings: [{"n": 1}, {"n": [2, 0.5]}], second=fails)
    monkeypatch.setattr(bench, "sections", lambda name: found)


def test_a_run_that_is_stopped_keeps_every_row_and_says_where_it_stopped(two, tmp_path):
    path = tmp_path / "result.json"
    with pytest.raises(KeyboardInterrupt):
        bench.run("detect", QUICK, path)
    assert path.read_text().splitlines()[2:4] == ['{"n": 1},', '{"n": [2, 0.5]}']
    found = json.loads(path.read_text())["sections"]
    assert {name: section.get("unfinished") for name, section in found.items()} == {"first": None, "second": True}
    assert found["second"]["rows"] == [{"m": 1}, {"m": 2}]
    bench.run("detect", replace(QUICK, only=("first",)), path)
    assert json.loads(path.read_text())["sections"]["second"]["unfinished"]


def test_a_run_that_is_stopped_before_its_first_row_keeps_the_rows_of_before(monkeypatch, tmp_path):
    def stopped(settings):
        raise KeyboardInterrupt
        yield

    path = tmp_path / "result.json"
    before = {"suite": "detect", "sections": {"one": {"environment": {}, "settings": {}, "rows": [{"n": 1}]}}}
    results.write(path, before)
    monkeypatch.setattr(bench, "sections", lambda name: suite(one=stopped))
    with pytest.raises(KeyboardInterrupt):
        bench.run("detect", replace(QUICK, only=("one",)), path)
    assert results.read(path, "detect") == before


def test_other_sections_keep_their_rows_and_their_machine(two, tmp_path):
    path = tmp_path / "result.json"
    other = {"environment": {"cpu": "another"}, "settings": {"reps": 3}, "rows": [{"n": "é", "none": None}]}
    results.write(path, {"suite": "detect", "sections": {"second": other}})
    bench.run("detect", replace(QUICK, only=("first",)), path)
    found = json.loads(path.read_text())["sections"]
    assert found["second"] == other and found["first"]["rows"][0] == {"n": 1}


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_committed_results_are_written_so_and_have_a_section_for_each_table(path):
    found = results.read(path, path.stem)
    assert results.text(found) == path.read_text()
    assert found["sections"].keys() <= bench.sections(path.stem).keys()
