"""A trial: the alternatives take turns on the user's own data, until one is left or all had their turns.

Minima are compared, so that what else the machine does meanwhile falls on all of them; and times over the *load*, which
is what an alternative's time is proportional to, so that a density that moves during the trial does not decide it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

DENSE = "dense"
_ROUNDS = 4


class Trial:
    """
    Args:
        alternatives: those in question. Dense goes first: it may show that there is nothing to skip.
        cold: those that this shape never took. The first call of one packs, allocates and fills caches, and counts only
            if later ones are no better.
        expected: the density, or a trial before this one, says that another one wins.
        free: not on the account of exploration.
    """

    def __init__(self, alternatives: Iterable[str], cold: Iterable[str], *, expected: bool, free: bool = False) -> None:
        self.alive = sorted(alternatives, key=lambda one: one != DENSE)
        self.cold = set(cold)
        self.expected, self.free = expected, free
        self.rounds = 0
        self._times: dict[str, list[float]] = {one: [] for one in self.alive}  # over the load
        self._seconds: dict[str, list[float]] = {one: [] for one in self.alive}  # without cold calls

    def next(self) -> str:
        """Whose turn it is."""
        return min(self.alive, key=self._samples)

    def report(self, one: str, seconds: float, load: float, cold: bool) -> None:
        self._times[one].append(seconds / load)
        if not cold:
            self._seconds[one].append(seconds)

    def over(self, chosen: str, load: Callable[[str], float], may: Callable[[str], bool]) -> bool:
        """Drop those that cannot win, or that `may` no longer; is the trial at its end?"""
        self.alive = [one for one in self.alive if may(one)]
        if len(self.alive) == 1:
            return True
        self.rounds = rounds = min(map(self._samples, self.alive))
        if rounds < 1 or max(map(self._samples, self.alive)) > rounds:
            return False
        now = {one: min(self._times[one]) * load(one) for one in self.alive}
        # One sample may be many times what it should be, the least of two a quarter more, of four hardly a twentieth:
        # after one only those go that lost an earlier trial.
        limit = (1.0 + 1.0 / rounds**2) * min(now.values())
        lost = {one for one in self.alive if one != chosen and one not in self.cold}
        self.alive = [one for one in self.alive if now[one] <= limit or (rounds < 2 and one not in lost)]
        return len(self.alive) == 1 or rounds >= _ROUNDS

    def best(self) -> dict[str, float]:
        """Seconds over load of those that had a turn."""
        return {one: min(times) for one, times in self._times.items() if times}

    def loss(self, one: str) -> float:
        """Seconds that another such trial would cost beyond taking this one all the time."""
        usual = min(self._seconds.get(one, ()), default=0.0)
        # Of minima: a burst of something else in this one will not come again, and must not forbid the next for long.
        return sum(len(times) * max(min(times) - usual, 0.0) for times in self._seconds.values() if times)

    def _samples(self, one: str) -> int:
        return len(self._times[one]) - (one in self.cold)
