"""What one layer knows, pass by pass: which paths were tried, what they cost, and which one to take.

A trial's ratio of skip to dense holds whatever else the machine does, and a skipping path costs
`ratio * (OVERHEAD + density)` of the dense one. A layer of which any pass skips cannot rest, and costs CALL more for
each of its passes: the gains of all passes together must be worth that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal

from gossamer.planner.tuner.trial import DENSE, Trial

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
LOOK_EVERY = 16
"""Calls from one look at the density of a dense path's operands to the next."""
CHANGE = 0.2
"""A density that has moved by more than this since a shape was decided calls for another trial."""

_FIRST_GAP, _LAST_GAP = 50, 1000  # calls between trials; doubled as long as they confirm the choice
_SETTLED = 16  # calls before a drift of the density may start a trial
_FREE_SHAPES = 4  # of a pass: further ones get their first trial within EXPLORATION
_MOST_SHAPES = 32
_OPERAND = {"forward": "x", "input": "dy"}


def operand(pass_: str, path: str) -> str:
    """The operand whose zeros a path skips."""
    return path.removeprefix("skip_") if path.startswith("skip_") else _OPERAND.get(pass_, "x")


@dataclass
class Shape:
    """What is known of one shape of one pass."""

    at: tuple[Hashable, ...]
    candidates: tuple[str, ...]
    chosen: str = DENSE
    dense: float = 0.0
    ratios: dict[str, float] = field(default_factory=dict)
    trial: Trial | None = None
    decided: bool = False
    thinks: bool = True  # whether the next call should ask what to do, or take what is chosen
    age: int = 0
    gap: int = _FIRST_GAP
    loss: float = 0.0
    at_decision: dict[str, float] = field(default_factory=dict)  # densities
    recent: dict[str, deque[float]] = field(default_factory=dict)


class Layer:
    """What the passes of a layer share."""

    def __init__(self) -> None:
        self.passes: dict[str, Learner] = {}
        self.densities: dict[str, float] = {}
        self.looked: dict[str, int] = {}
        self.calls = 0
        self.seconds = 0.0
        self.lost = 0.0

    def note(self, densities: dict[str, float]) -> None:
        """Into the moving averages, which forget by the step, not by the look: dense paths look but now and then."""
        for name, density in densities.items():
            steps = max(self.calls - self.looked.get(name, 0), 1) / max(len(self.passes), 1)
            kept = DECAY**steps
            self.densities[name] = kept * self.densities.get(name, density) + (1.0 - kept) * density
            self.looked[name] = self.calls

    def overhead(self, besides: Learner) -> float:
        """Seconds of a layer that cannot rest, as far as the gains of the other passes do not outweigh them."""
        gains = sum(one.gain() for one in self.passes.values() if one is not besides)
        return max(CALL * len(self.passes) - gains, 0.0)


class Learner:
    """One pass of a layer."""

    def __init__(self, name: str, layer: Layer) -> None:
        self.name, self.layer = name, layer
        self.shapes: dict[Hashable, Shape] = {}
        self.last: Shape | None = None
        self.operands: tuple[str, ...] = ()  # that the candidates of the last shape could skip
        self.calls: dict[str, int] = {}
        self.switches = 0
        self.saved = 0.0
        self._decided: Shape | None = None

    def shape(self, candidates: tuple[str, ...], at: tuple[Hashable, ...]) -> Shape:
        """That of a call; the latest are kept."""
        shape = self.shapes.pop(at, None)
        if shape is None:
            if len(self.shapes) >= _MOST_SHAPES:
                del self.shapes[next(iter(self.shapes))]
            shape = Shape(at, candidates)
            before = self._decided
            if before is not None and before.candidates == candidates:
                # Until its own trial: the same layer on other sizes mostly gains alike.
                shape.chosen, shape.ratios, shape.loss = before.chosen, dict(before.ratios), before.loss
        self.shapes[at] = shape  # at the end, where the latest are
        if self.last is not shape:
            self.last = shape
            self.operands = tuple(dict.fromkeys(operand(self.name, path) for path in candidates if path != DENSE))
        return shape

    def consider(self, shape: Shape) -> None:
        """Start a trial if it is time for one."""
        if not self._may_pay(shape, shape.chosen):
            self._settle(shape, self._cheapest(shape))
        first = not shape.decided
        free = first and len(self.shapes) <= _FREE_SHAPES
        # When the density has moved, the other path is expected to win; else it is expected to lose as it did before.
        moved = not first and shape.age >= _SETTLED and (self._cheapest(shape) != shape.chosen or self._changed(shape))
        loss = 0.0 if moved else shape.loss
        due = first or moved or shape.age >= shape.gap
        affordable = free or self.layer.lost + loss <= EXPLORATION * self.layer.seconds
        if moved and not affordable:
            if all(path in shape.ratios for path in shape.candidates if path != DENSE):
                self._settle(shape, self._cheapest(shape))  # what trials measured must do
            else:
                affordable = True  # nothing is known of a path that had nothing to skip until now
        if due and affordable:
            shape.trial = self._trial(shape, expected=moved, free=free)
        shape.thinks = not shape.decided or shape.trial is not None

    def report(self, shape: Shape, choice: str, seconds: float, densities: dict[str, float]) -> None:
        layer, trial = self.layer, shape.trial
        shape.age += 1
        layer.calls += 1
        layer.note(densities)
        self.calls[choice] = self.calls.get(choice, 0) + 1
        cold = choice not in shape.recent
        shape.recent.setdefault(choice, deque(maxlen=LOOK_EVERY)).append(seconds)
        layer.seconds += seconds + CALL
        if choice in shape.ratios:
            self.saved += shape.dense * (1.0 - shape.ratios[choice] * self._load(choice, densities)) - CALL
        if trial is None or choice not in trial.alive:
            return
        trial.report(choice, seconds, self._load(choice, densities), cold)
        if not trial.free and choice != shape.chosen:
            usual = min(shape.recent.get(shape.chosen, (0.0,)))
            layer.lost += max(min(shape.recent[choice]) - usual, 0.0)
        if trial.over(shape.chosen, self._load, lambda path: self._may_pay(shape, path)):
            self._conclude(shape, trial)

    def rested(self, shape: Shape, calls: int) -> None:
        """Count calls that ran dense without asking or reporting."""
        self.calls[DENSE] = self.calls.get(DENSE, 0) + calls
        shape.age += calls
        self.layer.calls += calls
        self.layer.seconds += calls * shape.dense

    def settle_by_density(self, shape: Shape, known: dict[str, float]) -> str:
        """Take what a fixed break-even says, and no notice of times."""
        best, least = DENSE, BREAK_EVEN[self.name]
        for path in shape.candidates:
            if path != DENSE:
                name = operand(self.name, path)
                density = known.get(name, self.layer.densities.get(name, 1.0))
                if density < least:
                    best, least = path, density
        self._settle(shape, best)
        return best

    def gain(self) -> float:
        """Seconds that the best skipping path of the latest shape gains over dense, at the present densities."""
        shape = self.last
        if shape is None:
            return 0.0
        return shape.dense * max((0.0, *(1.0 - ratio * self._load(path) for path, ratio in shape.ratios.items())))

    def large(self, shape: Shape) -> bool:
        """Whether skipping could pay at all: more than the overhead, if it took no time itself."""
        return min(shape.recent.get(DENSE, ()), default=1.0) > self.layer.overhead(self)

    def stats(self) -> dict[str, Any]:
        last, densities = self.last, self.layer.densities
        return {
            "path": DENSE if last is None else last.chosen,
            "density": {x: densities[x] for x in self.operands if x in densities},
            "calls": dict(self.calls),
            "seconds": {} if last is None else {path: median(times) for path, times in last.recent.items()},
            "switches": self.switches,
            "saved": self.saved,
        }

    def _load(self, path: str, densities: dict[str, float] | None = None) -> float:
        """What a path's seconds are proportional to: 1 for dense, else the work that the density leaves."""
        if path == DENSE:
            return 1.0
        name = operand(self.name, path)
        return OVERHEAD + (densities or {}).get(name, self.layer.densities.get(name, 1.0))

    def _may_pay(self, shape: Shape, path: str) -> bool:
        """Whether a path could win at some density not far from the present one."""
        if path == DENSE:
            return True
        return self.large(shape) and self.layer.densities.get(operand(self.name, path), 0.0) < DENSE_FROM

    def _changed(self, shape: Shape) -> bool:
        """Whether the density of an operand is another one than when the shape was decided."""
        now = self.layer.densities
        return any(
            abs(now[name] - before) > CHANGE and min(now[name], before) < DENSE_FROM
            for name, before in shape.at_decision.items()
        )

    def _cheapest(self, shape: Shape) -> str:
        """The path to prefer at the present densities: another one only for a clear gain."""
        extra = self.layer.overhead(self) / shape.dense if shape.dense else 0.0
        cost = {
            path: 1.0 if path == DENSE else shape.ratios.get(path, 1.0) * self._load(path) + extra
            for path in shape.candidates
            if self._may_pay(shape, path)
        }
        best = min(cost, key=lambda path: cost[path])
        now = cost.get(shape.chosen)
        return best if now is None or cost[best] < (1.0 - GAIN) * now else shape.chosen

    def _trial(self, shape: Shape, expected: bool, free: bool = False) -> Trial:
        alive = [path for path in shape.candidates if self._may_pay(shape, path)]
        return Trial(alive, set(alive) - set(shape.recent), expected=expected, free=free)

    def _conclude(self, shape: Shape, trial: Trial) -> None:
        best = trial.best()
        if DENSE in best:
            shape.dense = best.pop(DENSE)
            for path, seconds in best.items():
                ratio = seconds / shape.dense
                if trial.rounds < 2 and path in shape.ratios:  # one sample of each is too little to forget the rest
                    ratio = (ratio + shape.ratios[path]) / 2
                shape.ratios[path] = ratio
        first, before, path = not shape.decided, shape.chosen, self._cheapest(shape)
        shape.loss = trial.loss(path)
        if not (first or trial.expected or path == before):
            shape.trial = self._trial(shape, expected=True)  # out of the blue: it takes a second to believe it
            return
        self._settle(shape, path, counts=not first)
        shape.gap = _FIRST_GAP if first or path != before else min(2 * shape.gap, _LAST_GAP)
        shape.trial, shape.decided, shape.age = None, True, 0
        shape.at_decision = {x: self.layer.densities[x] for x in self.operands if x in self.layer.densities}
        self._decided = shape
        for one in self.layer.passes.values():  # what this pass gains may be what the others lacked
            if one is not self and one.last is not None and one.last.decided and one.last.trial is None:
                one._settle(one.last, one._cheapest(one.last))

    def _settle(self, shape: Shape, path: str, counts: bool = True) -> None:
        if path != shape.chosen:
            self.switches += counts
            shape.chosen = path
