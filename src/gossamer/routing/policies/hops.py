"""Hops: before each hop a token picks any layer, one that it ran too, or EXIT.

The layers are offered in order at every hop, so a policy of L layers and K hops has L * K units, of which a token runs
one a hop at most. A layer's keys at one hop are seen by what runs it at that hop: so a prompt in one pass and token by
token are the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.routing.policies.policy import Choice, Policy, Tokens, Walk
from gossamer.routing.policies.router import START, Router


class Hops(Policy):
    """A router that may send a token anywhere.

    Args:
        layers: how many have weights. hops: how many a token runs at most. width: of the states.
        joint: tokens that are generated in the same pass go together, by their mean logits.
        hidden, bias: of the router.

    In the soft phase of training a token's layer is drawn by these, later it is the likeliest; either way the
    contribution is multiplied by p / stop_gradient(p).

    >>> policy = Hops(layers=3, hops=4, width=32).eval()
    >>> walk = policy.begin(torch.randn(2, 32), Tokens.of([2]))
    >>> walk.enter(0, torch.randn(2, 32)).rows.tolist()                  # a new one is the network in order
    [True, True]
    """

    def __init__(
        self, layers: int, hops: int, width: int, *, joint: bool = False, hidden: int | None = None, bias: float = 6.0
    ) -> None:
        super().__init__(layers * hops, width)
        self.layers, self.hops, self.joint = layers, hops, joint
        self.router = Router(layers, width, mode="free", steps=hops, hidden=hidden, bias=bias)

    def begin(self, h: Tensor, tokens: Tokens) -> Walk:
        return Hopping(self, h, tokens.decoding if self.joint else 0)

    def macs(self) -> int:
        return self.router.macs()

    def lean(self, amount: float) -> None:
        self.router.lean(amount)

    def asked(self, shares: Tensor) -> Tensor | float:
        return 1 + shares[: -self.layers].sum()  # at the start, and after all hops but the last


class Hopping(Walk):
    """Each token goes from layer to layer; the first `together` ones go as one."""

    def __init__(self, policy: Hops, h: Tensor, together: int) -> None:
        super().__init__()
        self._policy, self._together = policy, together
        count, kind = len(h), policy.router.up.dtype
        self._next = torch.zeros(count, dtype=torch.int64, device=h.device)
        self._last = torch.full_like(self._next, START)
        self._weight = h.new_ones(count, dtype=kind) if policy.training else None
        self._shares: list[Tensor] = []
        self._entropy = h.new_zeros((), dtype=kind)
        self._ask(0, h)

    def enter(self, unit: int, h: Tensor) -> Choice:
        rows = self._next == unit % self._policy.layers
        if self._weight is None:
            return Choice(rows)
        weight = self._weight * rows
        self._shares.append(weight.mean())
        return Choice(rows, weight)

    def leave(self, unit: int, h: Tensor) -> None:
        hop, layer = divmod(unit, self._policy.layers)
        if layer == self._policy.layers - 1:
            if hop + 1 < self._policy.hops:
                self._last = torch.where(self._next < self._policy.layers, self._next + 1, self._last)
                self._ask(hop + 1, h)
            self.finished = hop + 1 == self._policy.hops or bool((self._next == self._policy.layers).all())
            if self.finished and self._policy.training:
                none = torch.zeros_like(self._entropy)
                rest = [none] * (self._policy.units - len(self._shares))
                self.expected = torch.stack(self._shares + rest)
                self.losses["entropy"] = self._entropy / len(self._next)

    def _ask(self, hop: int, h: Tensor) -> None:
        policy = self._policy
        places = (self._next < policy.layers).nonzero()[:, 0]  # who has not gone
        if not len(places):
            return
        self.decisions += len(places)
        z = policy.router(h[places], self._last[places], hop)
        if self._together:
            group = (places < self._together)[:, None]
            z = torch.where(group, (z * group).sum(0) / group.sum().clamp(min=1), z)
        z = z / policy.temperature if policy.training else z
        target = (z + _gumbel(z) if policy.soft else z).argmax(1)
        self._next = self._next.index_copy(0, places, target)
        if self._weight is not None:
            logs = z.log_softmax(1)
            taken = logs.gather(1, target[:, None])[:, 0]
            self._weight = self._weight.index_copy(0, places, (taken - taken.detach()).exp())
            self._entropy = self._entropy - (logs.exp() * logs).sum()


def _gumbel(like: Tensor) -> Tensor:
    """Noise that makes the largest logit a draw by their probabilities."""
    return -torch.empty_like(like).exponential_().log()
