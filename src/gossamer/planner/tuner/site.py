"""A layer's tuner: for each of its passes, dense or skipping the zeros of an operand."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal

import torch

from gossamer.handles import owner_of
from gossamer.planner.tuner.question import CALL, Question, Situation
from gossamer.planner.tuner.trial import DENSE
from gossamer.planner.tuner.tuner import Bypass, Tuner

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
        name: for people. call: see `Tuner`.
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

    def __init__(self, name: str = "", call: float = CALL) -> None:
        super().__init__(PASSES, break_even, trusted=False, name=name, call=call)
        self.refused: tuple[str, ...] = ()
        self.torchs_own = False

    def __reduce__(self) -> tuple[Any, ...]:
        return Site, (self.name, self.call)

    def explain(self) -> str:
        """As of `Tuner`, and why torch's own operator ran instead."""
        return super().explain() + "".join(f"\ntorch's own operator: {reason}" for reason in self.refused)

    def refuse(self, reason: str) -> None:
        """Record why torch's own operator ran."""
        if reason in self.refused:
            return
        with self._lock:
            if reason not in self.refused:
                self.refused = (*self.refused, reason)

    def bypass(self, questions: Sequence[str], key: Hashable, brief: Hashable = None) -> bool:
        """May this call run dense without asking or reporting?

        Where all of `questions` have settled on dense at the shape `key`, every call may but one in 16 (in 1000 where
        the work is too small for any gain), which asks and reports as ever. `bypassed` will be asked about `brief`.
        """
        for question in questions:
            own = self._shared.questions.get(question)
            if own is None or own.last is None or (own.last.chosen != DENSE and own.last.at[0] == key):
                return False
        if torch.are_deterministic_algorithms_enabled():
            return False
        at = (questions, key, torch.get_num_threads())
        with self._lock:
            bypass = self._bypass
            if bypass is None or bypass.at != at:
                self._read()
                settled = self._settled_on_dense(questions, key)
                if settled is None:
                    return False
                left = min(own.rest(now) for own, now in settled)
                if bypass is not None:
                    left = min(left, bypass.left)  # shapes that take turns share the time until the next sample
                bypass = self._bypass = Bypass(at, brief, DENSE, settled, left)
            bypass.left -= 1
            if bypass.left <= 0:
                self._read()
                self._bypass = None
                return False
            bypass.uncounted += 1
            return True

    def _settled_on_dense(self, questions: Sequence[str], key: Hashable) -> list[tuple[Question, Situation]] | None:
        """The situations of these questions at `key`, if all have settled on dense and none is due for a trial."""
        out = []
        for question in questions:
            own = self._shared.questions[question]
            at = None if own.last is None else (key, own.last.candidates, torch.get_num_threads())
            now = own.situations.get(at)
            if now is None or not now.decided or now.trial is not None or now.chosen != DENSE:
                return None
            out.append((own, now))
        for own, now in out:  # what was just read may call for a trial
            own.consider(now)
        return out if all(now.chosen == DENSE and now.trial is None for _, now in out) else None


def site(key: int) -> Site:
    """The living `Site` of this key.

    Raises:
        ValueError: there is none: the key is 0, or its module is gone.

    >>> own = Site("features.3")
    >>> site(own.key) is own
    True
    """
    return owner_of(key, Site, "key")
