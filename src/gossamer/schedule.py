"""How a number changes while training runs: from `start` at progress 0 to `end` at progress 1.

constant  start                                            (end is ignored)
linear    start + (end - start) * p
cosine    end + (start - end) * (1 + cos(pi * p)) / 2      RigL, eq. of section 3 (Evci et al., 2020)
cubic     end + (start - end) * (1 - p)**3                 Zhu & Gupta, 2017, eq. 1

May import nothing of gossamer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

ANNEALING: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: (1.0 + math.cos(math.pi * progress)) / 2.0,
    "cubic": lambda progress: (1.0 - progress) ** 3,
}


@dataclass(frozen=True)
class Schedule:
    """A number that moves from `start` to `end` as progress goes from 0 to 1 (clamped outside).

    Args:
        kind: "constant", "linear", "cosine" or "cubic" (see the equations at the top of this file).
        start: value at progress 0.
        end: value at progress 1.

    Raises:
        ValueError: unknown `kind`, or a value that is not finite.

    Example:
        >>> Schedule("cosine", 0.3, 0.0)(0.5)
        0.15
        >>> Schedule("cubic", 1.0, 0.1)(1.0)
        0.1
    """

    kind: str
    start: float
    end: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in ANNEALING:
            raise ValueError(f"schedule must be one of {sorted(ANNEALING)}, got {self.kind!r}")
        if not (math.isfinite(self.start) and math.isfinite(self.end)):
            raise ValueError(f"schedule bounds must be finite, got start={self.start}, end={self.end}")

    def __call__(self, progress: float) -> float:
        progress = min(max(progress, 0.0), 1.0)
        if progress == 1.0 and self.kind != "constant":
            return self.end  # exactly, whatever cos(pi) rounds to: final budgets are compared with ==
        return self.end + (self.start - self.end) * ANNEALING[self.kind](progress)
