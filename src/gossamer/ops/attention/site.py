"""Where masked attention is called: dense, or only what the mask lets be seen? Measured, by how much that is."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Mapping
from functools import partial

import torch

from gossamer.handles import Handled
from gossamer.planner import Tuner
from gossamer.planner.tuner.trial import DENSE
from gossamer.planner.tuner.tuner import SAMPLE_EVERY

SKIP = "skip"
QUESTIONS = {"forward": {SKIP: "mask"}, "backward": {SKIP: "mask"}}
_OVERHEAD = 0.03  # of gathering, over dense
_STEPS = 10  # shares of what is seen that are told apart, so that masks that take turns are decided each by itself


_TILES = 2.5  # what torch gains by multiplying half floats by tiles, while skipping widens them


def price(times: float, question: str, alternative: str, densities: Mapping[str, float]) -> float:
    """The cost over dense's before anything was measured: what is multiplied, and gathering it."""
    return 1.0 if alternative == DENSE else times * (densities["mask"] + _OVERHEAD)


class MaskSite(Handled):
    """Remembers what attention over masks took: one `Tuner` for each shape and tenth of what blocks of queries see.

    >>> site = MaskSite("layers.3")
    >>> site.tuner("a shape", 0.12) is site.tuner("a shape", 0.14), site.tuner("a shape", 0.97).name
    (True, 'layers.3: 90 to 100 % seen')
    >>> site.explain()
    'nothing was asked yet'
    """

    def __init__(self, name: str = "attention", most: int = 64) -> None:
        self.name, self.most = name, most
        self._tuners: OrderedDict[tuple[Hashable, int], Tuner] = OrderedDict()
        self._rests: dict[Hashable, int] = {}

    def tuner(self, key: Hashable, density: float, dtype: torch.dtype = torch.float32) -> Tuner:
        step = min(int(density * _STEPS), _STEPS - 1)
        found = self._tuners.get((key, step))
        if found is None:
            seen = f"{100 * step // _STEPS} to {100 * (step + 1) // _STEPS} % seen"
            tiles = dtype != torch.float32 and torch.cpu._is_amx_tile_supported()
            prior = partial(price, _TILES if tiles else 1.0)
            found = self._tuners[key, step] = Tuner(QUESTIONS, prior, name=f"{self.name}: {seen}", window=1)
            if len(self._tuners) > self.most:
                self._tuners.popitem(last=False)
        return found

    def rest(self, key: Hashable) -> None:
        """A mask was looked at in vain, and that took long: the next calls alike run dense without looking."""
        if len(self._rests) >= self.most:
            self._rests.clear()
        self._rests[key] = SAMPLE_EVERY

    def rests(self, key: Hashable) -> bool:
        left = self._rests.get(key, 0)
        if left > 0:
            self._rests[key] = left - 1
        return left > 0

    def explain(self) -> str:
        """What was chosen, and why, for a person."""
        told = (f"{tuner.name}\n{tuner.explain()}" for tuner in self._tuners.values() if tuner.stats())
        return "\n".join(told) or "nothing was asked yet"


SHARED = MaskSite()
"""Of all calls without a site of their own."""
