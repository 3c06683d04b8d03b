"""Each unit runs a fixed share of the tokens, by a learned gate: how much is computed is known beforehand.

In training a unit takes the share of each text with the largest gates, and remembers the gate that was just enough. A
token that is generated is compared with that: no token has to know those behind it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from gossamer.routing.policies.expert_choice import best, checked_share
from gossamer.routing.policies.policy import Choice, Policy, Tokens, Walk

_ALL = Choice()
_OPEN = 3.0


class PerUnit(Policy):
    """Gates with a share for each unit.

    In phase "soft" all tokens run everything, multiplied by their gates; "hard" leaves the others out. A new one runs
    every token until a hard pass of training has set the thresholds.

    Args:
        units, width: as of `Policy`.
        shares: of the tokens, in (0, 1]: one for all units, or one for each. 1: all run it, without a gate.
        momentum: of the thresholds: how much of the old one stays in each pass.

    Attributes:
        threshold: float[units].

    Raises:
        ValueError: an argument is out of its range.

    Source: after GateSkip (Laitenberger et al., "What Layers When", 2025), whose gates are vectors.
    """

    threshold: Tensor

    @torch.inference_mode(False)  # what is made there serves training too
    def __init__(self, units: int, width: int, shares: float | Sequence[float], *, momentum: float = 0.95) -> None:
        super().__init__(units, width)
        given = [shares] * units if isinstance(shares, (int, float)) else list(shares)
        if len(given) != units:
            raise ValueError(f"shares must be one number or {units}, got {len(given)}")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {momentum!r}")
        self.shares = [checked_share("shares", share) for share in given]
        self.momentum = momentum
        self.gate = nn.Parameter(torch.randn(units, width, dtype=torch.float32, device="cpu") / math.sqrt(width) * 0.1)
        self.open = nn.Parameter(torch.full((units,), _OPEN, dtype=torch.float32, device="cpu"))
        self.register_buffer("threshold", torch.full((units,), -math.inf, dtype=torch.float32, device="cpu"))

    def begin(self, h: Tensor, tokens: Tokens) -> Walk:
        return _Gated(self, h, tokens)

    def macs(self) -> int:
        return self.width

    def lean(self, amount: float) -> None:
        self.threshold -= amount

    def asked(self, shares: Tensor) -> Tensor | float:
        return float(sum(share < 1 for share in self.shares))


class _Gated(Walk):
    def __init__(self, policy: PerUnit, h: Tensor, tokens: Tokens) -> None:
        super().__init__()
        self._policy, self._tokens = policy, tokens
        self._shares: list[Tensor] = []

    def enter(self, unit: int, h: Tensor) -> Choice:
        policy = self._policy
        if policy.shares[unit] == 1:
            self._note(unit, h.new_ones(1))
            return _ALL
        self.decisions += len(h)
        gate = layer_norm(h.to(policy.gate.dtype), (policy.width,)) @ policy.gate[unit] + policy.open[unit]
        if policy.soft:
            weight = (gate / policy.temperature).sigmoid()
            self._note(unit, weight)
            return Choice(None, weight)
        if policy.training:
            rows = best(gate.detach(), self._tokens, policy.shares[unit])
            self._remember(unit, gate.detach(), rows)
        else:
            rows = gate > policy.threshold[unit]
        self._note(unit, rows)
        return Choice(rows, gate.sigmoid() * rows)

    def _note(self, unit: int, share: Tensor) -> None:
        if not self._policy.training:
            return
        self._shares.append(share.float().mean())
        if unit == self._policy.units - 1:
            self.expected = torch.stack(self._shares)

    def _remember(self, unit: int, gate: Tensor, rows: Tensor) -> None:
        """Move the threshold to between the last gate that ran and the first that did not."""
        if rows.all() or not len(rows):
            return
        count = int(rows.sum())
        ordered = gate.sort(descending=True).values
        now = (ordered[count - 1] + ordered[count]) / 2
        old = self._policy.threshold[unit]
        keep = self._policy.momentum
        self._policy.threshold[unit] = torch.where(old.isfinite(), keep * old + (1 - keep) * now, now)
