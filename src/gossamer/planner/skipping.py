"""A layer's memory: does skipping zeros pay here, on the zeros this layer really sees and on this machine?

call      0      1      2      3      4      5      6 ... 55   56     57     58 ...
path      dense  skip   dense  skip   dense  skip   skip       dense  skip   skip
          '--- cold --' '------- trial 1 ---------'            '- trial 2 -'

Between trials (trial.py) only the density is watched: a trial's ratio of skip to dense holds whatever else the machine
does, and a skipping path costs `ratio * (OVERHEAD + density)` of the dense one, and CALL for each pass of the layer: a
layer that is dense in all passes may rest.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from itertools import count
from statistics import median
from typing import Any, Literal, get_args
from weakref import WeakValueDictionary

import torch

from gossamer.planner.trial import DENSE, Trial

Pass = Literal["forward", "input", "weight"]

OVERHEAD = 0.15
"""What a skipping kernel costs beyond its multiplications, as a share of all of them: reading, masks, stores."""
CALL = 1e-4
"""Seconds of Python around each pass of a layer that does not rest, between other layers that empty the caches."""
DECAY = 0.9
"""Of the moving average of densities."""
GAIN = 0.05
"""A path is left for another only if that is cheaper by more than this fraction."""
DENSE_FROM = 0.95
"""An operand of this density or more has nothing to skip: skipping it is not even tried."""
BREAK_EVEN = {"forward": 0.65, "input": 0.65, "weight": 0.75}
"""Densities below which zeros are skipped where times may not decide: torch.use_deterministic_algorithms."""
EXPLORATION = 0.01
"""The share of all time that trials after a shape's first may lose on paths that turn out slower."""

_FIRST_GAP, _LAST_GAP = 50, 1000  # calls between trials; doubled as long as they confirm the choice
_SETTLED = 16  # calls before a drift of the density may start a trial
_LOOK_EVERY = 32
_FREE_SHAPES = 4  # of a pass: further ones get their first trial within EXPLORATION
_MOST_SHAPES = 32
_OPERAND = {"forward": "x", "input": "dy"}

_keys = count(1)
_sites: WeakValueDictionary[int, Site] = WeakValueDictionary()


def site(key: int) -> Site:
    """The living `Site` of this key.

    Raises:
        ValueError: there is none: the key is 0, or its module is gone.

    >>> own = Site("features.3")
    >>> site(own.key) is own
    True
    """
    found = _sites.get(key)
    if found is None:
        raise ValueError(f"key must be that of a living Site, got {key}: its module is gone, or it never was one")
    return found


@dataclass
class _Shape:
    """What is known of one shape of one pass."""

    candidates: tuple[str, ...]
    chosen: str = DENSE
    dense: float = 0.0
    ratios: dict[str, float] = field(default_factory=dict)
    trial: Trial | None = None
    decided: bool = False
    age: int = 0
    gap: int = _FIRST_GAP
    loss: float = 0.0
    recent: dict[str, deque[float]] = field(default_factory=dict)


@dataclass
class _Pass:
    name: str
    shapes: dict[Hashable, _Shape] = field(default_factory=dict)
    last: _Shape | None = None
    decided: _Shape | None = None
    calls: dict[str, int] = field(default_factory=dict)
    switches: int = 0
    saved: float = 0.0


@dataclass
class _Nap:
    """Calls that run dense without asking: of which passes and shape; how many are left, the waking one included."""

    at: tuple[Hashable, ...]
    brief: Hashable
    shapes: list[tuple[_Pass, _Shape]]
    left: int
    uncounted: int = 0


class Site:
    """Chooses, per pass of one layer, between the dense path and those that skip the zeros of an operand.

    Ask before the work and report after it, in the same thread:

        path = site.choose("forward", ("dense", "skip"), (x.shape, weight.shape))
        ...
        site.observe("forward", path, seconds, {"x": nonzeros / elements})

    "skip" skips zeros of `x` in the pass "forward" and of `dy` in "input"; "skip_x" and "skip_dy" name theirs. The
    first calls of a shape try every path in turn, three to five times; a path that is clearly slower goes first. Later
    trials come after 50, 100, ... 1000 calls, or when the density has moved so far that another path should be
    cheaper; they lose about 1 % of the time at most. Under `torch.use_deterministic_algorithms` densities alone decide.

    Threads may share a site. A copy, or a site read back from a file, has a key of its own and knows nothing: it may
    live on another machine.

    Attributes:
        name: for people.
        key: int, for opaque operators that cannot carry an object; `gossamer.planner.site(key)` gives the site back.
        refused: why calls ran torch's own operator, each reason once.

    >>> own = Site()
    >>> for _ in range(20):
    ...     path = own.choose("forward", ("dense", "skip"), "a shape")
    ...     own.observe("forward", path, 1.0 if path == "dense" else 0.6, {"x": 0.5})
    >>> own.stats()["forward"]["path"], round(own.stats()["forward"]["density"]["x"], 2)
    ('skip', 0.5)
    """

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.key = next(_keys)
        self.refused: tuple[str, ...] = ()
        self._lock = threading.Lock()
        self._asked = threading.local()
        self._passes: dict[str, _Pass] = {}
        self._densities: dict[str, float] = {}
        self._looked: dict[str, int] = {}
        self._calls = 0
        self._seconds = 0.0
        self._lost = 0.0
        self._nap: _Nap | None = None
        _sites[self.key] = self

    def __repr__(self) -> str:
        return f"Site({self.name!r})"

    def __reduce__(self) -> tuple[type[Site], tuple[str]]:
        return (Site, (self.name,))

    def choose(
        self,
        pass_: Pass,
        candidates: Sequence[str],
        key: Hashable,
        densities: dict[str, float] | None = None,
    ) -> str:
        """The path to take now.

        Args:
            pass_: "forward", "input" (gradient by input) or "weight" (gradient by weight).
            candidates: paths that can do the work; "dense" must be one of them.
            key: shapes, strides and whatever else decides the cost. A new key starts afresh, an old one goes on with
                what it learnt. The number of threads is part of it unsaid.
            densities: of operands, where known beforehand. In deterministic mode the choice then depends on them
                alone, and not on earlier calls.

        Raises:
            ValueError: an unknown pass, or candidates without "dense".
        """
        if pass_ not in get_args(Pass):
            raise ValueError(f"pass_ must be one of {get_args(Pass)}, got {pass_!r}")
        candidates = tuple(candidates)
        if DENSE not in candidates:
            raise ValueError(f"candidates must hold 'dense', got {candidates}")
        with self._lock:
            own = self._passes.setdefault(pass_, _Pass(pass_))
            shape = own.last = self._shape(own, candidates, (key, candidates, torch.get_num_threads()))
            setattr(self._asked, pass_, shape)
            self._calls += 1
            shape.age += 1
            if torch.are_deterministic_algorithms_enabled():
                self._settle(own, shape, self._below_break_even(own, shape, densities or {}))
                return shape.chosen
            if densities:
                self._note(densities)
            if shape.trial is None:
                self._consider(own, shape)
            if shape.trial is None:
                return shape.chosen
            return shape.trial.next()

    def observe(self, pass_: Pass, choice: str, seconds: float, densities: dict[str, float]) -> None:
        """Report a call: the path taken, its seconds (without those for counting zeros), densities as far as known."""
        with self._lock:
            own = self._passes.setdefault(pass_, _Pass(pass_))
            shape: _Shape | None = self._asked.__dict__.pop(pass_, None)
            if shape is None:  # nobody asked: the caller was told which path to take
                shape = own.last = self._shape(own, (choice,), (choice,))
                shape.chosen = choice
            self._note(densities)
            own.calls[choice] = own.calls.get(choice, 0) + 1
            cold = choice not in shape.recent
            shape.recent.setdefault(choice, deque(maxlen=_LOOK_EVERY)).append(seconds)
            self._seconds += seconds + CALL
            if choice in shape.ratios:
                own.saved += shape.dense * (1.0 - shape.ratios[choice] * self._load(own, choice, densities)) - CALL
            trial = shape.trial
            if trial is not None and choice in trial.alive:
                trial.report(choice, seconds, self._load(own, choice, densities), cold)
                if not trial.free and choice != shape.chosen:
                    usual = min(shape.recent.get(shape.chosen, (0.0,)))
                    self._lost += max(min(shape.recent[choice]) - usual, 0.0)
                if trial.over(
                    shape.chosen, lambda path: self._load(own, path), lambda path: self._may_pay(own, shape, path)
                ):
                    self._conclude(own, shape, trial)

    def rests(self, passes: Sequence[Pass], key: Hashable, brief: Hashable = None) -> bool:
        """May this call run dense without asking or reporting?

        Where all of `passes` have settled on dense at the shape `key`, every call may but one in 32 (in 1000 where the
        work is too small for any gain), which asks and reports as ever. `brief` is what the layer will ask `dozes`.
        """
        if torch.are_deterministic_algorithms_enabled():
            return False
        at = (passes, key, torch.get_num_threads())
        with self._lock:
            nap = self._nap
            if nap is None or nap.at != at:
                self._count_nap()
                settled = [self._settled(pass_, key) for pass_ in passes]
                if None in settled:
                    return False
                shapes = [(self._passes[pass_], shape) for pass_, shape in zip(passes, settled, strict=True) if shape]
                left = _LOOK_EVERY if any(self._large(shape) for _, shape in shapes) else _LAST_GAP
                if nap is not None:
                    left = min(left, nap.left)  # shapes that take turns share the time until the next look
                nap = self._nap = _Nap(at, brief, shapes, left)
            nap.left -= 1
            if nap.left <= 0:
                self._count_nap()
                self._nap = None
                return False
            nap.uncounted += 1
            return True

    def dozes(self, brief: Hashable) -> bool:
        """Whether `rests` would say yes, most likely: for callers to whom its own microseconds matter.

        True only in the course of a rest, and for calls that look like those that it began with.
        """
        nap = self._nap
        if nap is None or nap.left <= 1 or nap.brief != brief or torch._C._get_deterministic_algorithms():
            return False
        nap.left -= 1
        nap.uncounted += 1
        return True

    def _count_nap(self) -> None:
        """Count the calls of a rest as if they had asked and reported."""
        if self._nap is None:
            return
        calls, self._nap.uncounted = self._nap.uncounted, 0
        for own, shape in self._nap.shapes:
            own.calls[DENSE] = own.calls.get(DENSE, 0) + calls
            shape.age += calls
            self._calls += calls
            self._seconds += calls * shape.dense

    def _settled(self, pass_: Pass, key: Hashable) -> _Shape | None:
        """The latest shape of a pass, if it is that of `key` and has settled on dense."""
        own = self._passes.get(pass_)
        if own is None or own.last is None:
            return None
        shape = own.shapes.get((key, own.last.candidates, torch.get_num_threads()))
        settled = shape is not None and shape.decided and shape.trial is None and shape.chosen == DENSE
        return shape if settled else None

    def samples(self, pass_: Pass) -> bool:
        """Should a caller that runs dense count the zeros of (a part of) this pass's operands in this call?"""
        with self._lock:
            own = self._passes.get(pass_)
            candidates = () if own is None or own.last is None else own.last.candidates
            operands = {_operand(pass_, path) for path in candidates if path != DENSE}
            passes = max(len(self._passes), 1)
            return any(self._calls - self._looked.get(name, -(10**9)) >= passes * _LOOK_EVERY for name in operands)

    def refuse(self, reason: str) -> None:
        """Record why torch's own operator ran."""
        with self._lock:
            if reason not in self.refused:
                self.refused = (*self.refused, reason)

    def stats(self) -> dict[str, dict[str, Any]]:
        """For each pass that ran: what was seen and decided.

        Each is a dict: `path` taken now, `density` of each operand that could be skipped, `calls` and median `seconds`
        of each path at the latest shape, `switches` from one path to another, seconds `saved` against dense: what the
        trials measured, at the densities of the calls.
        """
        with self._lock:
            self._count_nap()
            out: dict[str, dict[str, Any]] = {}
            for name, own in self._passes.items():
                last = own.last
                paths = () if last is None else last.candidates
                operands = dict.fromkeys(_operand(name, path) for path in paths if path != DENSE)
                out[name] = {
                    "path": DENSE if last is None else last.chosen,
                    "density": {x: self._densities[x] for x in operands if x in self._densities},
                    "calls": dict(own.calls),
                    "seconds": {} if last is None else {path: median(times) for path, times in last.recent.items()},
                    "switches": own.switches,
                    "saved": own.saved,
                }
            return out

    def _shape(self, own: _Pass, candidates: tuple[str, ...], key: Hashable) -> _Shape:
        shape = own.shapes.get(key)
        if shape is None:
            if len(own.shapes) >= _MOST_SHAPES:
                del own.shapes[next(iter(own.shapes))]
            shape = _Shape(candidates)
            before = own.decided
            if before is not None and before.candidates == candidates:
                # Until its own trial: the same layer on other sizes mostly gains alike.
                shape.chosen, shape.ratios, shape.dense = before.chosen, dict(before.ratios), 0.0
                shape.loss = before.loss
        else:
            del own.shapes[key]  # to the end, where the latest are
        own.shapes[key] = shape
        return shape

    def _note(self, densities: dict[str, float]) -> None:
        """Into the moving averages, which forget by the step, not by the look: dense paths look but now and then."""
        for name, density in densities.items():
            steps = max(self._calls - self._looked.get(name, 0), 1) / max(len(self._passes), 1)
            kept = DECAY**steps
            self._densities[name] = kept * self._densities.get(name, density) + (1.0 - kept) * density
            self._looked[name] = self._calls

    def _load(self, own: _Pass, path: str, densities: dict[str, float] | None = None) -> float:
        """What a path's seconds are proportional to: 1 for dense, else the work that the density leaves."""
        if path == DENSE:
            return 1.0
        name = _operand(own.name, path)
        known = (densities or {}).get(name, self._densities.get(name, 1.0))
        return OVERHEAD + known

    def _overhead(self) -> float:
        """Seconds that a layer costs beyond its kernels because some pass skips and it cannot rest."""
        return CALL * len(self._passes)

    def _large(self, shape: _Shape) -> bool:
        """Whether skipping could pay at all: more than the overhead, if it took no time itself."""
        return min(shape.recent.get(DENSE, ()), default=1.0) > self._overhead()

    def _may_pay(self, own: _Pass, shape: _Shape, path: str) -> bool:
        """Whether a path could win at some density not far from the present one."""
        if path == DENSE:
            return True
        return self._large(shape) and self._densities.get(_operand(own.name, path), 0.0) < DENSE_FROM

    def _below_break_even(self, own: _Pass, shape: _Shape, known: dict[str, float]) -> str:
        best, least = DENSE, BREAK_EVEN[own.name]
        for path in shape.candidates:
            if path != DENSE:
                name = _operand(own.name, path)
                density = known.get(name, self._densities.get(name, 1.0))
                if density < least:
                    best, least = path, density
        return best

    def _cheapest(self, own: _Pass, shape: _Shape) -> str:
        """The path to prefer at the present densities: another one only for a clear gain."""
        extra = self._overhead() / shape.dense if shape.dense else 0.0
        cost = {
            path: 1.0 if path == DENSE else shape.ratios.get(path, 1.0) * self._load(own, path) + extra
            for path in shape.candidates
            if self._may_pay(own, shape, path)
        }
        best = min(cost, key=lambda path: cost[path])
        now = cost.get(shape.chosen)
        return best if now is None or cost[best] < (1.0 - GAIN) * now else shape.chosen

    def _consider(self, own: _Pass, shape: _Shape) -> None:
        """Start a trial if it is time for one."""
        if not self._may_pay(own, shape, shape.chosen):
            self._settle(own, shape, self._cheapest(own, shape))
        first = not shape.decided
        free = first and len(own.shapes) <= _FREE_SHAPES
        # When the density has moved, the other path is expected to win; else it is expected to lose as it did before.
        moved = not first and shape.age >= _SETTLED and self._cheapest(own, shape) != shape.chosen
        loss = 0.0 if moved else shape.loss
        due = first or moved or shape.age >= shape.gap
        affordable = free or self._lost + loss <= EXPLORATION * self._seconds
        if moved and not affordable and all(path in shape.ratios for path in shape.candidates if path != DENSE):
            self._settle(own, shape, self._cheapest(own, shape))  # what trials measured must do
        if due and affordable:
            shape.trial = self._trial(own, shape, expected=moved, free=free)

    def _trial(self, own: _Pass, shape: _Shape, expected: bool, free: bool = False) -> Trial:
        alive = [path for path in shape.candidates if self._may_pay(own, shape, path)]
        return Trial(alive, set(alive) - set(shape.recent), expected=expected, free=free)

    def _conclude(self, own: _Pass, shape: _Shape, trial: Trial) -> None:
        best = trial.best()
        if DENSE in best:
            shape.dense = best.pop(DENSE)
            shape.ratios.update({path: seconds / shape.dense for path, seconds in best.items()})
        first, before, path = not shape.decided, shape.chosen, self._cheapest(own, shape)
        shape.loss = trial.loss(path)
        if not (first or trial.expected or path == before):
            shape.trial = self._trial(own, shape, expected=True)  # out of the blue: it takes a second to believe it
            return
        self._settle(own, shape, path, counts=not first)
        shape.gap = _FIRST_GAP if first or path != before else min(2 * shape.gap, _LAST_GAP)
        shape.trial, shape.decided, shape.age = None, True, 0
        own.decided = shape

    def _settle(self, own: _Pass, shape: _Shape, path: str, counts: bool = True) -> None:
        if path != shape.chosen:
            own.switches += counts
            shape.chosen = path


def _operand(pass_: str, path: str) -> str:
    """The operand whose zeros a path skips."""
    return path.removeprefix("skip_") if path.startswith("skip_") else _OPERAND.get(pass_, "x")
