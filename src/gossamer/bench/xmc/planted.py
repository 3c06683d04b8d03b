"""Planted data, whose best P@k is known: labels that a head of this fan-in can express, and labels that it cannot."""

from __future__ import annotations

from collections.abc import Iterator

from gossamer.bench.section import Row, Section, Settings, Table
from gossamer.bench.xmc import quality
from gossamer.xmc.data import planted as draw
from gossamer.xmc.data.planted import Planted
from gossamer.xmc.metrics import Metrics

FAN_IN = 32
KINDS = {"realisable": FAN_IN // 2, "stress": 2 * FAN_IN}  # inputs that a label depends on


def sizes(settings: Settings) -> dict[str, int]:
    if settings.quick:
        return {"rows": 300, "test_rows": 100, "labels": 128, "width": 128}
    return {"rows": 8_000, "test_rows": 4_000, "labels": 512, "width": 256}


def rows(settings: Settings) -> Iterator[Row]:
    """Heads that read the features as they are; the ceiling is in each row."""
    size = sizes(settings)
    common = {"epochs": 1 if settings.quick else 6, "lr": 0.02}
    models = quality.compared(FAN_IN, 0, common, dropout=0.0)
    for kind, support in KINDS.items():
        made = {seed: draw(**size, support=support, seed=seed) for seed in settings.seeds}
        best = [_ceiling(each) for each in made.values()]
        data = {seed: each.data for seed, each in made.items()}
        for row in quality.rows(kind, data.__getitem__, models, settings):
            yield {**row, "support": support, "oracle": best}


def _ceiling(made: Planted) -> float:
    metrics = Metrics(made.data.labels, 1)
    metrics.add(*made.oracle(1), made.data.test.labels)
    return 100 * metrics.result()["P@1"]


def _ceilings(row: Row) -> str:
    return f"{sum(row['oracle']) / len(row['oracle']):.1f}"


COLUMNS = (("labels depend on", lambda row: f"{row['support']} inputs"), ("best P@1", _ceilings), *quality.COLUMNS)
SECTION = Section(rows, Table(COLUMNS, quality.TABLE.note), on_gpu=False)
