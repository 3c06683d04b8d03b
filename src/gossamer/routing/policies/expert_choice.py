"""Expert choice: a unit picks the share of tokens that it is most use to (Mixture-of-Depths).

The best k of a text depend on tokens that come later. So generation cannot use them: a predictor, which sees one
token, learns which are among the best, and decides in eval mode. `causal=False` keeps the best k there too: it is a
control, and what it says about a token changes with the text behind it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from gossamer.routing.policies.policy import Choice, Policy, Tokens, Walk, predictor

_ALL = Choice()
_OPEN = 3.0


class ExpertChoice(Policy):
    """The best tokens of each text, by a score that each routed unit learns.

    A unit's contribution is multiplied by the sigmoid of the score, which is how the score learns. It begins near 1.

    Args:
        units, width: as of `Policy`.
        capacity: the share of a text's tokens that a routed unit runs, rounded up, in (0, 1].
        routed: the units that choose; None: every other one, beginning with the second. All tokens run the others.
        causal: decide by the predictor in eval mode; False: by the best k.
        hidden: width of the predictor; None: max(16, width / 16).

    Raises:
        ValueError: an argument is out of its range.

    Source: Raposo et al., Mixture-of-Depths (2024), sections 3.3 to 3.5.

    >>> policy = ExpertChoice(2, 8, capacity=0.25)
    >>> walk = policy.begin(torch.randn(8, 8), Tokens.of([8]))
    >>> walk.enter(0, torch.randn(8, 8)).rows is None, int(walk.enter(1, torch.randn(8, 8)).rows.sum())
    (True, 2)
    """

    @torch.inference_mode(False)  # what is made there serves training too
    def __init__(
        self,
        units: int,
        width: int,
        capacity: float = 0.125,
        *,
        routed: Iterable[int] | None = None,
        causal: bool = True,
        hidden: int | None = None,
    ) -> None:
        super().__init__(units, width)
        self.capacity = checked_share("capacity", capacity)
        self.routed = sorted(set(range(1, units, 2) if routed is None else routed))
        if any(unit not in range(units) for unit in self.routed):
            raise ValueError(f"routed must name units of 0..{units - 1}, got {self.routed}")
        hidden = max(16, width // 16) if hidden is None else hidden
        if hidden < 1:
            raise ValueError(f"hidden must be an integer of at least 1, got {hidden!r}")
        self.causal, self.hidden = causal, hidden
        count = len(self.routed)
        self.score = nn.Parameter(torch.randn(count, width, dtype=torch.float32, device="cpu") / math.sqrt(width) * 0.1)
        self.open = nn.Parameter(torch.full((count,), _OPEN, dtype=torch.float32, device="cpu"))
        self.predictors = nn.ModuleList(predictor(width, hidden) for _ in range(count if causal else 0))

    def begin(self, h: Tensor, tokens: Tokens) -> Walk:
        return _Chosen(self, h, tokens)

    def macs(self) -> int:
        """The score, and the predictor."""
        return self.width + (self.hidden * (self.width + 1) if self.causal else 0)

    @torch.no_grad()
    def lean(self, amount: float) -> None:
        if not self.causal:
            super().lean(amount)
        for each in self.predictors:
            each.get_parameter("3.bias").add_(amount)

    def asked(self, shares: Tensor) -> Tensor | float:
        return float(len(self.routed))


class _Chosen(Walk):
    def __init__(self, policy: ExpertChoice, h: Tensor, tokens: Tokens) -> None:
        super().__init__()
        self._policy, self._tokens = policy, tokens
        self._at = {unit: at for at, unit in enumerate(policy.routed)}
        if policy.training:
            self.expected = torch.ones(policy.units, dtype=torch.float32, device=h.device)

    def enter(self, unit: int, h: Tensor) -> Choice:
        at, policy = self._at.get(unit), self._policy
        if at is None:
            return _ALL
        self.decisions += len(h)
        x = h.to(policy.score.dtype)
        score = x @ policy.score[at] + policy.open[at]
        if policy.training or not policy.causal:
            rows = best(score.detach(), self._tokens, policy.capacity)
        else:
            rows = policy.predictors[at](x).squeeze(1) > 0
        if policy.training:
            assert self.expected is not None
            self.expected[unit] = rows.float().mean()
            if policy.causal and len(h):
                z = policy.predictors[at](x.detach()).squeeze(1)
                loss = binary_cross_entropy_with_logits(z, rows.to(z.dtype)) / len(policy.routed)
                self.losses["predictor"] = self.losses.get("predictor", 0) + loss
        return Choice(rows, score.sigmoid() * rows)


def best(score: Tensor, tokens: Tokens, share: float) -> Tensor:
    """bool[tokens]: the best `share` of each text, rounded up; of equal ones the earlier."""
    counts = torch.bincount(tokens.text, minlength=tokens.texts)
    order = score.argsort(descending=True, stable=True)
    order = order[tokens.text[order].argsort(stable=True)]  # texts one after the other, in each the best first
    # A hair less, so that 0.1 of 30 is 3 in floating point as well.
    most = (counts * share - 1e-6).ceil().long()
    rank = torch.arange(len(score), device=score.device) - (counts.cumsum(0) - counts)[tokens.text]
    rows = torch.empty_like(rank, dtype=torch.bool)
    rows[order] = rank < most[tokens.text]
    return rows


def checked_share(name: str, value: float) -> float:
    """A number in (0, 1]; else ValueError."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise ValueError(f"{name} must be in (0, 1], got {value!r}")
    return float(value)
