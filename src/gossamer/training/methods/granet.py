"""GraNet: prune gradually and globally, and regenerate a part of every layer after each pruning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from gossamer.schedule import Schedule
from gossamer.training.methods.gradual import GradualMagnitude
from gossamer.training.rewiring import Change
from gossamer.training.settings import fraction


@dataclass(eq=False, repr=False)
class GraNet(GradualMagnitude):
    """Liu et al., "Sparse training via boosting pruning plasticity with neuroregeneration", 2021.

    Each event first prunes to round(D(t) * N) weights of largest |w| over all layers, D cubic from `initial_density`
    to `density`; then every layer drops floor(r(t) * nnz_l) more and grows as many where |gradient| is largest
    (zero-cost neuroregeneration), r cosine from `regenerate` to 0. A last event at `stop` ends at round(density * N).

    Args (beyond `GradualMagnitude`):
        regenerate: share of a layer replaced at the first event, in [0, 1].

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(20, 10)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> method = GraNet(model, optimizer, density=0.1, total_steps=8, update_every=2)
        >>> for _ in range(8):
        ...     optimizer.zero_grad(); model(torch.randn(3, 20)).square().sum().backward(); optimizer.step()
        >>> [event["nnz"] for event in method.history]
        [44, 23, 20]
    """

    initial_density: float = 0.5
    scope: str = "global"
    regenerate: float = 0.5
    name: ClassVar[str] = "granet"

    def validate(self) -> None:
        super().validate()
        fraction("regenerate", self.regenerate)

    def needs_gradient(self, event: str) -> bool:
        return True

    def handle(self, event: str, t: int) -> tuple[Change, dict[str, Any]]:
        changes, note = super().handle(event, t)
        share, dynamic = Schedule("cosine", self.regenerate)(self.progress(t)), self.dynamic()
        for layer, active in changes.items():
            if layer in dynamic:
                changes[layer] = self.exchanged(active, share, self.magnitude(layer), self.gradient(layer))
        return changes, {**note, "regenerate": share}
