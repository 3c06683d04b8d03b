"""The planner's costs, tuned anew in this process: a result does not depend on what a machine keeps from earlier."""

from __future__ import annotations

from functools import cache

import torch

import gossamer as gs
from gossamer.bench.section import Settings
from gossamer.planner import Database


@cache
def _costs(device: str, quick: bool, threads: int) -> Database:
    return gs.tuning.tune(device, quick=quick)


def costs(settings: Settings) -> Database:
    """The curves of this machine at torch's number of threads, measured once a process."""
    return _costs(settings.device, settings.quick, torch.get_num_threads())
