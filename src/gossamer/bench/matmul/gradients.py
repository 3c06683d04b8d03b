"""The two products of the backward pass: S^T c for the dense operand, c b^T at the pattern only for the values."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from torch import Tensor

import gossamer as gs
from gossamer.bench.cells import CONTROL, milliseconds, ratio, short, table, value
from gossamer.bench.dense import use_fastest
from gossamer.bench.matmul.operands import DENSE, draw, normal, square
from gossamer.bench.section import Rows, Section, Settings, Table

OURS, IN_CALL = "ours", "index transposed in the call"


Side = tuple[dict[str, Callable[[], Any]], Tensor, Tensor]  # candidates, and the operands of the dense product


def _sides(block: int, density: float, settings: Settings) -> dict[str, Side]:
    size, n = square(settings)
    dense, pattern = draw(size, size, (block, block), density, settings)
    b, c = normal(size, n, settings, seed=1), normal(size, n, settings, seed=2)
    values, transposed = pattern.pack(dense), gs.ops.transpose(pattern)
    by_operand: dict[str, Callable[[], Any]] = {
        DENSE: lambda: dense.t() @ c,
        OURS: lambda: gs.ops.dds(c.t(), values, pattern, transposed=transposed).t(),
        IN_CALL: lambda: gs.ops.dds(c.t(), values, pattern).t(),
    }
    by_values: dict[str, Callable[[], Any]] = {DENSE: lambda: c @ b.t(), OURS: lambda: gs.ops.sdd(c, b.t(), pattern)}
    return {"dense operand": (by_operand, dense.t(), c), "values": (by_values, c, b.t())}


def rows(settings: Settings) -> Rows:
    """One row per block size, density and gradient."""
    blocks = (16, 32, 64, 128) if settings.device == "cuda" else (1, 4, 8, 16, 32, 64)
    out = []
    for block, density in product(blocks, (1 / 4, 1 / 10, 1 / 16)):
        for gradient, (calls, left, right) in _sides(block, density, settings).items():
            with torch.inference_mode():
                facts = use_fastest(calls, DENSE, settings, left, right)
                run = gs.measure.interleave(calls, baseline=DENSE, reps=settings.reps, seconds=4)
            out.append({"gradient": gradient, "block": block, "density": density, **facts, **run.to_dict()})
    return out


def gradients(rows: Rows) -> str:
    return table(
        rows,
        [
            ("gradient of", value("gradient")), ("block", value("block")), ("density", value("density", ".3g")),
            ("dense ms", milliseconds()), (OURS, ratio(OURS)), (IN_CALL, short(IN_CALL)), CONTROL,
        ],
    )  # fmt: skip


SECTION = Section(rows, Table(gradients))
