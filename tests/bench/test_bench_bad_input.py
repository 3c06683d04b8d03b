"""What a benchmark cannot use is said before anything is measured, and nothing is written."""

import dataclasses
import json

import pytest

from gossamer import bench
from gossamer.bench.detect import tiles


@pytest.fixture(autouse=True)
def nothing_is_measured(monkeypatch):
    def section(settings):
        raise AssertionError("a section ran")

    monkeypatch.setattr(tiles, "SECTION", dataclasses.replace(tiles.SECTION, rows=section))


@pytest.mark.parametrize(
    ("suite", "settings", "said"),
    [
        ("detects", bench.Settings(), "suite is 'detects'; expected one of"),
        ("detect", bench.Settings(only=("typo",)), r"only names \['typo'\]; suite 'detect' has the sections"),
        ("detect", bench.Settings(device="tpu"), "device is 'tpu'; expected 'cpu' or 'cuda'"),
        ("detect", bench.Settings(reps=0), "reps must be at least 1, got 0"),
        ("detect", bench.Settings(threads=0), "threads must be at least 1, got 0"),
    ],
)
def test_settings(suite, settings, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        bench.run(suite, settings, tmp_path / "result.json")
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="is a folder; expected a file"):
        bench.run("detect", bench.Settings(), tmp_path)
    with pytest.raises(OSError, match="file"):
        bench.run("detect", bench.Settings(), tmp_path / "file" / "result.json")
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("held", "said"),
    [
        ("{", "holds no earlier result"),
        ("[]", "holds no earlier result"),
        (json.dumps({"suite": "conv", "sections": {}}), "holds a result of suite 'conv'; expected 'detect'"),
    ],
)
def test_a_file_whose_sections_cannot_be_kept(held, said, tmp_path):
    path = tmp_path / "result.json"
    path.write_text(held)
    with pytest.raises(ValueError, match=said):
        bench.run("detect", bench.Settings(only=("tiles",)), path)
    assert path.read_text() == held and len(list(tmp_path.iterdir())) == 1
