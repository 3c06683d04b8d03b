"""SNFS: grow by the momentum of the dense gradient, and move weights to the layers where it is large."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from gossamer.training.distribution import allocate
from gossamer.training.gradients import check_finite
from gossamer.training.methods.set import SET
from gossamer.training.rewiring import Change
from gossamer.training.select import rewire
from gossamer.training.settings import fraction, one_of
from gossamer.training.weights import Layer


@dataclass(eq=False, repr=False)
class SNFS(SET):
    """Dettmers & Zettlemoyer, "Sparse networks from scratch: faster training without losing performance", 2019.

    m <- momentum * m + (1 - momentum) * dense gradient, at every step. An update drops floor(f(t) * nnz_l) smallest
    weights of each layer l; the sum of all dropped is handed out in proportion to mean |m| over the layer's remaining
    weights, and grown where |m| is largest. The number of weights of the network stays the same, that of a layer moves.

    Args (beyond `SET`; `grow` is fixed):
        momentum: decay of the average, in [0, 1).
        redistribute: "momentum" (as published: dropped weights go to the layers of largest mean |m|) or "none" (each
            layer grows what it dropped). Nothing in the published rule keeps a layer from being emptied: a layer whose
            mean |m| stays small loses a part of its weights in every update, and with hardly any left no gradient
            passes it. Seen at densities around 1 %; use "none" there.

    Costs a second dense pass over the gradients per step and one dense tensor per weight.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(20, 10), torch.nn.Linear(10, 5))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> method = SNFS(model, optimizer, density=0.2, total_steps=10, update_every=4)
        >>> for _ in range(4):
        ...     optimizer.zero_grad(); model(torch.randn(3, 20)).square().sum().backward(); optimizer.step()
        >>> method.nnz()
        50
    """

    drop_fraction: float = 0.5
    drop_schedule: str = "cosine"
    momentum: float = 0.9
    redistribute: str = "momentum"
    name: ClassVar[str] = "snfs"
    needs_dense: ClassVar[str] = "follows the gradient of every absent weight from step to step"

    def validate(self) -> None:
        super().validate()
        fraction("momentum", self.momentum)
        one_of("redistribute", self.redistribute, ("momentum", "none"))
        if self.momentum == 1.0:
            raise ValueError("momentum must be below 1, got 1.0: the average would never move")

    def prepare(self) -> None:
        self.average: dict[str, Tensor] = {}

    def observe(self, gradients: Mapping[str, Tensor]) -> None:
        for name, gradient in gradients.items():
            if name not in self.average:
                self.average[name] = torch.zeros_like(gradient)
            self.average[name].lerp_(gradient, 1 - self.momentum)

    def scored(self, name: str) -> bool:
        return name in self.average and bool(self.average[name].any())

    def handle(self, event: str, t: int) -> tuple[Change, dict[str, Any]]:
        share, layers = self.drop_share(t), self.dynamic()
        active = [layer.active() for layer in layers]
        drops = [int(share * int(torch.count_nonzero(a))) for a in active]
        if not self.regrow_dropped:  # nearly dense: drop only as many as find a new place
            drops = allocate(min(sum(drops), sum(int(torch.count_nonzero(~a)) for a in active)), drops, drops)
        kept = [
            rewire(a, drop=n, grow=0, drop_scores=self.drop_scores(layer))
            for layer, a, n in zip(layers, active, drops, strict=True)
        ]
        scores = [self.grow_scores(layer) for layer in layers]
        means = [float(s[k].mean()) if k.any() else 0.0 for s, k in zip(scores, kept, strict=True)]
        free = [~(k if self.regrow_dropped else a) for k, a in zip(kept, active, strict=True)]
        share_of = means if self.redistribute == "momentum" else drops
        grown = allocate(sum(drops), share_of, [int(torch.count_nonzero(f)) for f in free])
        changes = {
            layer: rewire(k, drop=0, grow=n, grow_scores=s, allowed=f)
            for layer, k, n, s, f in zip(layers, kept, grown, scores, free, strict=True)
        }
        return changes, {"drop_fraction": share}

    def grow_scores(self, layer: Layer) -> Tensor:
        scores = layer.scores(self.average[layer.tensor.name].abs())
        check_finite(scores, layer.name, "averaged gradient", self.step)
        return scores

    def extra_state(self) -> dict[str, Any]:
        return {"average": {name: average.clone() for name, average in self.average.items()}}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        device = {name: tensor.parameter.device for name, tensor in self.tensors.items()}
        self.average = {name: average.to(device[name]).clone() for name, average in state["average"].items()}
