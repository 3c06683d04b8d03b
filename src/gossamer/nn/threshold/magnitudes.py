"""How the magnitudes of an activation are distributed: a histogram that takes any amount of data and keeps 512 KiB.

The bins are those of the number format: a float32 without its 15 lowest bits, so every bin is 0.4 % wide at any scale
and histograms of parts add up. A threshold is always the largest number of a bin; the share of what lies at or below
it is then a count, not an estimate.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_SHIFT = 15
_BINS = 1 << (31 - _SHIFT)
_INFINITE = 0x7F800000 >> _SHIFT


class Magnitudes:
    """Counts of |x| over everything that was added.

    >>> seen = Magnitudes()
    >>> seen.add(torch.tensor([0.0, -1.0, 2.0, 3.0]))
    >>> t = seen.threshold(0.5)
    >>> round(t, 2), seen.share(t)
    (1.0, 0.5)
    """

    def __init__(self) -> None:
        self.counts: Tensor | None = None

    def add(self, x: Tensor) -> None:
        """Count the elements of x, a float tensor of any shape.

        Raises:
            ValueError: x holds NaN.
        """
        wide = x.detach().abs().float().reshape(-1)
        if bool(wide.isnan().any()):
            raise ValueError("the activation holds NaN")
        counts = torch.bincount(wide.view(torch.int32) >> _SHIFT, minlength=_BINS)
        self.counts = counts if self.counts is None else self.counts + counts

    @property
    def total(self) -> int:
        return 0 if self.counts is None else int(self.counts.sum())

    def threshold(self, sparsity: float) -> float:
        """The t whose share of |x| <= t is nearest to `sparsity`; the smaller one of two. 0 where nothing is asked.

        Zeros are always dropped, so the share is at least theirs.
        """
        if self.counts is None:
            raise ValueError("nothing was added")
        below = self.counts.cumsum(0)
        return _top(int((below.double() - sparsity * int(below[-1])).abs().argmin()))

    def quantile(self, share: float) -> float:
        """The smallest number at or below which at least this share of |x| lies, or up to 0.4 % more."""
        if self.counts is None:
            raise ValueError("nothing was added")
        below = self.counts.cumsum(0)
        at = int(torch.searchsorted(below, max(1, math.ceil(share * int(below[-1])))))
        return math.inf if at >= _INFINITE else _top(at)

    def share(self, threshold: float) -> float:
        """The share of |x| <= threshold; exact for thresholds that `threshold` gives, else to within a bin."""
        if self.counts is None:
            raise ValueError("nothing was added")
        at = int(torch.tensor(threshold, dtype=torch.float32, device="cpu").view(torch.int32)) >> _SHIFT
        return int(self.counts[: at + 1].sum()) / self.total


def _top(bin_: int) -> float:
    """The largest float32 of a bin; of the first one 0: the numbers beside it are denormal."""
    if not bin_:
        return 0.0
    return float(torch.tensor(((bin_ + 1) << _SHIFT) - 1, dtype=torch.int32, device="cpu").view(torch.float32))
