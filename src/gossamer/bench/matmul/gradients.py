"""The two products of the backward pass: S^T c for the dense operand, c b^T at the pattern only for the values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

from torch import Tensor

import gossamer as gs
from gossamer.bench.cells import CONTROL, milliseconds, ratio, short, value
from gossamer.bench.dense import over_dense
from gossamer.bench.matmul.operands import DENSE, blocks, draw, normal, square
from gossamer.bench.section import Row, Section, Settings, Table

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


def rows(settings: Settings) -> Iterator[Row]:
    """One row per block size, density and gradient."""
    for block, density in product(blocks(settings), (1 / 4, 1 / 10, 1 / 16)):
        for gradient, (calls, left, right) in _sides(block, density, settings).items():
            found = over_dense(calls, settings, left, right, seconds=4)
            yield {"gradient": gradient, "block": block, "density": density, **found}


COLUMNS = (
    ("gradient of", value("gradient")), ("block", value("block")), ("density", value("density", ".3g")),
    ("dense ms", milliseconds()), (OURS, ratio(OURS)), (IN_CALL, short(IN_CALL)), CONTROL,
)  # fmt: skip


SECTION = Section(rows, Table(COLUMNS))
