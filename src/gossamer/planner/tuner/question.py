"""What is known about one question, such as which algorithm a pass of a layer takes, shape by shape.

    cost(alternative) = ratio * load(alternative)        over dense's, whose cost is 1

The load is what costs grow with: the cost by a prior that is trusted, or else OVERHEAD + density. The ratio is what a
trial measured over that. It holds whatever else the machine does, predicts the cost at densities that were not tried,
and puts a wrong prior right. A question with a trusted prior starts from that, with ratios of 1, others from a trial.

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
from gossamer.planner.tuner.trial import DENSE, Trial

Prior = Callable[[str, str, Mapping[str, float]], float]
"""prior(question, alternative, densities) -> its cost in any unit, dense's included."""

OVERHEAD = 0.15
"""What a skipping kernel costs beyond its multiplications, as a share of all of them: reading, masks, stores."""
CALL = 1e-4
"""Seconds of Python around each answer that is not bypassed, between other layers that empty the caches."""
DECAY = 0.9
"""Of the moving average of densities, per call."""
DENSE_FROM = 0.95
"""An operand of this density or more has nothing to skip: without a trusted prior skipping it is not even tried."""
EXPLORATION = 0.01
"""The share of all time that trials after a shape's first may lose on alternatives that turn out slower."""
CHANGE = 0.2
"""A density that is so far from what it was when a shape was decided, or from its mean, is another density."""
NEAR = 1.5
"""Alternatives that a trusted prior puts so near the cheapest take part in a trial, beside dense and the chosen."""

_FIRST_GAP, _LAST_GAP = 50, 1000  # calls between trials; doubled as long as they confirm the choice
_SETTLED = 16  # calls before a drift of the density may start a trial
_LONG_REST = 1000  # calls unasked where the work is too small for any gain
_FREE_SHAPES = 4  # of a question: further ones get their first trial within EXPLORATION
_MOST_SHAPES = 32
_TIMES = 16  # the latest times that are remembered


@dataclass
class Situation:
    """What is known at one shape: `at` is the caller's key, its candidates and the number of threads."""

    at: tuple[Hashable, ...]
    candidates: tuple[str, ...]
    chosen: str = DENSE
    why: str = "no trial yet"
    kept: str = ""  # why a cheaper one is not taken
    dense: float = 0.0
    ratios: dict[str, float] = field(default_factory=dict)  # measured over the prior's
    trial: Trial | None = None
    decided: bool = False
    asks: bool = True  # whether the next call asks what to do, or takes what is chosen
    age: int = 0
    gap: int = _FIRST_GAP
    loss: float | None = None  # of the last trial
    streak: int = 0
    at_decision: dict[str, float] = field(default_factory=dict)  # densities
    recent: dict[str, deque[float]] = field(default_factory=dict)

    @property
    def reason(self) -> str:
        return f"{self.why}; {self.kept}" if self.kept else self.why

    def usual(self, alternative: str) -> float:
        """Seconds that one takes without bursts of something else; dense's where it was never timed."""
        return min(self.recent.get(alternative, ()), default=self.dense)


class Shared:
    """What the questions of one object share: the densities, and the account of what exploration costs.

    Attributes:
        window: means are of so many samples, and a sample that is far from them starts anew; None for means that forget
            by the call, of whom dense ones sample but now and then.
    """

    def __init__(self, call: float, every: int, window: int | None) -> None:
        self.call, self.every, self.window = call, every, window
        self.questions: dict[str, Question] = {}
        self.densities: dict[str, float] = {}
        self.sampled: dict[str, int] = {}  # at which call; with a window how often
        self.calls = 0
        self.seconds = 0.0
        self.lost = 0.0

    def note(self, densities: Mapping[str, float]) -> None:
        """Into the means."""
        for name, density in densities.items():
            mean = self.densities.get(name, density)
            if self.window is None:
                kept = DECAY ** (max(self.calls - self.sampled.get(name, 0), 1) / max(len(self.questions), 1))
                self.sampled[name] = self.calls
            else:
                seen = 0 if abs(density - mean) > CHANGE else self.sampled.get(name, 0)
                kept = 1.0 - 1.0 / min(seen + 1, self.window)
                self.sampled[name] = seen + 1
            self.densities[name] = kept * mean + (1.0 - kept) * density

    def overhead(self, besides: Question) -> float:
        """Seconds of an object that is not bypassed, as far as the gains of other questions do not outweigh them."""
        gains = sum(one.gain() for one in self.questions.values() if one is not besides)
        return max(self.call * len(self.questions) - gains, 0.0)


class Question:
    """One question of an object.

    Args:
        operands: alternative -> the density that its work grows with, "" if none.
        gain, patience: see `Tuner`.
    """

    def __init__(
        self, name: str, shared: Shared, operands: Mapping[str, str], gain: float = GAIN, patience: int = 2
    ) -> None:
        self.name, self.shared, self.operands = name, shared, operands
        self.margin, self.patience = gain, patience
        self.trusted = False  # whether it has been priced
        self.situations: dict[Hashable, Situation] = {}
        self.last: Situation | None = None
        self.watched: tuple[str, ...] = ()  # densities that the candidates of the last situation depend on
        self.priced: dict[str, float] = {}  # by a trusted prior, over dense's, at the densities of the last asking
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

    def price(self, now: Situation, prior: Prior) -> None:
        """Trust this prior, at the densities now."""
        costs = {one: prior(self.name, one, self.shared.densities) for one in now.candidates}
        self.priced = {one: cost / max(costs[DENSE], 1e-12) for one, cost in costs.items()}
        self.trusted = True

    def consider(self, now: Situation, tries: bool = True) -> None:
        """Decide anew or, if the caller `tries` and it is time for one, start a trial."""
        first = not now.decided
        if self.trusted:
            if first:
                self._settle(now, self._cheapest(now, 0.0), "the cheapest by the prior", counts=False)
                now.decided = True
                return
            self._be_patient(now)
            if not tries or now.age < now.gap:
                return
            moved = False
        else:
            if not self._may_win(now, now.chosen):
                self._settle(now, self._cheapest(now), "nothing to gain from the zeros now")
            # When the density has moved, another alternative is expected to win; else to lose as it did before.
            moved = not first and now.age >= _SETTLED and (self._cheapest(now) != now.chosen or self._changed(now))
        free = first and len(self.situations) <= _FREE_SHAPES
        loss = 0.0 if moved else self._loss(now)
        due = tries and (first or moved or now.age >= now.gap)
        affordable = free or self.shared.lost + loss <= EXPLORATION * self.shared.seconds
        if moved and not affordable:
            if all(one in now.ratios for one in now.candidates if one != DENSE):
                self._settle(now, self._cheapest(now), "by an earlier trial, at the densities now")
            else:
                affordable = True  # nothing is known of an alternative that had nothing to skip until now
        if due and affordable:
            now.trial = self._trial(now, moved, free)
        now.asks = not now.decided or now.trial is not None

    def report(self, now: Situation, choice: str, seconds: float, densities: Mapping[str, float]) -> None:
        shared, trial = self.shared, now.trial
        now.age += 1
        shared.calls += 1
        shared.note(densities)
        self.calls[choice] = self.calls.get(choice, 0) + 1
        cold = choice not in now.recent
        now.recent.setdefault(choice, deque(maxlen=_TIMES)).append(seconds)
        shared.seconds += seconds + shared.call
        if choice in now.ratios:
            self.saved += now.dense * (1.0 - now.ratios[choice] * self.load(choice, densities)) - shared.call
        if trial is None or choice not in trial.alive:
            return
        trial.report(choice, seconds, self.load(choice, densities), cold)
        if not trial.free and choice != now.chosen:
            shared.lost += max(now.usual(choice) - min(now.recent.get(now.chosen, (0.0,))), 0.0)
        if trial.over(now.chosen, self.load, lambda one: self.trusted or self._may_win(now, one)):
            self._conclude(now, trial)

    def bypassed(self, now: Situation, calls: int) -> None:
        """Count calls that took what is chosen without asking or reporting."""
        self.calls[now.chosen] = self.calls.get(now.chosen, 0) + calls
        now.age += calls
        self.shared.calls += calls
        self.shared.seconds += calls * now.usual(now.chosen)

    def rest(self, now: Situation) -> int:
        """After how many calls a settled situation asks again: for a sample, or if no density matters for a trial."""
        if not (self.watched or self.trusted):
            return max(now.gap - now.age, _FIRST_GAP)
        return self.shared.every if self.trusted or self.large(now) else _LONG_REST

    def settle_by_prior(self, now: Situation, prior: Prior | None, known: Mapping[str, float]) -> str:
        """The least by the prior at these densities, whatever was chosen or measured before; ties go to dense."""
        known = {name: known.get(name, self.shared.densities.get(name, 1.0)) for name in self.watched}
        prior = prior or (lambda *_: 1.0)  # without a prior nothing speaks against dense
        cost = {one: prior(self.name, one, known) for one in _dense_first(now.candidates)}
        best = min(cost, key=lambda one: cost[one])
        self._settle(now, best, "by the prior and densities alone, as deterministic algorithms ask")
        return best

    def load(self, alternative: str, densities: Mapping[str, float] | None = None) -> float:
        """What an alternative's seconds are proportional to: 1 for dense, see above."""
        if alternative == DENSE:
            return 1.0
        if self.trusted:
            return self.priced.get(alternative, 1.0)
        name = self.operands[alternative]
        return OVERHEAD + (densities or {}).get(name, self.shared.densities.get(name, 1.0)) if name else 1.0

    def gain(self) -> float:
        """Seconds that the best alternative at the latest shape gains over dense, at the present densities."""
        now = self.last
        if now is None:
            return 0.0
        return now.dense * max((0.0, *(1.0 - ratio * self.load(one) for one, ratio in now.ratios.items())))

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
        lines = [f"{self.name}: {now.chosen}, {now.reason}"]
        for one in now.candidates:
            known = [f"{self.calls.get(one, 0)} calls"]
            if one in now.recent:
                known.append(f"median {median(now.recent[one]) * 1e3:.3f} ms")
            if one != DENSE and (self.trusted or one in now.ratios):
                known.append(f"predicted {self._cost(now, one):.2f} of dense")
            name = self.operands.get(one)
            if name in self.shared.densities:
                known.append(f"{self.shared.densities[name]:.0%} of {name} nonzero")
            lines.append(f"  {one:10}  {', '.join(known)}")
        return "\n".join(lines)

    def _cost(self, now: Situation, alternative: str) -> float:
        """Over dense's. Without a trial of its own a prior is taken to be as wrong as where it was tried."""
        if alternative == DENSE:
            return 1.0
        default = median(now.ratios.values()) if self.trusted and now.ratios else 1.0
        return now.ratios.get(alternative, default) * self.load(alternative)

    def _may_win(self, now: Situation, alternative: str) -> bool:
        """Whether an alternative could win at some density not far from the present one."""
        if alternative == DENSE:
            return True
        if self.trusted:
            limit = NEAR * min(self._cost(now, one) for one in now.candidates)
            return alternative == now.chosen or min(self._cost(now, alternative), self.load(alternative)) <= limit
        return self.large(now) and self.shared.densities.get(self.operands[alternative], 0.0) < DENSE_FROM

    def _changed(self, now: Situation) -> bool:
        """Whether a density is another one than when the situation was decided."""
        densities = self.shared.densities
        return any(
            abs(densities[name] - before) > CHANGE and min(densities[name], before) < DENSE_FROM
            for name, before in now.at_decision.items()
        )

    def _cheapest(self, now: Situation, margin: float | None = None) -> str:
        """The alternative to prefer at the present densities: another one only if it is faster."""
        extra = self.shared.overhead(self) / now.dense if now.dense and not self.trusted else 0.0
        cost = {
            one: self._cost(now, one) + extra * (one != DENSE)
            for one in _dense_first(now.candidates)
            if self.trusted or self._may_win(now, one)
        }
        best = min(cost, key=lambda one: cost[one])
        before = cost.get(now.chosen)
        limit = 1.0 + (self.margin if margin is None else margin)
        return best if before is None or is_faster(before / cost[best], limit) else now.chosen

    def _be_patient(self, now: Situation) -> None:
        """Change to another one only where it was faster `patience` times in a row."""
        best = self._cheapest(now, 0.0)
        gain = self._cost(now, now.chosen) / max(self._cost(now, best), 1e-12)
        now.streak = now.streak + 1 if is_faster(gain, 1.0 + self.margin) else 0
        now.kept = ""
        if now.streak >= self.patience:
            now.streak = 0
            self._settle(now, best, "the cheapest by the prior" + (", as trials corrected it" if now.ratios else ""))
        elif best != now.chosen:
            now.kept = f"kept: the cheapest gains {gain - 1.0:.0%}, " + (
                f"{now.streak} of {self.patience} times in a row" if now.streak else f"not above {self.margin:.0%}"
            )

    def _trial(self, now: Situation, expected: bool, free: bool = False) -> Trial:
        alive = [one for one in now.candidates if self._may_win(now, one)]
        return Trial(alive, set(alive) - set(now.recent), expected=expected, free=free)

    def _loss(self, now: Situation) -> float:
        """Seconds that a trial is expected to lose: as the last one did, or by a trusted prior."""
        if not self.trusted:
            return now.loss or 0.0
        near = [one for one in now.candidates if self._may_win(now, one)]
        if len(near) == 1 or now.chosen not in now.recent:
            return float("inf")  # nothing to try, or a caller that reports nothing
        if now.loss is not None:
            return now.loss
        usual = self._cost(now, now.chosen)
        return 2 * now.usual(now.chosen) * sum(max(self._cost(now, one) / usual - 1.0, 0.0) for one in near)

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
        now.trial, now.decided, now.age, now.streak, now.kept = None, True, 0, 0, ""
        now.at_decision = {x: self.shared.densities[x] for x in self.watched if x in self.shared.densities}
        self._decided = now
        for other in self.shared.questions.values():  # what this gains may be what the others lacked
            if other is not self and (last := other.last) is not None and last.decided and last.trial is None:
                other._settle(last, other._cheapest(last), "with what the other questions gain")

    def _reason(self, now: Situation, trial: Trial) -> str:
        if not now.ratios:
            return "no zeros to skip" if self.large(now) else "too little work for any gain"
        found = ", ".join(
            f"{one} takes {self._cost(now, one):.2f} of dense"
            + (f" where the prior says {self.load(one):.2f}" if self.trusted else "")
            for one in now.ratios
        )
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


def _dense_first(candidates: tuple[str, ...]) -> list[str]:
    return sorted(candidates, key=lambda one: one != DENSE)
