"""Gradual magnitude pruning: start dense, remove the smallest weights along a cubic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from gossamer.schedule import Schedule
from gossamer.training.distribution import allocate
from gossamer.training.engine import Method
from gossamer.training.rewiring import Change, rewire_together
from gossamer.training.select import rewire
from gossamer.training.settings import fraction, one_of


@dataclass(eq=False, repr=False)
class GradualMagnitude(Method):
    """Zhu & Gupta, "To prune, or not to prune: exploring the efficacy of pruning for model compression", 2017, eq. 1.

    D(t) = density + (initial_density - density) * (1 - p)^3 with p from 0 at `start` to 1 at `stop`; each event keeps
    exactly round(D(t) * N) weights, those of largest |w|. A last event at `stop` ends at exactly round(density * N).

    Args (beyond `Settings`):
        initial_density: density of the first mask, in [density, 1].
        scope: "layer" (each layer follows its own share of the distribution) or "global" (one ranking over all).

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(20, 10)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> method = GradualMagnitude(model, optimizer, density=0.1, total_steps=8, update_every=2)
        >>> for _ in range(8):
        ...     optimizer.zero_grad(); model(torch.randn(3, 20)).square().sum().backward(); optimizer.step()
        >>> [event["nnz"] for event in method.history]
        [73, 27, 20]
    """

    initial_density: float = 1.0
    scope: str = "layer"
    name: ClassVar[str] = "gradual"

    def validate(self) -> None:
        super().validate()
        fraction("initial_density", self.initial_density, low=self.target_density)
        one_of("scope", self.scope, ("layer", "global"))

    def first_budget(self) -> list[int]:
        # a table fixes the last densities; the first ones are in proportion
        of = self.budgets if isinstance(self.distribution, str) else self.shares
        return of(self.initial_density)

    def events(self, t: int) -> tuple[str, ...]:
        return ("update",) if t == self.last_step else super().events(t)

    def handle(self, event: str, t: int) -> tuple[Change, dict[str, Any]]:
        return self.prune(Schedule("cubic", 1.0, 0.0)(self.progress(t))), {}

    def prune(self, left: float) -> Change:
        """Keep exactly round(D * N) units with a fraction `left` of the way to go; frozen layers count and stay."""
        layers = self.trained()
        active = [layer.active() for layer in layers]
        present = [int(torch.count_nonzero(a)) for a in active]
        fixed = sum(int(torch.count_nonzero(layer.active())) for layer in self.layers) - sum(present)
        density = self.target_density + (self.initial_density - self.target_density) * left
        total = min(max(round(density * self.units) - fixed, 0), sum(present))
        if self.scope == "global":
            return rewire_together(layers, drop=sum(present) - total, drop_scores=self.magnitude)
        # each layer moves along its own line from its first to its last budget, and never up
        ends = dict(zip(self.layers, zip(self.first_budget(), self.budget, strict=True), strict=True))
        line = [ends[layer][1] + (ends[layer][0] - ends[layer][1]) * left for layer in layers]
        return {
            layer: rewire(a, drop=n - target, grow=0, drop_scores=self.magnitude(layer))
            for layer, a, n, target in zip(layers, active, present, allocate(total, line, present), strict=True)
        }
