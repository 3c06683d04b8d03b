"""What `gs.compact` answers when almost nothing would be removed."""

from __future__ import annotations

from collections.abc import Iterator

import torch

import gossamer as gs
from gossamer.bench.cells import value
from gossamer.bench.compact.channels import lowest_channels
from gossamer.bench.section import Row, Section, Settings, Table


def rows(settings: Settings) -> Iterator[Row]:
    """One row per share of channels."""
    side = 64 if settings.quick else 224
    for fraction in (0.01, 0.05, 0.4):
        torch.manual_seed(0)
        model = gs.models.build("resnet50", input_shape=(3, side, side), classes=1000).eval().to(settings.device)
        x = torch.randn(1, 3, side, side, device=settings.device)
        graph = gs.compaction.ChannelGraph.build(model, x)
        # Not rounded: awkward widths are what a user who removes 5 % gets.
        gs.compaction.zero_channels_(model, graph, lowest_channels(graph, model, fraction, round_to=1))
        small = gs.compact(model, x, round_to=1)
        yield {"model": "resnet50", "removed": fraction, "refused": small.refused}


COLUMNS = (
    ("model", value("model")), ("channels removed", value("removed", ".0%")),
    ("`compact` says", lambda row: row["refused"] or "not refused"),
)  # fmt: skip


SECTION = Section(rows, Table(COLUMNS))
