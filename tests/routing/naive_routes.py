"""A stack of residual units whose tokens look back, and the plainest way to run it under a policy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gossamer.routing import Policy, Tokens, Walk

UNITS, WIDTH = 5, 24


class Stack(nn.Module):
    """Unit u adds tanh(W_u (h + the mean of the states up to here)); all in float64, so that equal means equal."""

    def __init__(self, units: int = UNITS, width: int = WIDTH, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.weights = nn.Parameter(torch.randn(units, width, width, dtype=torch.float64) / width**0.5)

    def branch(self, unit: int, h: Tensor, tokens: Tokens) -> Tensor:
        same = tokens.text.unsqueeze(1) == tokens.text.unsqueeze(0)
        before = same & (tokens.position.unsqueeze(1) >= tokens.position.unsqueeze(0))
        mean = before.to(h.dtype) @ h / before.sum(1, keepdim=True)
        return (h + mean).matmul(self.weights[unit % len(self.weights)]).tanh()


@dataclass
class Run:
    h: Tensor
    rows: Tensor  # bool[units, tokens]
    weights: Tensor  # float[units, tokens]
    walk: Walk


def run(stack: Stack, policy: Policy, h: Tensor, tokens: Tokens, *, alone: bool = False) -> Run:
    """Everything dense. `alone`: no token looks at another, as if each text had one."""
    walk, rows, weights = policy.begin(h, tokens), [], []
    look = Tokens.of([1] * len(tokens)) if alone else tokens
    for unit in range(policy.units):
        choice = walk.enter(unit, h)
        ran = torch.ones(len(h), dtype=torch.bool) if choice.rows is None else choice.rows
        weight = ran.to(h.dtype) if choice.weight is None else choice.weight.to(h.dtype)
        h = h + weight.unsqueeze(1) * stack.branch(unit, h, look)
        walk.leave(unit, h)
        rows.append(ran)
        weights.append(weight)
    return Run(h, torch.stack(rows), torch.stack(weights), walk)
