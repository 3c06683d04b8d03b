"""One route for a text: its prompt decides, its tokens follow, and every pass of it has the same shape."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from gossamer.routing.policies.policy import Choice, Policy, Tokens, Walk

_ALL = Choice()
_OPEN = 3.0
_MEMORY = "per_text"


class PerText(Policy):
    """Each unit looks at the mean state of a text's first pass and is on or off for that text from then on.

    A prompt that comes in several passes is decided on by the first. A new one is on everywhere.

    Args:
        units, width: as of `Policy`.

    Source: after FiRST (Jain et al., 2024), whose routers see the prompt at each layer.

    >>> policy, prompt = PerText(2, 8).eval(), Tokens.of([3])
    >>> policy.begin(torch.randn(3, 8), prompt).enter(0, torch.randn(3, 8)).rows is None, prompt.memory
    (True, [{'per_text': {0: True}}])
    """

    @torch.inference_mode(False)  # what is made there serves training too
    def __init__(self, units: int, width: int) -> None:
        super().__init__(units, width)
        self.causal = False  # the first tokens of a prompt go where all of it says
        self.gate = nn.Parameter(torch.randn(units, width, dtype=torch.float32, device="cpu") / math.sqrt(width) * 0.1)
        self.open = nn.Parameter(torch.full((units,), _OPEN, dtype=torch.float32, device="cpu"))

    def begin(self, h: Tensor, tokens: Tokens) -> Walk:
        return _Trained(self, tokens) if self.training else _Decided(self, tokens)

    def logits(self, unit: int, h: Tensor, tokens: Tokens) -> Tensor:
        """float[texts]: above 0 the unit is on."""
        x = h.to(self.gate.dtype)
        total = x.new_zeros(tokens.texts, self.width).index_add(0, tokens.text, x)
        mean = total / torch.bincount(tokens.text, minlength=tokens.texts).clamp(min=1).unsqueeze(1)
        return layer_norm(mean, (self.width,)) @ self.gate[unit] + self.open[unit]

    @torch.no_grad()
    def lean(self, amount: float) -> None:
        self.open.add_(amount)

    def macs(self) -> int:
        return self.width


class _Trained(Walk):
    """Nothing is remembered: every text is a new one."""

    def __init__(self, policy: PerText, tokens: Tokens) -> None:
        super().__init__()
        self._policy, self._tokens = policy, tokens
        self._shares: list[Tensor] = []

    def enter(self, unit: int, h: Tensor) -> Choice:
        policy, tokens = self._policy, self._tokens
        self.decisions += tokens.texts
        z = policy.logits(unit, h, tokens)
        p = (z / policy.temperature).sigmoid()
        on = torch.ones_like(p) if policy.soft else (z > 0).to(p.dtype)
        # Straight through: a unit that is off can come back by what the budget says.
        self._shares.append((p if policy.soft else on + p - p.detach())[tokens.text].mean())
        if unit == policy.units - 1:
            self.expected = torch.stack(self._shares)
        if policy.soft:
            return Choice(None, p[tokens.text])
        weight = on * p / p.detach().clamp(min=1e-12)
        return Choice(on[tokens.text] > 0, weight[tokens.text])


class _Decided(Walk):
    def __init__(self, policy: PerText, tokens: Tokens) -> None:
        super().__init__()
        self._policy, self._tokens = policy, tokens
        self._routes: list[dict[Any, bool]] = [text.setdefault(_MEMORY, {}) for text in tokens.memory]

    def enter(self, unit: int, h: Tensor) -> Choice:
        tokens, routes = self._tokens, self._routes
        if any(unit not in route for route in routes):
            self.decisions += tokens.texts
            on = (self._policy.logits(unit, h, tokens) > 0).tolist()
            for route, each in zip(routes, on, strict=True):
                route.setdefault(unit, each)
        kept = [route[unit] for route in routes]
        if all(kept):
            return _ALL
        return Choice(torch.tensor(kept, dtype=torch.bool, device=h.device)[tokens.text])
