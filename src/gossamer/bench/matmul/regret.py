"""What the planner's choices cost beside the best ones."""

from __future__ import annotations

from collections.abc import Iterator

import gossamer as gs
from gossamer.bench.cells import table, value
from gossamer.bench.matmul.costs import costs
from gossamer.bench.section import Row, Rows, Section, Settings, Table


def rows(settings: Settings) -> Iterator[Row]:
    """One row per held-out mask, then one with the median and the worst."""
    shape = (256, 256, 64) if settings.quick else (2048, 2048, 256)
    found = gs.tuning.regret(shape, device=settings.device, database=costs(settings)).to_dict()
    for case in found.pop("rows"):
        yield {"shape": list(shape), **{("mask" if k == "name" else k): v for k, v in case.items()}}
    yield {"mask": "all", **found}


def regret(rows: Rows) -> str:
    *cases, total = rows
    found = table(
        cases,
        [
            ("mask", value("mask")), ("chosen", value("chosen")), ("best", value("best")),
            ("regret", value("regret", ".2f")),
            ("chosen, of dense", lambda row: f"{row['seconds'] / row['dense_seconds']:.2f}"),
            ("to decide", lambda row: f"{row['decide'] * 1e6:.0f} us"),
        ],
    )  # fmt: skip
    summary = f"Median regret {total['median']:.2f}, largest {total['max']:.2f}"
    return f"{found}\n{summary}; the worst choice lost {total['max_loss']:.0%} of the dense product.\n"


SECTION = Section(rows, Table(regret, note=""))
