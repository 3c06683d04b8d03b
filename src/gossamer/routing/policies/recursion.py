"""Recursions: all layers are run several times, each time by the share of the tokens that still need it.

Who goes on is chosen among those that were in the last recursion, by their states after it. As in expert choice, the
best of a text cannot be known while it is generated; a predictor that sees one token takes their place in eval mode.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from gossamer.routing.policies.expert_choice import best, checked_share
from gossamer.routing.policies.policy import Choice, Policy, Tokens, Walk, predictor

_OPEN = 3.0


class Recursions(Policy):
    """The best tokens of each text go through the layers again.

    Args:
        layers: how many have weights. width: of the states.
        shares: for each recursion the share of a text's tokens that are in it, falling; the first should be 1.
        hidden: width of the predictors; None: max(16, width / 16).

    Raises:
        ValueError: shares that rise, or are outside (0, 1].

    Source: Bae et al., Mixture-of-Recursions (arXiv 2507.10524), section 2.2, expert choice with an auxiliary loss and
    keys by recursion.

    >>> policy = Recursions(2, 8, shares=(1.0, 0.5))
    >>> walk = policy.begin(torch.randn(8, 8), Tokens.of([8]))
    >>> [int(walk.enter(unit, torch.randn(8, 8)).rows.sum()) for unit in range(4)]
    [8, 8, 4, 4]
    """

    causal = True

    @torch.inference_mode(False)  # what is made there serves training too
    def __init__(self, layers: int, width: int, shares: Sequence[float], *, hidden: int | None = None) -> None:
        super().__init__(layers * max(len(shares), 1), width)
        shares = [checked_share(f"shares[{at}]", share) for at, share in enumerate(shares)]
        if not shares or any(after > before for before, after in pairwise(shares)):
            raise ValueError(f"shares must fall from recursion to recursion, got {shares}")
        self.layers, self.hops, self.shares = layers, len(shares), shares
        hidden = max(16, width // 16) if hidden is None else hidden
        self.hidden = hidden
        self.score = nn.Parameter(
            torch.randn(len(shares), width, dtype=torch.float32, device="cpu") / math.sqrt(width) * 0.1
        )
        self.open = nn.Parameter(torch.full((len(shares),), _OPEN, dtype=torch.float32, device="cpu"))
        self.predictors = nn.ModuleList(predictor(width, hidden) for _ in shares)

    def begin(self, h: Tensor, tokens: Tokens) -> Walk:
        return _Nested(self, h, tokens)

    def macs(self) -> int:
        """The score, and the predictor."""
        return self.width + self.hidden * (self.width + 1)

    @torch.no_grad()
    def lean(self, amount: float) -> None:
        for each in self.predictors:
            each.get_parameter("3.bias").add_(amount)

    def asked(self, shares: Tensor) -> Tensor | float:
        return float(sum([1.0, *self.shares[:-1]]))


class _Nested(Walk):
    def __init__(self, policy: Recursions, h: Tensor, tokens: Tokens) -> None:
        super().__init__()
        self._policy, self._tokens = policy, tokens
        self._rows = h.new_ones(len(h), dtype=torch.bool)
        self._weight: Tensor = h.new_ones(len(h))
        if policy.training:
            self.expected = torch.zeros(policy.units, dtype=torch.float32, device=h.device)

    def enter(self, unit: int, h: Tensor) -> Choice:
        recursion, layer = divmod(unit, self._policy.layers)
        if layer == 0:
            self._choose(recursion, h)
        if self.expected is not None:
            self.expected[unit] = self._rows.float().mean()
        return Choice(self._rows, self._weight)

    def _choose(self, recursion: int, h: Tensor) -> None:
        policy, before = self._policy, self._rows
        self.decisions += int(before.sum())
        x = h.to(policy.score.dtype)
        score = x @ policy.score[recursion] + policy.open[recursion]
        share, predictor = policy.shares[recursion], policy.predictors[recursion]
        if share == 1:
            self._rows = before
        elif policy.training:
            self._rows = best(score.detach().masked_fill(~before, -torch.inf), self._tokens, share) & before
            if len(h):
                z = predictor(x.detach()).squeeze(1)
                loss = binary_cross_entropy_with_logits(z, self._rows.to(z.dtype), weight=before.to(z.dtype))
                self.losses["predictor"] = self.losses.get("predictor", 0) + loss / policy.hops
        else:
            self._rows = before & (predictor(x).squeeze(1) > 0)
        self._weight = score.sigmoid() * self._rows

    def leave(self, unit: int, h: Tensor) -> None:
        self.finished = unit + 1 == self._policy.units or (
            (unit + 1) % self._policy.layers == 0 and not bool(self._rows.any())
        )
