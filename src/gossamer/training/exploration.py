"""Global exploration under a soft memory bound: the weights above the budget are trained before they compete."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from gossamer.schedule import Schedule
from gossamer.training.distribution import allocate
from gossamer.training.engine import Method
from gossamer.training.rewiring import Change, rewire_together, room
from gossamer.training.settings import count, fraction, one_of
from gossamer.training.weights import Layer

logger = logging.getLogger(__name__)


@dataclass(eq=False, repr=False)
class Exploration(Method):
    """The parameter exploration of Chase, without its channel removal (see `Chase` for the equations and arguments)."""

    explore_every: int = 100
    extra_density: float = 0.05
    explore_stop: float = 0.8
    final_drop: Sequence[float] = (0.5, 0.005)
    explore: str = "global"
    update_every: int = field(init=False, default=1)
    start: float = field(init=False, default=0.0)
    stop: float = field(init=False, default=1.0)
    replace_step: bool = field(init=False, default=False)
    regrow_dropped: bool = field(init=False, default=True)

    def validate(self) -> None:
        count("explore_every", self.explore_every)
        self.update_every = self.explore_every  # what the shared checks call it
        super().validate()
        fraction("extra_density", self.extra_density, high=1.0 - self.target_density)
        fraction("explore_stop", self.explore_stop)
        if len(self.final_drop) != 2:
            raise ValueError(f"final_drop must be two fractions, got {self.final_drop!r}")
        for value in self.final_drop:
            fraction("final_drop", value)
        one_of("explore", self.explore, ("global", "layer"))

    @property
    def phase_b(self) -> int:
        """The step at which the budget becomes constant."""
        return round(self.explore_stop * self.total_steps)

    def events(self, t: int) -> tuple[str, ...]:
        # phase B begins with an exploration even off the grid: it ends the run on its budget
        due = t == self.phase_b or (t % self.explore_every == 0 and t < self.total_steps)
        return ("explore",) if due else ()

    def needs_gradient(self, event: str) -> bool:
        return event == "explore"

    def handle(self, event: str, t: int) -> tuple[Change, dict[str, Any]]:
        layers = self.dynamic()
        fixed = sum(int(torch.count_nonzero(layer.active())) for layer in self.layers if layer not in layers)
        first = t < self.phase_b
        bound = Schedule("cosine", self.target_density + self.extra_density, self.target_density)
        low = max(round(self.target_density * self.units) - fixed, 0)
        high = max(round(bound(t / self.phase_b) * self.units) - fixed, 0) if first else low
        rho = 0.0 if first else Schedule("cosine", *self.final_drop)(t / self.total_steps)
        space = [int(torch.count_nonzero(room(layer))) for layer in layers]
        note = {"phase": "A" if first else "B", "target": high + fixed, "capacity": sum(space) + fixed}
        if high > sum(space):
            logger.warning("step %d: %d weights wanted, living channels hold %d", t, high, sum(space))
        low, high = min(low, sum(space)), min(high, sum(space))
        if self.explore == "global":
            return self._rewired(layers, low, high, rho), note
        share = [float(sum(layer.living_shape())) for layer in layers]  # ERK on what is left of each layer
        changes: Change = {}
        for layer, least, most in zip(layers, allocate(low, share, space), allocate(high, share, space), strict=True):
            changes |= self._rewired([layer], least, most, rho)
        return changes, note

    def _rewired(self, layers: list[Layer], low: int, high: int, rho: float) -> Change:
        """Drop to `low` units, and at least a fraction rho of them; then grow to `high`."""
        present = sum(int(torch.count_nonzero(layer.active())) for layer in layers)
        drop = max(math.ceil(rho * present), present - low)
        return rewire_together(
            layers, drop=drop, grow=high - (present - drop), drop_scores=self.magnitude, grow_scores=self.gradient
        )
