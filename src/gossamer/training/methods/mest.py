"""MEST: elastic mutation of each layer, under a hard or a soft memory bound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from gossamer.training.engine import Method
from gossamer.training.rewiring import Change
from gossamer.training.select import rewire
from gossamer.training.settings import fraction
from gossamer.training.weights import Layer


@dataclass(eq=False, repr=False)
class MEST(Method):
    """Yuan et al., "MEST: accurate and fast memory-economic sparse training framework on the edge", 2021.

    With m(t) a fraction that steps through `mutation`, each event
        soft=False (EM)    prunes to density * (1 - m(t)) and grows back to density,
        soft=True  (EM&S)  prunes to density and grows to density * (1 + m(t)): the weights above the bound are trained
                           for one period before they compete.
    Removed are the smallest |w| + sensitivity * |gradient|; grown are random weights. Layers keep their shares.

    Args (beyond `Settings`):
        mutation: values of m, in order; with soft=True the last should be 0, so that training ends at exactly
            round(density * N). The defaults are the paper's 0.02 and 0.01 at density 0.1.
        mutation_ends: fractions of total_steps at which m takes its next value (one fewer than `mutation`).
        soft: the soft memory bound, EM&S.
        sensitivity: lambda, the weight of |gradient| in the importance score (0 reads no gradients).

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(20, 10)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> method = MEST(model, optimizer, density=0.1, total_steps=8, update_every=2, soft=True)
        >>> for _ in range(8):
        ...     optimizer.zero_grad(); model(torch.randn(3, 20)).square().sum().backward(); optimizer.step()
        >>> [event["nnz"] for event in method.history]
        [24, 22, 20]
    """

    mutation: Sequence[float] = (0.2, 0.1, 0.0)
    mutation_ends: Sequence[float] = (0.5625, 0.75)
    soft: bool = False
    sensitivity: float = 0.0
    stop: float = 0.9
    name: ClassVar[str] = "mest"

    def validate(self) -> None:
        super().validate()
        if len(self.mutation) != len(self.mutation_ends) + 1:
            raise ValueError(
                f"mutation_ends must have one value fewer than mutation, got {len(self.mutation_ends)} for "
                f"{len(self.mutation)}"
            )
        if list(self.mutation_ends) != sorted(self.mutation_ends):
            raise ValueError(f"mutation_ends must rise, got {list(self.mutation_ends)}")
        for end in self.mutation_ends:
            fraction("mutation_ends", end)
        most = 1.0 / self.target_density - 1.0 if self.soft else 1.0
        for value in self.mutation:
            fraction("mutation", value, high=most)
        if self.sensitivity < 0:
            raise ValueError(f"sensitivity must be >= 0, got {self.sensitivity}")

    def needs_gradient(self, event: str) -> bool:
        return self.sensitivity > 0

    def level(self, t: int) -> float:
        """m(t)."""
        return self.mutation[sum(t >= round(end * self.total_steps) for end in self.mutation_ends)]

    def importance(self, layer: Layer) -> Tensor:
        """The smallest of these are removed."""
        scores = self.magnitude(layer)
        return scores + self.sensitivity * self.gradient(layer) if self.sensitivity else scores

    def handle(self, event: str, t: int) -> tuple[Change, dict[str, Any]]:
        mutation = self.level(t)
        bounds = (1.0, 1.0 + mutation) if self.soft else (1.0 - mutation, 1.0)
        low, high = (self.shares(self.target_density * bound) for bound in bounds)
        changes, dynamic = {}, self.dynamic()
        for layer, least, most in zip(self.layers, low, high, strict=True):
            if layer not in dynamic:
                continue
            active = layer.active()
            present = int(torch.count_nonzero(active))
            kept = min(present, least)
            changes[layer] = rewire(
                active,
                drop=present - kept,
                grow=most - kept,
                drop_scores=self.importance(layer),
                grow_scores=self.random(layer, "grow"),
            )
        return changes, {"mutation": mutation}
