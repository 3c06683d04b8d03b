"""The one online tuner: which alternative is fastest at this call site, on the user's own data and on this machine?

call          0      1      2      3      4      5      6 ... 55   56     57     58 ...
alternative   dense  skip   dense  skip   dense  skip   skip       dense  skip   skip
              '--- cold --' '------- trial 1 ---------'            '- trial 2 -'

Between trials (trial.py) only densities are watched, and what calls report is read a few steps at a time: Python that
runs once in a while, between layers that empty the caches, takes many times what it takes in a loop. How a question is
decided is in question.py.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from gossamer.handles import Handled
from gossamer.measure import GAIN
from gossamer.planner.tuner.question import SAMPLE_EVERY, Prior, Question, Shared, Situation
from gossamer.planner.tuner.trial import DENSE

_READ_EVERY = 16  # steps
_LONG_BYPASS = 1000
_SETTLED_BYPASS = 50


@dataclass
class _Bypass:
    """Calls that take what is chosen without asking: which, and how many are left, the one that asks again included."""

    at: tuple[Hashable, ...]
    brief: Hashable
    settled: list[tuple[Question, Situation]]
    left: int
    uncounted: int = 0


class Tuner(Handled):
    """Chooses between "dense" and its alternatives, for each question of one object, such as the passes of a layer.

    Ask before the work and report after it, in the same thread:

        choice = tuner.choose("forward", ("dense", "skip"), (x.shape, weight.shape))
        ...
        tuner.observe("forward", choice, seconds, {"x": nonzeros / elements})

    The first calls of a shape try every alternative in turn, three to five times; one that is clearly slower goes
    first. Later trials come after 50, 100, ... 1000 calls, or when a density has moved far; they lose about 1 % of the
    time at most. Where costs are known beforehand, `evaluate` asks a prior instead of trials. Under
    `torch.use_deterministic_algorithms` the prior and the densities alone decide, and without a prior all is dense.

    Each object has its own. Threads may share one. A copy, or one read back from a file, has a handle of its own and
    knows nothing: it may live on another machine.

    Args:
        alternatives: question -> alternative -> the density that its work grows with, "" if none. "dense" is always
            one more.
        prior: `prior(question, alternative, densities)` -> its cost in any unit, "dense" included.
        name: for people.
        every, window: `evaluate` is due every so many calls, and goes by the mean of so many samples.
        gain, patience: it leaves what is chosen if another one is faster by more than this fraction, so many times in
            a row.
        call: seconds that asking costs where a call cannot be bypassed; None for those of a layer.

    Attributes:
        handle: int64[] on the CPU, for opaque ops that cannot carry an object (`gossamer.handles`).
        key: the handle as an int.

    >>> tuner = Tuner({"product": {"skip": "x"}})
    >>> for _ in range(20):
    ...     choice = tuner.choose("product", ("dense", "skip"), "a shape")
    ...     tuner.observe("product", choice, 1.0 if choice == "dense" else 0.6, {"x": 0.5})
    >>> print(tuner.explain())
    product: skip, by a trial of 2 rounds: skip takes 0.60 of dense
      dense       3 calls, median 1000.000 ms
      skip        17 calls, median 600.000 ms, predicted 0.60 of dense, 50% of x nonzero
    """

    def __init__(
        self,
        alternatives: Mapping[str, dict[str, str]],
        prior: Prior | None = None,
        *,
        name: str = "",
        every: int = SAMPLE_EVERY,
        gain: float = GAIN,
        patience: int = 2,
        window: int = 4,
        call: float | None = None,
    ) -> None:
        self.alternatives, self.prior, self.name = alternatives, prior, name
        self.every, self.gain, self.patience, self.window = every, gain, patience, window
        self._lock = threading.Lock()
        self._asked = threading.local()
        self.call = call
        self._shared = Shared(call)
        self._reports: deque[tuple[Question, Situation, str, float, dict[str, float]]] = deque()
        self._bypass: _Bypass | None = None

    @property
    def key(self) -> int:
        return int(self.handle)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        options = {x: getattr(self, x) for x in ("prior", "name", "every", "gain", "patience", "window", "call")}
        return partial(type(self), self.alternatives, **options), ()

    def choose(
        self,
        question: str,
        candidates: Sequence[str],
        key: Hashable,
        densities: Mapping[str, float] | None = None,
    ) -> str:
        """The alternative to take now.

        Args:
            question: one of those that the tuner was made for.
            candidates: alternatives that can do the work; "dense" must be one of them.
            key: shapes, strides and whatever else decides the cost. A new key starts afresh, an old one goes on with
                what it learnt. The number of threads is part of it unsaid.
            densities: where known beforehand. In deterministic mode the choice then depends on them alone, and not on
                earlier calls.

        Raises:
            ValueError: an unknown question or alternative, or candidates without "dense".
        """
        at = (key, candidates, torch.get_num_threads())
        deterministic = torch._C._get_deterministic_algorithms()
        own = self._shared.questions.get(question)
        now = None if own is None else own.last
        if now is not None and not (now.asks or deterministic or densities) and now.at == at:
            vars(self._asked)[question] = now
            return now.chosen
        candidates = self._check(question, candidates)
        with self._lock:
            self._read()
            own = self._question(question)
            now = vars(self._asked)[question] = own.situation(candidates, (key, candidates, torch.get_num_threads()))
            if deterministic:  # without a prior nothing speaks against dense
                return own.settle_by(self.prior or (lambda *_: 1.0), now, densities or {})
            if densities:
                self._shared.note(densities)
            if now.trial is None:
                own.consider(now)
            return now.chosen if now.trial is None else now.trial.next()

    def evaluate(
        self,
        question: str,
        candidates: Sequence[str],
        key: Hashable,
        densities: Mapping[str, float],
        prior: Prior | None = None,
    ) -> tuple[str, str]:
        """The alternative to take now and in the next calls by the costs of a prior at sampled densities, and why.

        Call it where `is_bypassed(key)` says no: at first, at every `every`-th call, and at the next one while a change
        waits to be confirmed. `prior` is for this call; None is the tuner's own.
        """
        candidates, prior = self._check(question, candidates), prior or self.prior
        if prior is None:
            raise ValueError("prior must be given here or to the tuner, got None")
        with self._lock:
            own = self._question(question)
            self._read()
            now = own.situation(candidates, (key, candidates, torch.get_num_threads()))
            if torch._C._get_deterministic_algorithms():
                return own.settle_by(prior, now, densities), now.why
            self._shared.note_samples(densities, self.window)
            own.settle_by_patience(prior, now, self.patience)
            own.bypassed(now, 1)
            # A pending change is confirmed or dropped at the next call, not `every` calls later.
            self._bypass = None if now.streak else _Bypass((key,), key, [(own, now)], self.every)
            return now.chosen, now.why

    def observe(self, question: str, choice: str, seconds: float, densities: dict[str, float]) -> None:
        """Report a call: what was taken, its seconds (without those for counting zeros), densities as far as known."""
        now: Situation | None = vars(self._asked).pop(question, None)
        if now is None:  # nobody asked: the caller was told what to take
            self._check(question, (DENSE, choice))
            with self._lock:
                now = self._question(question).situation((choice,), (choice,))
                now.chosen, now.why = choice, "as the caller was told"
        self._reports.append((self._shared.questions[question], now, choice, seconds, densities))
        full = len(self._reports) >= _READ_EVERY * len(self._shared.questions)
        if full or now.asks or (choice == DENSE and densities):
            with self._lock:
                self._read()

    def bypass(self, questions: Sequence[str], key: Hashable, brief: Hashable = None) -> bool:
        """May this call run dense without asking or reporting?

        Where all of `questions` have settled on dense at the shape `key`, every call may but one in 16 (in 1000 where
        the work is too small for any gain), which asks and reports as ever. `is_bypassed` will be asked about `brief`.
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
                left = SAMPLE_EVERY if any(own.large(now) for own, now in settled) else _LONG_BYPASS
                if bypass is not None:
                    left = min(left, bypass.left)  # shapes that take turns share the time until the next sample
                bypass = self._bypass = _Bypass(at, brief, settled, left)
            bypass.left -= 1
            if bypass.left <= 0:
                self._read()
                self._bypass = None
                return False
            bypass.uncounted += 1
            return True

    def bypass_settled(self, question: str) -> str | None:
        """Ask after `observe`, where no density decides: what the next calls may take unasked, until a trial is due.

        They then ask `is_bypassed(None)`. None while the question is not settled.
        """
        with self._lock:
            self._read()
            own = self._shared.questions[question]
            now = own.last
            if now is None or not now.decided or now.trial is not None:
                return None
            own.consider(now)
            if now.trial is not None:
                return None
            # A trial that is due may be too dear for now.
            self._bypass = _Bypass((now.at[0],), None, [(own, now)], max(now.gap - now.age, _SETTLED_BYPASS))
            return now.chosen

    def is_bypassed(self, brief: Hashable) -> bool:
        """Whether this call may take what the last one took: a short question, for callers to whom microseconds matter.

        True only in the course of a bypass, and for calls that look like those that it began with.
        """
        bypass = self._bypass
        if bypass is None or bypass.left <= 1 or bypass.brief != brief or torch._C._get_deterministic_algorithms():
            return False
        bypass.left -= 1
        bypass.uncounted += 1
        return True

    def forget(self) -> None:
        """Drop the densities seen, and ask at the next call: for callers that found other data than they expected."""
        with self._lock:
            self._read()
            self._bypass = None
            self._shared.densities.clear()

    def samples(self, question: str) -> bool:
        """Should a caller that runs dense count the zeros of (a part of) this question's operands in this call?"""
        shared = self._shared
        own = shared.questions.get(question)
        if own is None:
            return False
        due = shared.calls - max(len(shared.questions), 1) * SAMPLE_EVERY
        return any(shared.sampled.get(name, due) <= due for name in own.watched)

    def stats(self) -> dict[str, dict[str, Any]]:
        """For each question that was asked: what was seen and decided.

        Each is a dict: `path` taken now, `density` of each operand that could be skipped, `calls` and median `seconds`
        of each alternative at the latest shape, `switches` from one to another, seconds `saved` against dense: what the
        trials measured, at the densities of the calls.
        """
        with self._lock:
            self._read()
            return {name: own.stats() for name, own in self._shared.questions.items()}

    def explain(self) -> str:
        """For a person: what each question's latest shape takes, why, and from which observations."""
        with self._lock:
            self._read()
            return "\n".join(own.explain() for own in self._shared.questions.values()) or "nothing was asked yet"

    def _check(self, question: str, candidates: Sequence[str]) -> tuple[str, ...]:
        known = self.alternatives.get(question)
        if known is None:
            raise ValueError(f"question must be one of {tuple(self.alternatives)}, got {question!r}")
        if DENSE not in candidates or not {DENSE, *known}.issuperset(candidates):
            raise ValueError(f"candidates must hold 'dense' and alternatives among {tuple(known)}, got {candidates}")
        return tuple(candidates)

    def _question(self, name: str) -> Question:
        own = self._shared.questions.get(name)
        if own is None:
            own = self._shared.questions[name] = Question(name, self._shared, self.alternatives[name], self.gain)
        return own

    def _read(self) -> None:
        """Take in what calls reported, and what a bypass let by."""
        while self._reports:
            own, now, choice, seconds, densities = self._reports.popleft()
            own.report(now, choice, seconds, densities)
            now.asks = True
        if self._bypass is not None:
            calls, self._bypass.uncounted = self._bypass.uncounted, 0
            for own, now in self._bypass.settled:
                own.bypassed(now, calls)

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
