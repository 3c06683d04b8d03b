"""A trial: the paths of a pass take turns on the user's own data, until one is left or all had their turns.

Minima are compared, so that what else the machine does meanwhile falls on all of them; and times over the *load*, which
is what a path's time is proportional to, so that a density that moves during the trial does not decide it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

DENSE = "dense"
_ROUNDS = 4


class Trial:
    """
    Args:
        paths: those in question. Dense goes first: it may show that there is nothing to skip.
        cold: those that this shape never took. The first call of one packs, allocates and fills caches, and counts only
            if later ones are no better.
        expected: the density, or a trial before this one, says that another path wins.
        free: not on the account of exploration.
    """

    def __init__(self, paths: Iterable[str], cold: Iterable[str], *, expected: bool, free: bool = False) -> None:
        self.alive = sorted(paths, key=lambda path: path != DENSE)
        self.cold = set(cold)
        self.expected, self.free = expected, free
        self.rounds = 0
        self._times: dict[str, list[float]] = {path: [] for path in self.alive}  # over the load
        self._seconds: dict[str, list[float]] = {path: [] for path in self.alive}  # without cold calls

    def next(self) -> str:
        """Whose turn it is."""
        return min(self.alive, key=self._samples)

    def report(self, path: str, seconds: float, load: float, cold: bool) -> None:
        self._times[path].append(seconds / load)
        if not cold:
            self._seconds[path].append(seconds)

    def over(self, chosen: str, load: Callable[[str], float], may: Callable[[str], bool]) -> bool:
        """Drop the paths that cannot win, or that `may` no longer; is the trial at its end?"""
        self.alive = [path for path in self.alive if may(path)]
        if len(self.alive) == 1:
            return True
        self.rounds = rounds = min(map(self._samples, self.alive))
        if rounds < 1 or max(map(self._samples, self.alive)) > rounds:
            return False
        now = {path: min(self._times[path]) * load(path) for path in self.alive}
        # One sample may be many times what it should be, the least of two a quarter more, of four hardly a twentieth:
        # after one only a path goes that has lost an earlier trial.
        limit = (1.0 + 1.0 / rounds**2) * min(now.values())
        lost = {path for path in self.alive if path != chosen and path not in self.cold}
        self.alive = [path for path in self.alive if now[path] <= limit or (rounds < 2 and path not in lost)]
        return len(self.alive) == 1 or rounds >= _ROUNDS

    def best(self) -> dict[str, float]:
        """Seconds over load of the paths that had a turn."""
        return {path: min(times) for path, times in self._times.items() if times}

    def loss(self, path: str) -> float:
        """Seconds that another such trial would cost beyond taking this path all the time."""
        usual = min(self._seconds.get(path, ()), default=0.0)
        # Of minima: a burst of something else in this one will not come again, and must not forbid the next for long.
        return sum(len(times) * max(min(times) - usual, 0.0) for times in self._seconds.values() if times)

    def _samples(self, path: str) -> int:
        return len(self._times[path]) - (path in self.cold)
