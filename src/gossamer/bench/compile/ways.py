"""The ways to run one model: eager, inductor, inductor with freezing, and ours; compiled, settled, then timed in turn.

Every way runs the very same module. The first call of each, which compiles, is timed apart; the tuners of ours settle
on calls before the clock starts. Ratios are over the fastest of the dense ways.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

import gossamer as gs
from gossamer.bench.cells import CONTROL, Cell, Column, Row, Rows, entry, table
from gossamer.bench.section import Settings
from gossamer.measure import clock

EAGER, INDUCTOR, FREEZING, OURS, KEPT = "eager", "inductor", "inductor, freezing", "gossamer", "gossamer, keep_packed"
LEARN = 24
"""Calls in which a tuner settles."""

Call = Callable[[], Any]


def compiled(
    model: nn.Module, *, names: Iterable[str] = (EAGER, INDUCTOR, FREEZING, OURS),
    options: Mapping[str, Any] | None = None,
) -> dict[str, Callable[..., Any]]:  # fmt: skip
    """The model in each of these ways, ours with `options`; nothing is compiled before the first call."""
    torch._dynamo.reset()
    given = dict(options or {})
    made: dict[str, Callable[[], Callable[..., Any]]] = {
        EAGER: lambda: model,
        INDUCTOR: lambda: torch.compile(model),
        FREEZING: lambda: torch.compile(model, options={"freezing": True}),
        OURS: lambda: torch.compile(model, backend="gossamer", options=given),
        KEPT: lambda: torch.compile(model, backend="gossamer", options={**given, "keep_packed": True}),
    }
    return {name: made[name]() for name in names}


def measured(
    calls: Mapping[str, Call], settings: Settings, *, rivals: Collection[str] = (), seconds: float = 20.0,
    learn: int = LEARN,
) -> Row:  # fmt: skip
    """Time all ways in turn over the fastest dense one; `rivals` are others that leave something out, no baseline.

    Returns:
        the rows of `gossamer.measure.interleave`, the baseline's being the fastest of `dense`; and
        {"compile": {way: seconds of its first call}, "apart": {way: the largest difference from eager over the largest
        number of eager's}}.
    """
    first: dict[str, float] = {}
    results: dict[str, Any] = {}
    for name, call in calls.items():
        begin = clock.now()
        results[name] = call()
        first[name] = clock.now() - begin
    for _ in range(1 if settings.quick else learn):
        for name in (OURS, KEPT):
            if name in calls:
                results[name] = calls[name]()
    dense = [name for name in calls if not name.startswith(OURS) and name not in rivals]
    trial = gs.measure.interleave({name: calls[name] for name in dense}, reps=1 if settings.quick else 5, seconds=3)
    best = min(trial.rows, key=lambda row: row.median).name
    run = gs.measure.interleave(calls, baseline=best, reps=settings.reps, seconds=seconds)
    eager = _tensors(results[dense[0]])
    apart = {name: _apart(_tensors(found), eager) for name, found in results.items()}
    return {**run.to_dict(), "compile": first, "apart": apart}


def _tensors(value: Any) -> list[Tensor]:
    """All float tensors of what a model returned."""
    if isinstance(value, Tensor):
        return [value.detach().double()] if value.is_floating_point() else []
    values = value.values() if isinstance(value, Mapping) else value if isinstance(value, (tuple, list)) else ()
    return [tensor for each in values for tensor in _tensors(each)]


def _apart(found: list[Tensor], expected: list[Tensor]) -> float:
    pairs = list(zip(found, expected, strict=True))
    return (
        max(float((one - two).abs().max() / two.abs().max().clamp(min=1e-30)) for one, two in pairs) if pairs else 0.0
    )


def gain(row: Row, name: str = OURS) -> float | None:
    """How many times faster than the fastest dense way; None where it was not run."""
    found = entry(row, name)
    return None if found is None else float(found["ratio"])


def geometric_mean(gains: Iterable[float]) -> float:
    """
    >>> geometric_mean([1.0, 4.0])
    2.0
    """
    logs = [math.log(each) for each in gains]
    return math.exp(sum(logs) / len(logs))


def summary(rows: Rows, names: Iterable[str] = (OURS,)) -> str:
    """Below a table: the geometric mean of each way, its best and its losing rows."""
    said = []
    for name in names:
        found = [each for row in rows if (each := gain(row, name)) is not None]
        slower = sum(entry(row, name)["verdict"] == "slower" for row in rows if entry(row, name))  # type: ignore[index]
        if found:
            said.append(
                f"`{name}`: geometric mean {geometric_mean(found):.2f}x over {len(found)} rows, "
                f"best {max(found):.2f}x, slower than the fastest dense way in {slower}."
            )
    return "\n" + " ".join(said) + "\n" if said else ""


def with_summary(columns: Iterable[Column], names: Iterable[str] = (OURS,)) -> Callable[[Rows], str]:
    """A table of these columns, and its summary."""
    columns, names = [*columns, CONTROL], tuple(names)
    return lambda rows: table(rows, columns) + summary(rows, names)


def compile_time(name: str = OURS) -> Cell:
    """Seconds of the first call, over inductor's."""
    return lambda row: f"{row['compile'][name]:.1f} s ({row['compile'][name] / row['compile'][INDUCTOR]:.2f}x)"


def best_dense(row: Row) -> str:
    """Which dense way was the fastest, and its time."""
    found = entry(row, row["baseline"])
    assert found is not None
    return f"{row['baseline']} {found['median'] * 1e3:.2f} ms"
