"""What the planner chooses, in its own words, and what its choices cost beside the best ones.

Costs are tuned anew in this process, so that a result does not hang on what a machine keeps from earlier.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

import gossamer as gs
from gossamer.bench import Settings
from gossamer.planner import Database


@cache
def _costs(device: str, quick: bool, threads: int) -> Database:
    return gs.tuning.tune(device, quick=quick)


def costs(settings: Settings) -> Database:
    """The curves of this machine at torch's number of threads, measured once a process."""
    return _costs(settings.device, settings.quick, torch.get_num_threads())


def explain(settings: Settings) -> list[dict[str, Any]]:
    """One row: what `explain()` says of the example of docs/planner.md."""
    x = torch.randn(2048, 1024, generator=torch.Generator().manual_seed(0))
    x[torch.arange(2048) % 4 != 0] = 0.0
    w = torch.randn(1024, 512, generator=torch.Generator().manual_seed(1))
    x, w = x.to(settings.device), w.to(settings.device)
    choice = gs.planner.plan(x, w, sparse="a", axis="m", database=costs(settings))
    return [{"chosen": choice.kind, "text": choice.explain().splitlines()}]


def regret(settings: Settings) -> list[dict[str, Any]]:
    """One row per held-out mask, then one with the median and the worst."""
    shape = (256, 256, 64) if settings.quick else (2048, 2048, 256)
    found = gs.tuning.regret(shape, device=settings.device, database=costs(settings)).to_dict()
    cases = found.pop("rows")
    return [
        {"shape": list(shape), **{("mask" if k == "name" else k): v for k, v in case.items()}} for case in cases
    ] + [{"mask": "all", **found}]
