"""Whole steps, forward and backward, of layers that meet dynamic sparsity.

Weights are random. Every candidate of a row computes the same thing; what is compared is how.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import gossamer as gs
from gossamer.bench.cells import CONTROL, Column, milliseconds, ratio, value
from gossamer.bench.section import Row, Settings

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


def measure(settings: Settings, cells: list[Workload], reps: int) -> Iterator[Row]:
    for name, setting, build in cells:
        torch.manual_seed(0)
        calls, facts = build(settings, setting)
        run = gs.measure.interleave(calls, reps=reps, warmup=1, seconds=20)
        yield {"workload": name, "setting": setting, **facts, **run.to_dict()}


def _others(row: Row) -> str:
    return ", ".join(f"{entry['name']} {ratio(entry['name'])(row)}" for entry in row["rows"][1:])


# One line for each row: the candidate that everybody has, and the others over it.
NAMED: tuple[Column, ...] = (
    ("workload", value("workload")), ("setting", value("setting")), ("baseline", value("baseline")),
    ("ms", milliseconds()),
)  # fmt: skip
COMPARED = (*NAMED, ("others, over it", _others), CONTROL)
