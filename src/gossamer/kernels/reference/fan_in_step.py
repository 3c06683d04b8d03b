"""One training step of a classifier each of whose labels reads k inputs: what it means, in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gossamer.kernels.counter import round_stochastically, row_keys
from gossamer.kernels.reference._slots import check_places, demand

BLOCK_ELEMENTS = 1 << 22  # of x gathered at once


@dataclass(frozen=True)
class Rule:
    """How a gradient changes a parameter: torch.optim.SGD, with momentum, or AdamW."""

    optimizer: str
    lr: float
    decay: float
    beta1: float
    beta2: float
    eps: float
    step: int

    def apply(self, value: Tensor, states: list[Tensor], gradient: Tensor, decay: float) -> Tensor:
        """The new value, float32; states are written."""
        value = value.double()
        if self.optimizer == "adam":
            value = value * (1 - self.lr * decay)
            first, second = (state.double() for state in states)
            first = self.beta1 * first + (1 - self.beta1) * gradient
            second = self.beta2 * second + (1 - self.beta2) * gradient.square()
            root = (second / (1 - self.beta2**self.step)).sqrt()
            value = value - self.lr / (1 - self.beta1**self.step) * first / (root + self.eps)
            states[0].copy_(first)
            states[1].copy_(second)
            return value.float()
        gradient = gradient + decay * value
        if self.optimizer == "momentum":
            gradient = self.beta1 * states[0].double() + gradient
            states[0].copy_(gradient)
        return (value - self.lr * gradient).float()


def loss_of(loss: str, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """(loss, its gradient) of every logit; y is 1 for a positive, else 0."""
    if loss == "bce":
        return torch.nn.functional.softplus(z) - y * z, z.sigmoid() - y
    sign = 2 * y - 1
    margin = (1 - sign * z).clamp(min=0)
    return margin.square(), -2 * sign * margin


def fan_in_step(
    x: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None, states: list[Tensor], positives: Tensor,
    group: int, loss: str, optimizer: str, lr: float, weight_decay: float, beta1: float, beta2: float, eps: float,
    scale: float, step: int, seed: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """x[batch, cols], values[labels, k], indices[ceil(labels / group), k] -> (grad_x[batch, cols], loss).

    `positives` are numbers label * batch + row, ascending. values, bias and states are written: states has those of
    the values (one for momentum, two for adam), then those of the bias.
    """
    (batch, cols), (labels, k) = x.shape, values.shape
    columns = indices.to(torch.int64)
    check_places(columns, torch.ones_like(columns, dtype=torch.bool), cols, "indices")
    demand((positives[1:] > positives[:-1]).all(), "positives must ascend")
    check_places(positives, torch.ones_like(positives, dtype=torch.bool), labels * batch, "positives")
    rule = Rule(optimizer, lr, weight_decay, beta1, beta2, eps, step)
    per_value = {"sgd": 0, "momentum": 1, "adam": 2}[optimizer]
    xt, total = x.double().t(), x.new_zeros((), dtype=torch.float64)
    grad_xt = torch.zeros_like(xt)
    block = max(BLOCK_ELEMENTS // max(batch * k * group, 1), 1) * group
    for begin in range(0, labels, block):
        rows = slice(begin, min(begin + block, labels))
        names = torch.arange(rows.start, rows.stop, device=x.device)
        w, mine = values[rows].double(), columns[names // group]
        taken = xt[mine]  # [block, k, batch]
        z = torch.einsum("rkb,rk->rb", taken, w)
        if bias is not None:
            z = z + bias[rows, None]
        y = torch.zeros_like(z).view(-1)
        first, last = torch.searchsorted(positives, positives.new_tensor([rows.start * batch, rows.stop * batch]))
        y[positives[first:last] - rows.start * batch] = 1
        each, g = loss_of(loss, z, y.view_as(z))
        total += each.sum(dtype=torch.float64) * scale
        g = g * scale
        grad_xt.index_add_(0, mine.reshape(-1), (w[:, :, None] * g[:, None]).view(mine.numel(), batch))
        by_w = torch.einsum("rkb,rb->rk", taken, g)
        new = rule.apply(values[rows], [state[rows] for state in states[:per_value]], by_w, weight_decay)
        values[rows] = new if values.dtype == torch.float32 else round_stochastically(new, row_keys(seed, step, names))
        if bias is not None:
            bias[rows] = rule.apply(bias[rows], [state[rows] for state in states[per_value:]], g.sum(1), 0.0)
    return grad_xt.t().contiguous().float(), total
