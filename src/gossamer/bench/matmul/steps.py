"""Whole steps, forward and backward, of layers that meet dynamic sparsity.

Weights are random. Every candidate of a row computes the same thing; what is compared is how.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import gossamer as gs
from gossamer.bench.cells import CONTROL, milliseconds, ratio, table, value
from gossamer.bench.section import Row, Rows, Settings

Calls = dict[str, Callable[[], Any]]
Built = tuple[Calls, Row]  # candidates, and what the row says of them
Workload = tuple[str, Any, Callable[[Settings, Any], Built]]  # name, setting

OURS = "gossamer"


def both_ways(forward: Callable[..., Tensor], inputs: list[Tensor]) -> Callable[[], Any]:
    """Forward and the gradients of all inputs that want one."""
    wanted = [x for x in inputs if x.requires_grad]

    def call() -> Any:
        y = forward()
        return torch.autograd.grad(y, wanted, torch.ones_like(y))

    return call


def measure(settings: Settings, cells: list[Workload], reps: int) -> Rows:
    out = []
    for name, setting, build in cells:
        torch.manual_seed(0)
        calls, facts = build(settings, setting)
        run = gs.measure.interleave(calls, reps=reps, warmup=1, seconds=20)
        out.append({"workload": name, "setting": setting, **facts, **run.to_dict()})
    return out


def compared(rows: Rows) -> str:
    """One line for each row: the candidate that everybody has, and the others over it."""

    def others(row: dict[str, Any]) -> str:
        return ", ".join(f"{entry['name']} {ratio(entry['name'])(row)}" for entry in row["rows"][1:])

    return table(
        rows,
        [
            ("workload", value("workload")), ("setting", value("setting")), ("baseline", value("baseline")),
            ("ms", milliseconds()), ("others, over it", others), CONTROL,
        ],
    )  # fmt: skip
