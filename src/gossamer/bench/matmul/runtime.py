"""Products with a dense matrix that holds zeros, found inside the timed call (PIT)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import gossamer as gs
from gossamer.bench.cells import CONTROL, Column, milliseconds, ratio, value
from gossamer.bench.dense import Call, over_dense, settle
from gossamer.bench.matmul.operands import DENSE, Tile
from gossamer.bench.section import Row, Settings

DETECTED, AUTO, GIVEN = "detected", "tile='auto'", "index given"


def candidates(a: Tensor, b: Tensor, tile: Tile) -> dict[str, Call]:
    index = gs.detect(a, tile=tile)
    return {
        DENSE: lambda: a @ b,
        DETECTED: lambda: gs.ops.matmul(a, b, tile=tile),
        AUTO: lambda: gs.ops.matmul(a, b),
        GIVEN: lambda: gs.ops.matmul(a, b, index=index),
    }


def compare(settings: Settings, a: Tensor, b: Tensor, calls: dict[str, Call], **facts: Any) -> Row:
    """Interleaved rounds; b, a weight in most uses, is constant."""
    with torch.inference_mode():
        settle(settings, calls[AUTO])
    return {**facts, **over_dense(calls, settings, a, b, "b", seconds=8)}


def columns(*more: str) -> list[Column]:
    """What both axes say of a row; `more` candidates beside ours."""
    ours = ((name, ratio(name)) for name in (DETECTED, AUTO, GIVEN, *more))
    return [("zeros", value("zeros", ".0%")), ("dense ms", milliseconds()), *ours, CONTROL]
