"""The dense rival of a head of fixed fan-in: trained label block by label block, so that logits stay small."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gossamer.xmc.data import Csr

Product = Callable[[Tensor, Tensor], Tensor]


class DenseHead:
    """A weight [labels, width], SGD, the loss and its gradient a block of labels at a time (ELMO's chunks, in float32).

    Args:
        weight, bias: [labels, width] and [labels]; changed by `step`, and shared by rivals of other blocks.
        loss: "bce" or "hinge", summed over labels and rows.
        block: labels whose logits are in memory together; a few hundred keep their weights in a core's cache.
        product: a @ b by an engine; None: torch's, which adds the update in place.
    """

    def __init__(self, weight: Tensor, bias: Tensor, *, loss: str, block: int, product: Product | None = None) -> None:
        self.weight, self.bias, self.loss, self.block, self.product = weight, bias, loss, block, product

    def step(self, x: Tensor, labels: Csr, lr: float) -> Tensor:
        """One step; the gradient of the loss by x."""
        multiply = self.product or torch.mm
        grad_x = torch.zeros_like(x)
        owner = torch.repeat_interleave(torch.arange(len(x)), labels.counts())
        order = torch.argsort(labels.indices, stable=True)
        owner, positive = owner[order], labels.indices[order].long()
        cuts = torch.searchsorted(positive, torch.arange(0, len(self.weight) + self.block, self.block)).tolist()
        for at, begin in enumerate(range(0, len(self.weight), self.block)):
            weight, bias = self.weight[begin : begin + self.block], self.bias[begin : begin + self.block]
            rows, places = owner[cuts[at] : cuts[at + 1]], positive[cuts[at] : cuts[at + 1]] - begin
            z = multiply(x, weight.t()).add_(bias)
            if self.loss == "bce":
                grad = z.sigmoid_()
                grad[rows, places] -= 1
            else:
                inside = torch.ones_like(z)
                inside[rows, places] = -1
                grad = inside.mul(z).add_(1).clamp_(min=0).mul_(inside).mul_(2)
            grad_x += multiply(grad, weight)
            if self.product is None:
                weight.addmm_(grad.t(), x, alpha=-lr)
            else:
                weight.sub_(multiply(grad.t(), x), alpha=lr)
            bias.sub_(grad.sum(0), alpha=lr)
        return grad_x

    def forward(self, x: Tensor) -> None:
        """All logits, a block at a time."""
        for begin in range(0, len(self.weight), self.block):
            weight, bias = self.weight[begin : begin + self.block], self.bias[begin : begin + self.block]
            (self.product or torch.mm)(x, weight.t()).add_(bias)
