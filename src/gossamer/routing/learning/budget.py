"""A budget of multiply-adds, held while something else is minimised."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

_STEP = 0.05  # no further off than that does a price see the cost to be
_MEMORY = 0.9


@dataclass
class Budget:
    """Holds the mean cost of a token at a target, by dual ascent on an augmented Lagrangian.

        loss + price * (cost - target) + stiffness / 2 * (cost - target)^2,     price += rate * (cost - target)

    The price stands still while the cost is on its way to the target, and counts it as 0.05 off at most: what routers
    that learn slowly had piled up by then would carry them far below. It may fall below 0: a model that needs less than
    its budget is compared at that all the same. Over the first steps the target comes from what the first one cost.

    Args:
        target: the share to reach, in (0, 1]. warmup: steps over which the target comes to that.
        rate: by which the price follows. stiffness: of the square.

    Attributes:
        price: the multiplier. step: so many updates. start: the first cost. mean: of the last ones. Both are None
            before the first.

    Raises:
        ValueError: an argument is out of its range.

    Source: Bertsekas, Constrained Optimization and Lagrange Multiplier Methods (1982), chapter 2.

    >>> budget = Budget(0.5)
    >>> budget.update(0.6)
    >>> budget.price
    0.1
    """

    target: float
    warmup: int = 0
    rate: float = 2.0
    stiffness: float = 200.0
    price: float = 0.0
    step: int = 0
    start: float | None = None
    mean: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.target, bool) or not isinstance(self.target, (int, float)) or not 0 < self.target <= 1:
            raise ValueError(f"budget must be in (0, 1], got {self.target!r}")
        for name in ("warmup", "rate", "stiffness"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be a number of at least 0, got {value!r}")

    @property
    def now(self) -> float:
        """The target of this step."""
        done = min(1.0, self.step / self.warmup) if self.warmup else 1.0
        start = self.target if self.start is None else self.start
        return start + (self.target - start) * done

    def loss(self, cost: Tensor, *, hard: bool = False) -> Tensor:
        """What is added to the loss of a step that cost this share.

        Args:
            hard: the cost is that of decisions. It differs from batch to batch, and a stiff square would follow that: a
                tenth of it is taken.
        """
        self._begin(float(cost.detach()))
        over = cost - self.now
        return self.price * over + self.stiffness * (0.1 if hard else 1.0) / 2 * over.square()

    def update(self, cost: float) -> None:
        """After the step: follow what it cost."""
        self._begin(cost)
        over = cost - self.now
        before, self.mean = self.mean, cost if self.mean is None else _MEMORY * self.mean + (1 - _MEMORY) * cost
        if before is None or (self.mean - before) * over >= 0:
            self.price += self.rate * max(-_STEP, min(_STEP, over))
        self.step += 1

    def _begin(self, cost: float) -> None:
        if self.start is None:
            self.start = cost
