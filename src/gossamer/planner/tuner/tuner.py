"""The one online tuner: which alternative is fastest at this call site, on the user's own data and on this machine?

call          0      1      2      3      4      5      6 ... 55   56     57     58 ...
alternative   dense  skip   dense  skip   dense  skip   skip       dense  skip   skip
              '--- cold --' '------- trial 1 ---------'            '- trial 2 -'

Where costs are known beforehand there is no trial 1, and the later ones put right what was known wrong. Between trials
(trial.py) only densities are watched, and what calls report is read a few steps at a time: Python that runs once in a
while, between layers that empty the caches, takes many times what it takes in a loop. How a question is decided is in
question.py.
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
from gossamer.planner.tuner.question import CALL, Prior, Question, Shared, Situation
from gossamer.planner.tuner.trial import DENSE

SAMPLE_EVERY = 16
"""Calls from one sample of the densities that calls do not count by themselves to the next."""

_READ_EVERY = 16  # steps


@dataclass
class Bypass:
    """Calls that take what is chosen without asking: which, and how many are left, the one that asks again included."""

    at: object
    brief: Hashable
    taken: str
    settled: list[tuple[Question, Situation]]
    left: int
    uncounted: int = 0


class Tuner(Handled):
    """Chooses between "dense" and its alternatives, for each question of one object, such as the passes of a layer.

    Ask before the work and report after it, in the same thread:

        choice = tuner.bypassed(x.shape)
        if choice is None:
            choice = tuner.choose("forward", ("dense", "skip"), x.shape)
            ...
            tuner.observe("forward", choice, seconds, {"x": nonzeros / elements})

    The first calls of a shape try every alternative in turn, three to five times; one that is clearly slower goes
    first. With a trusted prior the first call takes the cheapest by that. Trials come, again, after 50, 100, ... 1000
    calls, or when a density has moved far; they lose about 1 % of the time at most, and what they measure corrects the
    prior. Under `torch.use_deterministic_algorithms` the prior and the densities alone decide, and without a prior all
    is dense.

    Each object has its own. Threads may share one. A copy, or one read back from a file, has a handle of its own and
    knows nothing: it may live on another machine.

    Args:
        alternatives: question -> alternative -> the density that its work grows with, "" if none. "dense" is always
            one more.
        prior: `prior(question, alternative, densities)` -> its cost in any unit, "dense" included.
        trusted: the prior is good enough to start from. Else it is for deterministic algorithms alone.
        name: for people.
        every: calls from one sample to the next.
        window: densities are means of so many samples; None for means that forget by the call.
        gain, patience: by a trusted prior, leave what is chosen if another one is faster by more than this fraction, so
            many times in a row.
        call: seconds that asking costs where a call cannot be bypassed: those of a layer if not given.

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
        trusted: bool = True,
        name: str = "",
        every: int = SAMPLE_EVERY,
        window: int | None = None,
        gain: float = GAIN,
        patience: int = 2,
        call: float = CALL,
    ) -> None:
        self.alternatives, self.prior, self.trusted, self.name = alternatives, prior, trusted, name
        self.every, self.window, self.gain, self.patience, self.call = every, window, gain, patience, call
        self._alone = len(alternatives) == 1
        self._lock = threading.Lock()
        self._asked = threading.local()
        self._shared = Shared(call, every, window)
        self._reports: deque[tuple[Question, Situation, str, float, Mapping[str, float]]] = deque()
        self._bypass: Bypass | None = None

    @property
    def key(self) -> int:
        return int(self.handle)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        names = ("prior", "trusted", "name", "every", "window", "gain", "patience", "call")
        return partial(type(self), self.alternatives, **{name: getattr(self, name) for name in names}), ()

    def choose(
        self,
        question: str,
        candidates: Sequence[str],
        key: Hashable,
        densities: Mapping[str, float] | None = None,
        prior: Prior | None = None,
        reports: bool = True,
    ) -> str:
        """The alternative to take now.

        Where there is one question, the calls after it may take the same for a while: ask `bypassed(key)`.

        Args:
            question: one of those that the tuner was made for.
            candidates: alternatives that can do the work; "dense" must be one of them.
            key: shapes, strides and whatever else decides the cost. A new key starts afresh, an old one goes on with
                what it learnt. The number of threads is part of it unsaid.
            densities: where known beforehand. In deterministic mode the choice then depends on them alone, and not on
                earlier calls.
            prior: for this call, trusted; None is the tuner's own.
            reports: the caller will `observe` what this call takes. Without that nothing is tried.

        Raises:
            ValueError: an unknown question or alternative, or candidates without "dense".
        """
        candidates = tuple(candidates)
        at = (key, candidates, torch.get_num_threads())
        deterministic = torch._C._get_deterministic_algorithms()
        own = self._shared.questions.get(question)
        now = None if own is None else own.last
        if now is not None and not (self._alone or now.asks or deterministic or densities) and now.at == at:
            vars(self._asked)[question] = now
            return now.chosen
        self._check(question, candidates)
        with self._lock:
            self._read()
            own = self._question(question)
            now = own.situation(candidates, at)
            if prior is None:
                prior = self.prior
            if deterministic:
                own.settle_by_prior(now, prior, densities or {})
            else:
                if densities:
                    self._shared.note(densities)
                if prior is not None and self.trusted:
                    own.price(now, prior)
                if now.trial is None:
                    own.consider(now, reports)
                if self._alone:  # a change that waits to be confirmed asks at the next call already
                    waits = now.trial is not None or now.streak
                    self._bypass = None if waits else Bypass(at, key, now.chosen, [(own, now)], own.rest(now))
            if reports:
                vars(self._asked)[question] = now
                return now.chosen if now.trial is None or deterministic else now.trial.next()
            own.bypassed(now, 1)
            return now.chosen

    def observe(self, question: str, choice: str, seconds: float, densities: Mapping[str, float] | None = None) -> None:
        """Report a call: what was taken, its seconds (without those for counting zeros), densities as far as known."""
        now: Situation | None = vars(self._asked).pop(question, None)
        if now is None:  # nobody asked: the caller was told what to take
            self._check(question, (DENSE, choice))
            with self._lock:
                now = self._question(question).situation((choice,), (choice,))
                now.chosen, now.why = choice, "as the caller was told"
        self._reports.append((self._shared.questions[question], now, choice, seconds, densities or {}))
        full = len(self._reports) >= _READ_EVERY * len(self._shared.questions)
        if full or now.asks or (choice == DENSE and densities):
            with self._lock:
                self._read()

    def bypassed(self, brief: Hashable) -> str | None:
        """What this call may take without asking, or None: a short question, for whom microseconds matter.

        Not None only in the course of a bypass, and for calls that look like those that it began with: `brief` is the
        key of the question.
        """
        bypass = self._bypass
        if bypass is None or bypass.left <= 1 or bypass.brief != brief or torch._C._get_deterministic_algorithms():
            return None
        bypass.left -= 1
        bypass.uncounted += 1
        return bypass.taken

    @property
    def taken(self) -> str | None:
        """What calls take in the bypass that is in force; None if there is none."""
        bypass = self._bypass
        return None if bypass is None else bypass.taken

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
        due = shared.calls - max(len(shared.questions), 1) * self.every
        return any(shared.sampled.get(name, due) <= due for name in own.watched)

    def corrections(self, question: str) -> tuple[dict[str, float], str]:
        """How much more than its prior says each alternative costs over dense, where trials found out, and why the
        latest choice was made."""
        own = self._shared.questions[question]
        now = own.last
        assert now is not None
        hidden = torch._C._get_deterministic_algorithms() or now.trial is not None
        return {} if hidden else dict(now.ratios), now.reason

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

    def _check(self, question: str, candidates: Sequence[str]) -> None:
        known = self.alternatives.get(question)
        if known is None:
            raise ValueError(f"question must be one of {tuple(self.alternatives)}, got {question!r}")
        if DENSE not in candidates or not {DENSE, *known}.issuperset(candidates):
            raise ValueError(f"candidates must hold 'dense' and alternatives among {tuple(known)}, got {candidates}")

    def _question(self, name: str) -> Question:
        own = self._shared.questions.get(name)
        if own is None:
            own = Question(name, self._shared, self.alternatives[name], self.gain, self.patience)
            self._shared.questions[name] = own
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
