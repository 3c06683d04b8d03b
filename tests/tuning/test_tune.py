"""Tuning end to end at toy sizes: what is measured is saved, found again and used; the command tells its story."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gossamer.cli.__main__ import main
from gossamer.ops import dense
from gossamer.planner.costs.cache import Key, current, forget
from gossamer.planner.plan import TILES, plan
from gossamer.tuning.regret import masks, regret
from gossamer.tuning.tune import QUICK, tune

SHAPE = (64, 96, 16)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GOSSAMER_CACHE", str(tmp_path))
    forget()
    torch.set_num_threads(1)
    yield tmp_path
    forget()


def test_what_is_tuned_is_what_plans_use(cache):
    said = []
    database = tune("cpu", shapes=[SHAPE], quick=True, progress=lambda *step: said.append(step))
    assert said[0][:2] == (0, len(TILES) + 1) and said[-1] == (len(TILES) + 1, len(TILES) + 1, "done")
    assert {(key.op, key.alternative) for key in database.curves} == {
        ("matmul", "dense"), ("copy", ""), *((op, str(tile)) for op in ("matmul", "detect") for tile in TILES),
        *(("dense", name) for name, why in dense.engines().items() if why is None and "packed" not in name),
    }  # fmt: skip
    engines = [curve.seconds[0] for key, curve in database.curves.items() if key.op == "dense"]
    assert database.curves[Key("matmul", "dense", SHAPE, "float32")].seconds[0] == min(engines)
    assert all(0.0 <= x <= 1.0 for curve in database.curves.values() for x in curve.densities)
    assert current().curves == {}
    for seconds, looked in ((1 / 64, True), (1e-6, False)):  # a product of microseconds is not worth a look
        database.curves = {key: replace(c, seconds=(seconds,) * len(c.seconds)) for key, c in database.curves.items()}
        database.save()
        forget()
        choice = plan(torch.zeros(SHAPE[:2]), torch.ones(SHAPE[1:]))
        assert ("not sampled" not in choice.explain()) == looked
        assert choice.source == "measured" and choice.problem in choice.explain()


def test_the_command(cache, capsys, monkeypatch):
    monkeypatch.setitem(QUICK, "cpu", (SHAPE,))
    assert main(["tune", "--quick", "--threads", "1"]) == 0
    out = capsys.readouterr()
    assert "64 x 96 @ 96 x 16, float32: dense" in out.out and "break-even" in out.out
    assert all(f"({tile[0]}, {tile[1] or 'k'})" in out.out for tile in TILES)
    (file,) = cache.iterdir()
    assert f"written: {file}" in out.out
    assert json.loads(file.read_text())["machine"]["threads"] == 1
    assert "\r" not in out.err, "no bar where there is no terminal"


def test_a_second_run_keeps_the_other_shapes(cache, monkeypatch):
    tune("cpu", shapes=[(32, 32, 8)], quick=True).save()
    monkeypatch.setitem(QUICK, "cpu", (SHAPE,))
    assert main(["tune", "--quick"]) == 0
    assert {key.shape for key in current().curves} == {(32, 32, 8), SHAPE}


@pytest.mark.parametrize("argv, said", [
    (["--threads", "0"], "--threads must be at least 1, got 0"), (["--device", "tpu"], "tpu"),
])  # fmt: skip
def test_bad_flags(cache, argv, said, capsys):
    assert main(["tune", *argv]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(cache, capsys):
    assert main(["tune", "--device", "cuda"]) == 2
    assert "torch sees no CUDA device here" in capsys.readouterr().err


def test_a_cache_that_cannot_be_written_is_said_before_measuring(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("gossamer.cli.tune.tune", lambda *args, **kwargs: pytest.fail("measured first"))
    for place in (tmp_path / "file", Path("/proc/none")):
        assert main(["tune", "--cache", str(place)]) == 2
        said = capsys.readouterr().err
        assert str(place) in said and "--cache or GOSSAMER_CACHE names another folder" in said
    monkeypatch.delenv("GOSSAMER_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "")
    assert main(["tune"]) == 2
    assert "no home folder for what is kept; set GOSSAMER_CACHE" in capsys.readouterr().err


def test_regret_with_real_products(cache):
    result = regret((64, 128, 8), seed=1)
    assert len(result.cases) == len(list(masks(64, 128)))
    assert all(case.regret >= 1.0 and case.decide > 0.0 for case in result.cases)


def test_a_busy_machine_is_named(cache, caplog, monkeypatch):
    """When the same product takes two different times, the costs are kept and called rough."""
    from importlib import import_module

    module = import_module("gossamer.tuning.tune")
    honest = module.interleave

    def busy(*args, **kwargs):
        run = honest(*args, **kwargs)
        return replace(run, control=replace(run.control, min=2.0 * run.rows[0].min))

    monkeypatch.setattr(module, "interleave", busy)
    assert tune("cpu", shapes=[SHAPE], quick=True, tiles=[(8, 1)]).curves
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2 and said[1].startswith(
        "64 x 96 x 16 float32 tile (8, 1): two runs of the same product differ"
    )


def test_a_cache_folder_that_is_a_file_is_named(tmp_path):
    taken = tmp_path / "file"
    taken.write_text("mine")
    with pytest.raises(NotADirectoryError, match=r"GOSSAMER_CACHE.*file"):
        tune("cpu", shapes=[SHAPE], quick=True).save(taken)
    assert taken.read_text() == "mine"
