"""SET, sparse evolutionary training: drop the smallest weights of each layer, grow as many elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from gossamer.schedule import Schedule
from gossamer.training.engine import Method
from gossamer.training.fan_in import exchange_in_rows
from gossamer.training.rewiring import Change
from gossamer.training.settings import fraction, one_of
from gossamer.training.weights import Layer


@dataclass(eq=False, repr=False)
class SET(Method):
    """Mocanu et al., "Scalable training of artificial neural networks with adaptive sparse connectivity", 2018.

    Every `update_every` steps each layer drops k = floor(drop_fraction(t) * nnz) weights of smallest |w| and grows k
    others at random, so that nnz never changes. With grow="random_unfired" weights that were never active come first
    (in-time over-parameterisation, Liu et al., 2021).

    Args (beyond `Settings`):
        drop_fraction: share of a layer's weights that one update replaces, in [0, 1].
        drop_schedule: how it moves from there to `drop_end` between `start` and `stop`: "constant", "linear",
            "cosine" or "cubic".
        drop_end: its last value.
        drop: "magnitude", or "signed", the paper's own rule: half from the smallest positive weights and half from the
            negative weights closest to zero.
        grow: "random", "random_unfired" or "gradient".

    Example:
        >>> model = torch.nn.Linear(20, 10)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> method = SET(model, optimizer, density=0.25, total_steps=10, update_every=4)
        >>> for _ in range(4):
        ...     optimizer.zero_grad(); model(torch.ones(3, 20)).sum().backward(); optimizer.step()
        >>> method.nnz(), method.history[0]["dropped"] <= 15
        (50, True)
    """

    drop_fraction: float = 0.3
    drop_schedule: str = "constant"
    drop_end: float = 0.0
    drop: str = "magnitude"
    grow: str = "random"
    stop: float = 1.0
    name: ClassVar[str] = "set"

    def validate(self) -> None:
        super().validate()
        fraction("drop_fraction", self.drop_fraction)
        fraction("drop_end", self.drop_end)
        one_of("drop", self.drop, ("magnitude", "signed"))
        one_of("grow", self.grow, ("random", "random_unfired", "gradient"))
        if self.grow != "gradient" and self.grow_init == "gradient":
            raise ValueError(f"grow_init='gradient' needs grow='gradient', got grow={self.grow!r}")
        Schedule(self.drop_schedule, self.drop_fraction, self.drop_end)

    def needs_gradient(self, event: str) -> bool:
        return self.grow == "gradient"

    def handle(self, event: str, t: int) -> tuple[Change, dict[str, Any]]:
        share = self.drop_share(t)
        return {layer: self._exchanged(layer, share) for layer in self.dynamic()}, {"drop_fraction": share}

    def drop_share(self, t: int) -> float:
        """Share of a layer's weights replaced at step t."""
        return Schedule(self.drop_schedule, self.drop_fraction, self.drop_end)(self.progress(t))

    def _exchanged(self, layer: Layer, share: float) -> Tensor:
        """bool[units]: with floor(share * nnz) others. Rows of one length grow as many as they lost."""
        active, drop, grow = layer.active(), self.drop_scores(layer), self.grow_scores(layer)
        if layer.row_units is None:
            return self.exchanged(active, share, drop, grow)
        if layer.sampled:
            # Where a row loses more than it was shown, the largest of what it lost comes back.
            shown, had = grow > 0, self.magnitude(layer)
            grow = torch.where(shown, 2 + grow, active * (1 + had / had.max().clamp(min=1e-30)))
            return exchange_in_rows(active.view(layer.grid), share, drop, grow, regrow=True).view(-1)
        return exchange_in_rows(active.view(layer.grid), share, drop, grow, regrow=self.regrow_dropped).view(-1)

    def drop_scores(self, layer: Layer) -> Tensor:
        """The smallest of these are dropped."""
        magnitude = self.magnitude(layer)
        if self.drop == "magnitude":
            return magnitude
        # the rank within its own sign: the smallest ranks are half positive, half negative weights
        positive, rank = layer.scores(layer.tensor.parameter.detach()) > 0, torch.zeros_like(magnitude)
        for side in (layer.active() & positive, layer.active() & ~positive):
            places = side.nonzero().squeeze(1)
            order = places[torch.argsort(magnitude[places], stable=True)]
            rank[order] = torch.arange(len(order), dtype=rank.dtype, device=rank.device)
        return rank

    def grow_scores(self, layer: Layer) -> Tensor:
        """The largest of these grow."""
        if self.grow == "gradient":
            return self.gradient(layer)
        scores = self.random(layer, "grow")
        if self.grow == "random_unfired":
            scores = scores + (~layer.any(self.ever_active.mask(layer.tensor))).to(scores.dtype)
        return scores
