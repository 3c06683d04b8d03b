"""The dense rival of a head of fixed fan-in: trained label block by label block, so that logits stay small."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gossamer import ops
from gossamer.xmc.data import Csr

Product = Callable[[Tensor, Tensor], Tensor]


def engine(a: Tensor, b: Tensor) -> Tensor:
    """a @ b by the fastest dense engine."""
    return ops.dense.linear(a, b.t())


PRODUCTS: dict[str, Product | None] = {"torch": None, "engines": engine}
"""The products that a dense head is measured with."""


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


class AdamHead:
    """A dense head in place of a `FusedHead` in training: BCE, Adam, all logits of a batch at once.

    Args:
        width, labels: of it. bias: the first one. seed: of the first weights.
    """

    def __init__(self, width: int, labels: int, bias: Tensor, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.width, self.labels, self.loss = width, labels, "bce"
        self.weight = torch.empty(labels, width).uniform_(-(width**-0.5), width**-0.5, generator=generator)
        self.bias = bias.clone()
        self._adam = torch.optim.Adam([self.weight, self.bias])

    def step(
        self, x: Tensor, labels: Csr, lr: float, *, features: Csr | None = None, scale: float = 1.0
    ) -> tuple[Tensor, float]:
        """One step: (gradient by x, loss), both times `scale`."""
        read = self._read(x, features)
        targets = torch.zeros(len(x), self.labels)
        targets[torch.repeat_interleave(torch.arange(len(x)), labels.counts()), labels.indices.long()] = 1
        z = torch.addmm(self.bias, read, self.weight.t())
        loss = torch.nn.functional.binary_cross_entropy_with_logits(z, targets, reduction="sum")
        grad = z.sigmoid_().sub_(targets).mul_(scale)
        grad_x = grad @ self.weight[:, : x.shape[1]]
        self.weight.grad, self.bias.grad = grad.t() @ read, grad.sum(0)
        self._adam.param_groups[0]["lr"] = lr
        self._adam.step()
        return grad_x, float(loss) * scale

    def topk(
        self, x: Tensor, k: int, *, features: Csr | None = None, exclude: Csr | None = None
    ) -> tuple[Tensor, Tensor]:
        """The best k labels of each row."""
        found = torch.addmm(self.bias, self._read(x, features), self.weight.t()).topk(k)
        return found.values, found.indices

    def buffers(self) -> list[Tensor]:
        """What it consists of, without the optimizer's state."""
        return [self.weight, self.bias]

    def _read(self, x: Tensor, features: Csr | None) -> Tensor:
        if features is None:
            return x
        out = torch.zeros(len(x), self.weight.shape[1])
        out[:, : x.shape[1]] = x
        owner = torch.repeat_interleave(torch.arange(len(x)), features.counts())
        assert features.values is not None
        out[owner, x.shape[1] + features.indices.long()] = features.values
        return out
