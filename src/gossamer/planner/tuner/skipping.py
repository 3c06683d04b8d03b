"""A layer's memory: does skipping zeros pay here, on the zeros this layer really sees and on this machine?

call      0      1      2      3      4      5      6 ... 55   56     57     58 ...
path      dense  skip   dense  skip   dense  skip   skip       dense  skip   skip
          '--- cold --' '------- trial 1 ---------'            '- trial 2 -'

Between trials (trial.py) only the density is watched, and what calls report is read a few steps at a time: Python that
runs once in a while, between layers that empty the caches, takes many times what it takes in a loop. How a pass is
decided is in learning.py.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, get_args
from weakref import WeakValueDictionary

import torch

from gossamer.planner.graph_input import graph_input
from gossamer.planner.tuner.learning import LOOK_EVERY, Layer, Learner, Pass, Shape
from gossamer.planner.tuner.trial import DENSE

_PASSES = get_args(Pass)
_READ_EVERY = 16  # steps
_LONG_REST = 1000

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
class _Nap:
    """Calls that run dense without asking: of which passes and shape; how many are left, the waking one included."""

    at: tuple[Hashable, ...]
    brief: Hashable
    shapes: list[tuple[Learner, Shape]]
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
    trials come after 50, 100, ... 1000 calls, or when the density has moved far; they lose about 1 % of the time at
    most. Under `torch.use_deterministic_algorithms` densities alone decide.

    Threads may share a site. A copy, or a site read back from a file, has a key of its own and knows nothing: it may
    live on another machine.

    Attributes:
        name: for people.
        key: int, for opaque operators that cannot carry an object; `gossamer.planner.site(key)` gives the site back.
        handle: the key as a tensor (`gossamer.planner.graph_input`).
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
        self.handle = graph_input(self.key)
        self.refused: tuple[str, ...] = ()
        self._lock = threading.Lock()
        self._asked = threading.local()
        self._layer = Layer()
        self._reports: deque[tuple[Learner, Shape, str, float, dict[str, float]]] = deque()
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
        at = (key, candidates, torch.get_num_threads())
        deterministic = torch._C._get_deterministic_algorithms()
        own = self._layer.passes.get(pass_)
        shape = None if own is None else own.last
        if shape is not None and not (shape.thinks or deterministic or densities) and shape.at == at:
            vars(self._asked)[pass_] = shape
            return shape.chosen
        if pass_ not in _PASSES:
            raise ValueError(f"pass_ must be one of {_PASSES}, got {pass_!r}")
        if DENSE not in candidates:
            raise ValueError(f"candidates must hold 'dense', got {candidates}")
        with self._lock:
            self._read()
            own = self._learner(pass_)
            candidates = tuple(candidates)
            shape = vars(self._asked)[pass_] = own.shape(candidates, (key, candidates, torch.get_num_threads()))
            if deterministic:
                return own.settle_by_density(shape, densities or {})
            if densities:
                self._layer.note(densities)
            if shape.trial is None:
                own.consider(shape)
            return shape.chosen if shape.trial is None else shape.trial.next()

    def observe(self, pass_: Pass, choice: str, seconds: float, densities: dict[str, float]) -> None:
        """Report a call: the path taken, its seconds (without those for counting zeros), densities as far as known."""
        shape: Shape | None = vars(self._asked).pop(pass_, None)
        if shape is None:  # nobody asked: the caller was told which path to take
            with self._lock:
                own = self._learner(pass_)
                shape = own.shape((choice,), (choice,))
                shape.chosen = choice
        self._reports.append((self._layer.passes[pass_], shape, choice, seconds, densities))
        full = len(self._reports) >= _READ_EVERY * len(self._layer.passes)
        if full or shape.thinks or (choice == DENSE and densities):
            with self._lock:
                self._read()

    def rests(self, passes: Sequence[Pass], key: Hashable, brief: Hashable = None) -> bool:
        """May this call run dense without asking or reporting?

        Where all of `passes` have settled on dense at the shape `key`, every call may but one in 16 (in 1000 where the
        work is too small for any gain), which asks and reports as ever. `brief` is what the layer will ask `dozes`.
        """
        for pass_ in passes:
            own = self._layer.passes.get(pass_)
            if own is None or own.last is None or (own.last.chosen != DENSE and own.last.at[0] == key):
                return False
        if torch.are_deterministic_algorithms_enabled():
            return False
        at = (passes, key, torch.get_num_threads())
        with self._lock:
            nap = self._nap
            if nap is None or nap.at != at:
                self._read()
                shapes = [(self._layer.passes[pass_], self._settled(pass_, key)) for pass_ in passes]
                settled = [(own, shape) for own, shape in shapes if shape is not None]
                if len(settled) < len(passes):
                    return False
                for own, shape in settled:  # what was just read may call for a trial
                    own.consider(shape)
                if any(shape.chosen != DENSE or shape.trial is not None for _, shape in settled):
                    return False
                left = LOOK_EVERY if any(own.large(shape) for own, shape in settled) else _LONG_REST
                if nap is not None:
                    left = min(left, nap.left)  # shapes that take turns share the time until the next look
                nap = self._nap = _Nap(at, brief, settled, left)
            nap.left -= 1
            if nap.left <= 0:
                self._read()
                self._nap = None
                return False
            nap.uncounted += 1
            return True

    @property
    def resting(self) -> bool:
        """Whether `dozes` is worth asking."""
        return self._nap is not None

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

    def samples(self, pass_: Pass) -> bool:
        """Should a caller that runs dense count the zeros of (a part of) this pass's operands in this call?"""
        layer = self._layer
        own = layer.passes.get(pass_)
        if own is not None:
            due = layer.calls - max(len(layer.passes), 1) * LOOK_EVERY
            for name in own.operands:
                if layer.looked.get(name, due) <= due:
                    return True
        return False

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
            self._read()
            return {name: own.stats() for name, own in self._layer.passes.items()}

    def _learner(self, pass_: Pass) -> Learner:
        own = self._layer.passes.get(pass_)
        if own is None:
            own = self._layer.passes[pass_] = Learner(pass_, self._layer)
        return own

    def _read(self) -> None:
        """Take in what calls reported, and what went by in a rest."""
        while self._reports:
            own, shape, choice, seconds, densities = self._reports.popleft()
            own.report(shape, choice, seconds, densities)
            shape.thinks = True
        if self._nap is not None:
            calls, self._nap.uncounted = self._nap.uncounted, 0
            for own, shape in self._nap.shapes:
                own.rested(shape, calls)

    def _settled(self, pass_: Pass, key: Hashable) -> Shape | None:
        """The latest shape of a pass, if it is that of `key` and has settled on dense."""
        own = self._layer.passes[pass_]
        shape = None if own.last is None else own.shapes.get((key, own.last.candidates, torch.get_num_threads()))
        settled = shape is not None and shape.decided and shape.trial is None and shape.chosen == DENSE
        return shape if settled else None
