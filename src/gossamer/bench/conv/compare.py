"""Ours against the best that torch has: which of its memory formats that is, is measured first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gossamer as gs
from gossamer.bench.section import Settings

Calls = dict[str, Callable[[], Any]]

CONTIGUOUS, CHANNELS_LAST = "torch contiguous", "torch channels_last"


def best_of(calls: Mapping[str, Callable[[], Any]], names: tuple[str, ...], settings: Settings) -> str:
    """The fastest of these by the median of a few rounds."""
    run = gs.measure.interleave({name: calls[name] for name in names}, reps=1 if settings.quick else 5, warmup=1)
    return min(run.rows, key=lambda row: row.median).name


def against(best: str, calls: Mapping[str, Callable[[], Any]], settings: Settings, seconds: float) -> dict[str, Any]:
    """Interleaved rounds of all calls; ratios are over `best`."""
    return gs.measure.interleave(calls, baseline=best, reps=settings.reps, warmup=2, seconds=seconds).to_dict()


def crossover(points: list[tuple[float, float]]) -> float | None:
    """The share of zeros from which on skipping wins, between neighbours on a line; None if it never does.

    points are (zeros, ratio), ascending. What matters is the last rise through 1.
    """
    if points[-1][1] < 1:
        return None
    above = points[-1][0]
    for (low, before), (high, after) in zip(reversed(points[:-1]), reversed(points[1:]), strict=True):
        if before < 1:
            return low + (high - low) * (1 - before) / (after - before)
        above = low
    return above
