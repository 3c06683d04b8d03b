"""Compare functions by running them in turn, so that a slow minute of the machine falls on all of them.

One round runs every candidate once, in an order that rotates from round to round; the baseline runs twice a round.
The second run is the *A/A control*: the same code under another name. Its ratio says how far from 1 this machine
puts two identical things, so a difference inside the control's spread is not a difference.

    round 0:   dense  compact  dense(control)
    round 1:   compact  dense(control)  dense
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from gossamer.measure import clock

GAIN = 0.05
"""How far apart two equal things may seem where no A/A control was run."""


def is_faster(ratio: float, control: float = 1.0 + GAIN, *, low: float = math.inf) -> bool:
    """The one rule: is something faster whose `ratio` is that of the present time to its own?

    The ratio must lie above 1 and above what two equal things differ by, and its lower quartile, where there is one,
    above 1.

    >>> is_faster(1.2), is_faster(1.02), is_faster(1.2, 1.3), is_faster(1.2, low=0.9)
    (True, False, False, False)
    """
    return low > 1.0 and ratio > max(1.0, control)


def _quartiles(values: list[float]) -> list[float]:
    """The median and the two quartiles, interpolated."""
    found: list[float] = np.quantile(values, (0.5, 0.25, 0.75)).tolist()
    return found


@dataclass(frozen=True)
class Row:
    """One candidate. Times are seconds per call; `ratio` is baseline time / this time, so above 1 is faster."""

    name: str
    median: float
    q1: float
    q3: float
    min: float
    first: float
    ratio: float
    ratio_q1: float
    ratio_q3: float
    reps: int

    @classmethod
    def of(cls, name: str, first: float, times: list[float], baseline: list[float]) -> Row:
        ratios = [b / t for b, t in zip(baseline, times, strict=True)]
        median, q1, q3 = _quartiles(times)
        ratio, ratio_q1, ratio_q3 = _quartiles(ratios)
        return cls(name, median, q1, q3, min(times), first, ratio, ratio_q1, ratio_q3, len(times))


@dataclass(frozen=True)
class Comparison:
    """All rows of one interleaved run, the baseline's name, and the A/A control."""

    baseline: str
    rows: tuple[Row, ...]
    control: Row

    def __getitem__(self, name: str) -> Row:
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"no row {name!r}; rows are {[row.name for row in self.rows]}")

    def faster(self, name: str) -> bool:
        """True when `name` beats the baseline by more than this machine tells two equal things apart.

        The candidate's lower quartile must lie above 1 and its median above the control's upper quartile.
        """
        row = self[name]
        return is_faster(row.ratio, self.control.ratio_q3, low=row.ratio_q1)

    def slower(self, name: str) -> bool:
        """True when `name` is clearly slower: its upper quartile lies below 1 and below the control's lower quartile.

        Neither `faster` nor `slower` means that this run cannot tell.
        """
        row = self[name]
        return row.ratio_q3 < min(1.0, self.control.ratio_q1)

    def verdict(self, name: str) -> str:
        """ "faster", "slower", or "inconclusive" where this run cannot tell."""
        return "faster" if self.faster(name) else "slower" if self.slower(name) else "inconclusive"

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, ready for `json.dump`."""
        rows = [{**asdict(row), "verdict": self.verdict(row.name)} for row in self.rows]
        return {"baseline": self.baseline, "rows": rows, "control": asdict(self.control)}

    def __str__(self) -> str:
        width = max(len(row.name) for row in (*self.rows, self.control))
        lines = [f"{'':{width}}  {'median':>10}  {'quartiles':>21}  {'ratio':>6}  {'quartiles':>13}"]
        for row in (*self.rows, self.control):
            spread = f"{row.q1 * 1e3:.3f} .. {row.q3 * 1e3:.3f}"
            ratios = f"{row.ratio_q1:.2f} .. {row.ratio_q3:.2f}"
            lines.append(
                f"{row.name:{width}}  {row.median * 1e3:>7.3f} ms  {spread:>21}  {row.ratio:>5.2f}x  {ratios:>13}"
            )
        return "\n".join(lines)


def _synchronise() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _time(call: Callable[[], Any], inner: int) -> float:
    _synchronise()
    start = clock.now()
    for _ in range(inner):
        call()
    _synchronise()
    return (clock.now() - start) / inner


def turns(names: list[str], round_: int) -> list[str]:
    """The order of one round: it rotates from round to round.

    Every other round goes backwards: nobody always follows the same one, whose operands may still be in the caches.
    """
    turn = round_ % len(names)
    order = names[turn:] + names[:turn]
    return order[::-1] if round_ % 2 else order


def interleave(
    candidates: Mapping[str, Callable[[], Any]],
    *,
    baseline: str | None = None,
    reps: int = 15,
    warmup: int = 2,
    sample: float = 0.01,
    seconds: float | None = None,
) -> Comparison:
    """Time every candidate against `baseline`, interleaved in one process, with an A/A control.

    Args:
        candidates: name -> function of no arguments. Two at least, or one (then only the control is compared).
        baseline: the name all ratios refer to; the first candidate when None.
        reps: rounds; each gives one sample per candidate.
        warmup: calls per candidate before the first round. The very first call's time is kept apart in `Row.first`.
        sample: the least length of one sample in seconds; short calls are repeated to fill it.
        seconds: stop after this much wall time even if `reps` is not reached, but never before 5 rounds.

    Returns:
        A `Comparison`; ratios are taken round by round and their median and quartiles reported.

    Raises:
        ValueError: no candidates, an unknown baseline, or a `reps`, `warmup` or `sample` out of range.

    >>> import gossamer as gs
    >>> a, b = torch.randn(64, 64), torch.randn(64, 64)
    >>> run = gs.measure.interleave({"mm": lambda: a @ b, "twice": lambda: (a @ b, a @ b)}, reps=5)
    >>> [row.name for row in run.rows], run.control.name
    (['mm', 'twice'], 'mm (control)')
    """
    if not candidates:
        raise ValueError("candidates is empty; expected at least one name -> function")
    if baseline is None:
        baseline = next(iter(candidates))
    if baseline not in candidates:
        raise ValueError(f"baseline is {baseline!r}; expected one of {list(candidates)}")
    if reps < 1 or warmup < 1:
        raise ValueError(f"reps is {reps} and warmup is {warmup}; expected both to be at least 1")
    if not sample > 0:
        raise ValueError(f"sample is {sample}; expected a positive number of seconds")

    control = f"{baseline} (control)"
    calls = {**candidates, control: candidates[baseline]}
    first, inner = {}, {}
    for name, call in calls.items():
        first[name] = _time(call, 1)
        warm = min(_time(call, 1) for _ in range(warmup))
        inner[name] = max(1, math.ceil(sample / max(warm, 1e-9)))
    # The control must be the same experiment as the baseline, not a differently averaged one.
    inner[control] = inner[baseline]

    times: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    begin = clock.now()
    for rep in range(reps):
        for name in turns(names, rep):
            times[name].append(_time(calls[name], inner[name]))
        if seconds is not None and rep >= 4 and clock.now() - begin > seconds:
            break
    rows = tuple(Row.of(name, first[name], times[name], times[baseline]) for name in candidates)
    return Comparison(baseline, rows, Row.of(control, first[control], times[control], times[baseline]))
