"""The Chase that `scoring` and `trained` train with: a tenth of the weights, 40 % of the channels leave."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import gossamer as gs

SHARE = 0.4
ROUND = 16


def chase(
    model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, example: torch.Tensor, **options: Any
) -> gs.training.Chase:
    return gs.training.Chase(
        model, optimizer, density=0.1, channel_sparsity=SHARE, total_steps=steps, round_to=ROUND,
        example_inputs=example, **options,
    )  # fmt: skip
