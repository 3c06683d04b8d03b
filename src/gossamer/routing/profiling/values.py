"""Numbers of any amount of tokens in bounded memory: kept up to a limit, then counted in bins of 0.4 %."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gossamer.nn.threshold.magnitudes import Magnitudes

EXACT = 1 << 14
"""So many numbers are kept as they are; of more, quantiles are up to 0.4 % too large."""


@dataclass(frozen=True)
class Spread:
    """How numbers are distributed: their mean, and the smallest number with so many of them at or below it.

    Attributes:
        mean: infinite where one of them is.
        low: with 5 %. q1, median, q3: with a quarter, half, three quarters. high: with 95 %. most: with all.
    """

    mean: float
    low: float
    q1: float
    median: float
    q3: float
    high: float
    most: float


class Values:
    """Numbers of at least 0, one for each token.

    >>> seen = Values()
    >>> seen.add(torch.tensor([3.0, 1.0, 2.0]))
    >>> seen.add(torch.tensor([4.0]))
    >>> seen.spread().median, seen.share(2.5), seen.exact
    (2.0, 0.5, True)
    """

    def __init__(self, limit: int = EXACT) -> None:
        self._limit, self._kept, self._binned = limit, torch.empty(0, dtype=torch.float64, device="cpu"), Magnitudes()
        self.total, self._sum, self._most = 0, 0.0, 0.0

    @property
    def exact(self) -> bool:
        """Whether all are kept."""
        return self.total <= self._limit

    def add(self, values: Tensor) -> None:
        """Take the numbers of some tokens, a float tensor [tokens]."""
        wide = values.detach().double().cpu()
        self.total += wide.numel()
        self._sum += float(wide.sum())
        self._most = max(self._most, float(wide.max())) if wide.numel() else self._most
        kept = torch.cat([self._kept, wide])
        if not self.exact:
            self._binned.add(kept)
            kept = kept[:0]
        self._kept = kept

    def spread(self) -> Spread:
        """
        Raises:
            ValueError: nothing was added.
        """
        if not self.total:
            raise ValueError("nothing was added")
        shares = (0.05, 0.25, 0.5, 0.75, 0.95)
        if self.exact:
            order = self._kept.sort().values
            found = [float(order[max(0, math.ceil(share * self.total) - 1)]) for share in shares]
        else:
            found = [self._binned.quantile(share) for share in shares]
        low, q1, median, q3, high = found
        return Spread(self._sum / self.total, low, q1, median, q3, high, self._most)

    def share(self, most: float) -> float:
        """The share of numbers up to `most`."""
        if self.exact:
            return int((self._kept <= most).sum()) / max(self.total, 1)
        return self._binned.share(most)
