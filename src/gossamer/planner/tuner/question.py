"""What is known about one question, such as which algorithm a pass of a layer takes, shape by shape.

    cost(alternative) = ratio * load        load: 1 for dense, OVERHEAD + density for one that skips

A trial's ratio to dense holds whatever else the machine does, and predicts the cost at densities that were not tried.
An object any of whose questions is answered by another alternative than dense cannot be bypassed, and costs CALL more
for each of them: the gains of all together must be worth that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from gossamer.measure import GAIN, is_faster
from gossamer.planner.costs.occupancy import Window
from gossamer.planner.tuner.trial import DENSE, Trial

Prior = Callable[[str, str, Mapping[str, float]], float]
"""prior(question, alternative, densities) -> its cost in any unit, known without a trial."""

OVERHEAD = 0.15
"""What a skipping kernel costs beyond its multiplications, as a share of all of them: reading, masks, stores."""
CALL = 1e-4
"""Seconds of Python around each answer that is not bypassed, between other layers that empty the caches."""
DECAY = 0.9
"""Of the moving average of densities, per call."""
DENSE_FROM = 0.95
"""An operand of this density or more has nothing to skip: skipping it is not even tried."""
EXPLORATION = 0.01
"""The share of all time that trials after a shape's first may lose on alternatives that turn out slower."""
SAMPLE_EVERY = 16
"""Calls from one sample of the densities that a dense call does not count to the next."""
CHANGE = 0.2
"""A density that is so far from what it was when a shape was decided, or from its mean, is another density."""

_FIRST_GAP, _LAST_GAP = 50, 1000  # calls between trials; doubled as long as they confirm the choice
_SETTLED = 16  # calls before a drift of the density may start a trial
_FREE_SHAPES = 4  # of a question: further ones get their first trial within EXPLORATION
_MOST_SHAPES = 32


@dataclass
class Situation:
    """What is known at one shape: `at` is the caller's key, its candidates and the number of threads."""

    at: tuple[Hashable, ...]
    candidates: tuple[str, ...]
    chosen: str = DENSE
    why: str = "no trial yet"
    dense: float = 0.0
    ratios: dict[str, float] = field(default_factory=dict)
    trial: Trial | None = None
    decided: bool = False
    asks: bool = True  # whether the next call asks what to do, or takes what is chosen
    age: int = 0
    gap: int = _FIRST_GAP
    loss: float = 0.0
    streak: int = 0
    at_decision: dict[str, float] = field(default_factory=dict)  # densities
    recent: dict[str, deque[float]] = field(default_factory=dict)


class Shared:
    """What the questions of one object share: the densities, and the account of what exploration costs."""

    def __init__(self, call: float | None = None) -> None:
        self.call = CALL if call is None else call
        self.questions: dict[str, Question] = {}
        self.densities: dict[str, float] = {}
        self.sampled: dict[str, int] = {}
        self.calls = 0
        self.seconds = 0.0
        self.lost = 0.0
        self._windows: dict[str, Window] = {}

    def note(self, densities: Mapping[str, float]) -> None:
        """Into moving averages, which forget by the call, not by the sample: dense calls sample but now and then."""
        for name, density in densities.items():
            steps = max(self.calls - self.sampled.get(name, 0), 1) / max(len(self.questions), 1)
            kept = DECAY**steps
            self.densities[name] = kept * self.densities.get(name, density) + (1.0 - kept) * density
            self.sampled[name] = self.calls

    def note_samples(self, densities: Mapping[str, float], window: int) -> None:
        """Into means of the last `window` samples; one that is far from the mean starts anew."""
        for name, density in densities.items():
            mean = self.densities.get(name)
            if mean is None or abs(density - mean) > CHANGE:
                self._windows[name] = Window(window)
            (self.densities[name],) = self._windows[name].add((density,))

    def overhead(self, besides: Question) -> float:
        """Seconds of an object that is not bypassed, as far as the gains of other questions do not outweigh them."""
        gains = sum(one.gain() for one in self.questions.values() if one is not besides)
        return max(self.call * len(self.questions) - gains, 0.0)


class Question:
    """One question of an object. `operands`: alternative -> the density that its work grows with, "" if none."""

    def __init__(self, name: str, shared: Shared, operands: Mapping[str, str], gain: float = GAIN) -> None:
        self.name, self.shared, self.operands, self.margin = name, shared, operands, gain
        self.situations: dict[Hashable, Situation] = {}
        self.last: Situation | None = None
        self.watched: tuple[str, ...] = ()  # densities that the candidates of the last situation depend on
        self.calls: dict[str, int] = {}
        self.switches = 0
        self.saved = 0.0
        self._decided: Situation | None = None

    def situation(self, candidates: tuple[str, ...], at: tuple[Hashable, ...]) -> Situation:
        """That of a call; the latest are kept."""
        now = self.situations.pop(at, None)
        if now is None:
            if len(self.situations) >= _MOST_SHAPES:
                del self.situations[next(iter(self.situations))]
            now = Situation(at, candidates)
            before = self._decided
            if before is not None and before.candidates == candidates:
                # Until its own trial: the same layer on other sizes mostly gains alike.
                now.chosen, now.ratios, now.loss = before.chosen, dict(before.ratios), before.loss
                now.why = f"as at the shape before: {before.why}"
        self.situations[at] = now  # at the end, where the latest are
        if self.last is not now:
            self.last = now
            names = (self.operands[one] for one in candidates if one != DENSE)
            self.watched = tuple(dict.fromkeys(name for name in names if name))
        return now

    def consider(self, now: Situation) -> None:
        """Start a trial if it is time for one."""
        if not self._may_win(now, now.chosen):
            self._settle(now, self._cheapest(now), "nothing to gain from the zeros now")
        first = not now.decided
        free = first and len(self.situations) <= _FREE_SHAPES
        # When the density has moved, another alternative is expected to win; else to lose as it did before.
        moved = not first and now.age >= _SETTLED and (self._cheapest(now) != now.chosen or self._changed(now))
        loss = 0.0 if moved else now.loss
        due = first or moved or now.age >= now.gap
        affordable = free or self.shared.lost + loss <= EXPLORATION * self.shared.seconds
        if moved and not affordable:
            if all(one in now.ratios for one in now.candidates if one != DENSE):
                self._settle(now, self._cheapest(now), "by an earlier trial, at the densities now")
            else:
                affordable = True  # nothing is known of an alternative that had nothing to skip until now
        if due and affordable:
            now.trial = self._trial(now, expected=moved, free=free)
        now.asks = not now.decided or now.trial is not None

    def report(self, now: Situation, choice: str, seconds: float, densities: dict[str, float]) -> None:
        shared, trial = self.shared, now.trial
        now.age += 1
        shared.calls += 1
        shared.note(densities)
        self.calls[choice] = self.calls.get(choice, 0) + 1
        cold = choice not in now.recent
        now.recent.setdefault(choice, deque(maxlen=SAMPLE_EVERY)).append(seconds)
        shared.seconds += seconds + shared.call
        if choice in now.ratios:
            self.saved += now.dense * (1.0 - now.ratios[choice] * self._load(choice, densities)) - shared.call
        if trial is None or choice not in trial.alive:
            return
        trial.report(choice, seconds, self._load(choice, densities), cold)
        if not trial.free and choice != now.chosen:
            usual = min(now.recent.get(now.chosen, (0.0,)))
            shared.lost += max(min(now.recent[choice]) - usual, 0.0)
        if trial.over(now.chosen, self._load, lambda one: self._may_win(now, one)):
            self._conclude(now, trial)

    def bypassed(self, now: Situation, calls: int) -> None:
        """Count calls that took what is chosen without asking or reporting."""
        self.calls[now.chosen] = self.calls.get(now.chosen, 0) + calls
        now.age += calls
        self.shared.calls += calls
        self.shared.seconds += calls * now.dense

    def settle_by(self, prior: Prior, now: Situation, known: Mapping[str, float]) -> str:
        """The least by a prior at these densities, whatever was chosen or measured before; ties go to dense."""
        densities = {name: known.get(name, self.shared.densities.get(name, 1.0)) for name in self.watched}
        cost = {one: prior(self.name, one, densities) for one in sorted(now.candidates, key=lambda one: one != DENSE)}
        best = min(cost, key=lambda one: cost[one])
        self._settle(now, best, "by the prior and densities alone, as deterministic algorithms ask")
        return best

    def settle_by_patience(self, prior: Prior, now: Situation, patience: int) -> str:
        """The least by a prior, if that is faster than what is chosen and was so `patience` times in a row."""
        cost = {one: prior(self.name, one, self.shared.densities) for one in now.candidates}
        best = min(cost, key=lambda one: cost[one])
        gain = cost[now.chosen] / max(cost[best], 1e-12) if now.decided and now.chosen in cost else None
        now.streak = now.streak + 1 if gain is not None and is_faster(gain, 1.0 + self.margin) else 0
        if gain is None or best == now.chosen or now.streak >= patience:
            self._settle(now, best, "", counts=now.decided)
            now.decided, now.streak, now.why = True, 0, "the cheapest by the prior"
        else:
            now.why = f"kept: the cheapest gains {gain - 1.0:.0%}, " + (
                f"{now.streak} of {patience} times in a row" if now.streak else f"not above {self.margin:.0%}"
            )
        return now.chosen

    def gain(self) -> float:
        """Seconds that the best alternative at the latest shape gains over dense, at the present densities."""
        now = self.last
        if now is None:
            return 0.0
        return now.dense * max((0.0, *(1.0 - ratio * self._load(one) for one, ratio in now.ratios.items())))

    def large(self, now: Situation) -> bool:
        """Whether leaving dense could gain at all: more than the overhead, if the alternative took no time itself."""
        return min(now.recent.get(DENSE, ()), default=1.0) > self.shared.overhead(self)

    def stats(self) -> dict[str, Any]:
        last, densities = self.last, self.shared.densities
        return {
            "path": DENSE if last is None else last.chosen,
            "density": {x: densities[x] for x in self.watched if x in densities},
            "calls": dict(self.calls),
            "seconds": {} if last is None else {one: median(times) for one, times in last.recent.items()},
            "switches": self.switches,
            "saved": self.saved,
        }

    def explain(self) -> str:
        """What is chosen at the latest shape and why, and what is known of each alternative."""
        now = self.last
        if now is None:
            return f"{self.name}: never asked"
        lines = [f"{self.name}: {now.chosen}, {now.why}"]
        for one in now.candidates:
            known = [f"{self.calls.get(one, 0)} calls"]
            if one in now.recent:
                known.append(f"median {median(now.recent[one]) * 1e3:.3f} ms")
            if one in now.ratios:
                known.append(f"predicted {now.ratios[one] * self._load(one):.2f} of dense")
            name = self.operands.get(one)
            if name in self.shared.densities:
                known.append(f"{self.shared.densities[name]:.0%} of {name} nonzero")
            lines.append(f"  {one:10}  {', '.join(known)}")
        return "\n".join(lines)

    def _load(self, alternative: str, densities: Mapping[str, float] | None = None) -> float:
        """What an alternative's seconds are proportional to: 1 for dense, else the work that the density leaves."""
        name = "" if alternative == DENSE else self.operands[alternative]
        if not name:
            return 1.0
        return OVERHEAD + (densities or {}).get(name, self.shared.densities.get(name, 1.0))

    def _may_win(self, now: Situation, alternative: str) -> bool:
        """Whether an alternative could win at some density not far from the present one."""
        if alternative == DENSE:
            return True
        return self.large(now) and self.shared.densities.get(self.operands[alternative], 0.0) < DENSE_FROM

    def _changed(self, now: Situation) -> bool:
        """Whether a density is another one than when the situation was decided."""
        densities = self.shared.densities
        return any(
            abs(densities[name] - before) > CHANGE and min(densities[name], before) < DENSE_FROM
            for name, before in now.at_decision.items()
        )

    def _cheapest(self, now: Situation) -> str:
        """The alternative to prefer at the present densities: another one only if it is faster."""
        extra = self.shared.overhead(self) / now.dense if now.dense else 0.0
        cost = {
            one: 1.0 if one == DENSE else now.ratios.get(one, 1.0) * self._load(one) + extra
            for one in now.candidates
            if self._may_win(now, one)
        }
        best = min(cost, key=lambda one: cost[one])
        before = cost.get(now.chosen)
        return best if before is None or is_faster(before / cost[best], 1.0 + self.margin) else now.chosen

    def _trial(self, now: Situation, expected: bool, free: bool = False) -> Trial:
        alive = [one for one in now.candidates if self._may_win(now, one)]
        return Trial(alive, set(alive) - set(now.recent), expected=expected, free=free)

    def _conclude(self, now: Situation, trial: Trial) -> None:
        best = trial.best()
        if DENSE in best:
            now.dense = best.pop(DENSE)
            for one, seconds in best.items():
                ratio = seconds / now.dense
                if trial.rounds < 2 and one in now.ratios:  # one sample of each is too little to forget the rest
                    ratio = (ratio + now.ratios[one]) / 2
                now.ratios[one] = ratio
        first, before, choice = not now.decided, now.chosen, self._cheapest(now)
        now.loss = trial.loss(choice)
        if not (first or trial.expected or choice == before):
            now.trial = self._trial(now, expected=True)  # out of the blue: it takes a second to believe it
            return
        self._settle(now, choice, self._reason(now, trial), counts=not first)
        now.gap = _FIRST_GAP if first or choice != before else min(2 * now.gap, _LAST_GAP)
        now.trial, now.decided, now.age = None, True, 0
        now.at_decision = {x: self.shared.densities[x] for x in self.watched if x in self.shared.densities}
        self._decided = now
        for other in self.shared.questions.values():  # what this gains may be what the others lacked
            if other is not self and (last := other.last) is not None and last.decided and last.trial is None:
                other._settle(last, other._cheapest(last), "with what the other questions gain")

    def _reason(self, now: Situation, trial: Trial) -> str:
        if not now.ratios:
            return "no zeros to skip" if self.large(now) else "too little work for any gain"
        found = ", ".join(f"{one} takes {ratio * self._load(one):.2f} of dense" for one, ratio in now.ratios.items())
        asking = self.shared.overhead(self) / now.dense if now.dense else 0.0
        extra = f", asking {asking:.2f} more" if asking >= 0.005 else ""
        return f"by a trial of {trial.rounds} rounds: {found}{extra}"

    def _settle(self, now: Situation, choice: str, why: str, counts: bool = True) -> None:
        if choice != now.chosen:
            self.switches += counts
            now.chosen = choice
        elif now.decided and now.trial is None:
            return  # as it was, for the reason it was
        now.why = why
