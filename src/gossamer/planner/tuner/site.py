"""A layer's tuner: for each of its passes, dense or skipping the zeros of an operand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from gossamer.handles import owner_of
from gossamer.planner.tuner.trial import DENSE
from gossamer.planner.tuner.tuner import Tuner

Pass = Literal["forward", "input", "weight"]

PASSES: dict[str, dict[str, str]] = {
    "forward": {"skip": "x"},
    "input": {"skip": "dy"},
    "weight": {"skip_x": "x", "skip_dy": "dy"},
}
"""Pass -> what it may skip -> the operand whose zeros those are. "input" and "weight" are the gradients by these."""
BREAK_EVEN = {"forward": 0.65, "input": 0.65, "weight": 0.75}
"""Densities below which zeros are skipped where times may not decide: torch.use_deterministic_algorithms."""


def break_even(question: str, alternative: str, densities: Mapping[str, float]) -> float:
    """The cost over dense's, without a measurement: 1 at the density at which kernels usually break even."""
    return 1.0 if alternative == DENSE else densities[PASSES[question][alternative]] / BREAK_EVEN[question]


class Site(Tuner):
    """The `Tuner` of one layer. Its questions are "forward", "input" and "weight" (the gradients by these).

    "skip" skips zeros of `x` in the pass "forward" and of `dy` in "input"; "skip_x" and "skip_dy" name theirs.

    Attributes:
        name: for people.
        key, handle: as of `Tuner`; `gossamer.planner.site(key)` gives the site back.
        refused: why calls ran torch's own operator, each reason once.
        torchs_own: whether the dense product that calls may take unasked is torch's own operator.

    >>> own = Site()
    >>> for _ in range(20):
    ...     path = own.choose("forward", ("dense", "skip"), "a shape")
    ...     own.observe("forward", path, 1.0 if path == "dense" else 0.6, {"x": 0.5})
    >>> own.stats()["forward"]["path"], round(own.stats()["forward"]["density"]["x"], 2)
    ('skip', 0.5)
    """

    def __init__(self, name: str = "") -> None:
        super().__init__(PASSES, break_even, name=name)
        self.refused: tuple[str, ...] = ()
        self.torchs_own = False

    def __reduce__(self) -> tuple[Any, ...]:
        return Site, (self.name,)

    def explain(self) -> str:
        """As of `Tuner`, and why torch's own operator ran instead."""
        return super().explain() + "".join(f"\ntorch's own operator: {reason}" for reason in self.refused)

    def refuse(self, reason: str) -> None:
        """Record why torch's own operator ran."""
        with self._lock:
            if reason not in self.refused:
                self.refused = (*self.refused, reason)


def site(key: int) -> Site:
    """The living `Site` of this key.

    Raises:
        ValueError: there is none: the key is 0, or its module is gone.

    >>> own = Site("features.3")
    >>> site(own.key) is own
    True
    """
    return owner_of(key, Site, "key")
