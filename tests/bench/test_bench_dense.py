"""The dense baseline: every engine computes the product, the fastest is taken, and the foot of a table says which."""

import pytest
import torch

from gossamer.bench import Settings, dense
from gossamer.ops import dense as ops
from gossamer.testing.clock import Clock

QUICK = Settings(quick=True, reps=1)


@pytest.mark.parametrize("constant", [None, "a", "b"])
def test_every_engine_computes_the_product(constant):
    a, b = torch.randn(33, 65), torch.randn(65, 17)
    calls = dense.engines(a, b, constant)
    present = [name for name, why in ops.engines().items() if why is None]
    assert set(calls) == {name for name in present if constant or not ops.ENGINES[name].packs}
    for name, call in calls.items():
        torch.testing.assert_close(call(), a @ b, rtol=1e-4, atol=1e-4, msg=name)
    assert set(dense.engines(a.double(), b.double(), constant)) == {"torch"}


def test_the_fastest_is_the_baseline_and_all_rates_are_kept(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("gossamer.measure.clock.now", clock)
    calls = {}
    found = {name: lambda s=seconds: clock.advance(s) for name, seconds in (("torch", 2.0), ("gossamer", 1.0))}
    facts = dense.choose(found, calls, "dense", QUICK, 10**9)
    assert calls["dense"] is found["gossamer"]
    assert facts == {"engine": "gossamer", "engines": {"torch": pytest.approx(0.5), "gossamer": pytest.approx(1.0)}}


def test_the_foot_of_a_table_names_the_processor_and_the_share_of_the_peak():
    where = {"microarchitecture": "Zen 4 (25/97)", "peak": {"gflops": 200.0, "engine": "onednn", "size": 1536}}
    rows = [
        {"engine": "torch", "engines": {"torch": 100.0, "onednn": 90.0}},
        {"points": [{"engine": "onednn", "engines": {"torch": 100.0, "onednn": 180.0}}]},
        {"fit": {}},
    ]
    assert dense.named(where) == ", Zen 4 (25/97)"
    assert dense.shares(where, rows) == (
        " Dense is its fastest engine (onednn, torch), at 50% to 90% of 200 GFLOP/s, the best product of 1536^3 here, "
        "by onednn."
    )
    assert dense.named({}) == dense.shares({}, rows) == dense.shares(where, [{"fit": {}}]) == ""
