"""One step of training, as every section times it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def training_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    loss: Callable[..., Tensor] = F.cross_entropy,
) -> Callable[[], Tensor]:
    """Forward, backward and the optimizer on one batch; the step gives its loss."""

    def step() -> Tensor:
        optimizer.zero_grad()
        found = loss(model(x), y)
        found.backward()
        optimizer.step()
        return found.detach()

    return step
