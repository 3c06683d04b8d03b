"""What the planner chooses, in its own words."""

from __future__ import annotations

import torch

import gossamer as gs
from gossamer.bench.matmul.costs import costs
from gossamer.bench.section import Rows, Section, Settings, Table


def rows(settings: Settings) -> Rows:
    """One row: what `explain()` says of the example of docs/planner.md."""
    x = torch.randn(2048, 1024, generator=torch.Generator().manual_seed(0))
    x[torch.arange(2048) % 4 != 0] = 0.0
    w = torch.randn(1024, 512, generator=torch.Generator().manual_seed(1))
    x, w = x.to(settings.device), w.to(settings.device)
    choice = gs.planner.plan(x, w, sparse="a", axis="m", database=costs(settings))
    return [{"chosen": choice.kind, "text": choice.explain().splitlines()}]


def explain(rows: Rows) -> str:
    return "\n" + "\n".join(f"    {line}".rstrip() for line in rows[0]["text"]) + "\n"


SECTION = Section(rows, Table(explain, note=""))
