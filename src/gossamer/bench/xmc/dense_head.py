"""The dense rivals of a head of fixed fan-in: trained label block by label block, so that logits stay small."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gossamer.xmc.data import Csr

BLOCK = 16_384  # labels whose logits are in memory together
Product = Callable[[Tensor, Tensor], Tensor]


class DenseHead:
    """A weight [labels, width], SGD, the loss and its gradient a block of labels at a time (ELMO's chunks, in float32).

    Args:
        loss: "bce" or "hinge", summed over labels and rows.
        product: a @ b of two matrices; torch's, or another engine's.
    """

    def __init__(
        self, width: int, labels: int, *, loss: str = "bce", product: Product = torch.mm, seed: int = 0
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.weight = torch.empty(labels, width).uniform_(-(width**-0.5), width**-0.5, generator=generator)
        self.bias = torch.zeros(labels)
        self.loss, self.product = loss, product

    def step(self, x: Tensor, labels: Csr, lr: float) -> Tensor:
        """One step; the gradient of the loss by x."""
        grad_x = torch.zeros_like(x)
        owner = torch.repeat_interleave(torch.arange(len(x)), labels.counts())
        order = torch.argsort(labels.indices, stable=True)
        owner, positive = owner[order], labels.indices[order].long()
        for begin in range(0, len(self.weight), BLOCK):
            weight, bias = self.weight[begin : begin + BLOCK], self.bias[begin : begin + BLOCK]
            first, last = torch.searchsorted(positive, torch.tensor([begin, begin + len(weight)])).tolist()
            rows, places = owner[first:last], positive[first:last] - begin
            z = self.product(x, weight.t()).add_(bias)
            if self.loss == "bce":
                grad = z.sigmoid_()
                grad[rows, places] -= 1
            else:
                inside = torch.ones_like(z)
                inside[rows, places] = -1
                grad = inside.mul(z).add_(1).clamp_(min=0).mul_(inside).mul_(2)
            grad_x += self.product(grad, weight)
            weight.sub_(self.product(grad.t(), x), alpha=lr)
            bias.sub_(grad.sum(0), alpha=lr)
        return grad_x

    def forward(self, x: Tensor) -> None:
        """All logits, a block at a time."""
        for begin in range(0, len(self.weight), BLOCK):
            self.product(x, self.weight[begin : begin + BLOCK].t()).add_(self.bias[begin : begin + BLOCK])
