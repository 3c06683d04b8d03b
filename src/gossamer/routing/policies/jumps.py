"""Jumps: at the start and after each unit it ran, a token picks the next one behind it, or EXIT.

Three walks decide the same way. Hard ones take the argmax, and only tokens that ran a unit ask: each token apart, or,
for the one token of a decoding text or a batch that routes together, all at once with the route in plain integers. The
soft one, of training, follows every route: with v_u the probability that a token reaches unit u, and q(t | u) of its
next jump,

    v_t = sum over u < t of v_u q(t | u)

is exact, has gradients and needs no samples; a unit's contribution is multiplied by it. Last comes the hard one with
gradients: 1 = p / stop_gradient(p) for the jump that was taken.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gossamer.routing.policies.policy import Choice, Policy, Tokens, Walk
from gossamer.routing.policies.router import START, Mode, Router

_ALL = Choice()


class Jumps(Policy):
    """A router that looks at each token's state.

    Args:
        units, width: as of `Policy`.
        mode: "skip": the next unit is any behind the last one; "sequential": always the next one, with no router.
        joint: tokens that are generated in the same pass take one route, that of their mean logits, so that a layer's
            weights are left out for the whole batch; prompts route token by token.
        hidden, bias: of the router.

    Raises:
        ValueError: an argument is out of its range.

    >>> policy = Jumps(units=3, width=32).eval()
    >>> walk = policy.begin(torch.randn(5, 32), Tokens.of([2, 3]))
    >>> walk.enter(0, torch.randn(5, 32)).rows.tolist()                  # a new one is the base network
    [True, True, True, True, True]
    """

    def __init__(
        self,
        units: int,
        width: int,
        *,
        mode: Mode = "skip",
        joint: bool = False,
        hidden: int | None = None,
        bias: float = 6.0,
    ) -> None:
        super().__init__(units, width)
        if mode not in ("skip", "sequential"):
            raise ValueError(f'mode must be "skip" or "sequential", got {mode!r}')
        self.mode, self.joint = mode, joint
        self.router = Router(units, width, hidden=hidden, bias=bias) if mode == "skip" else None

    def begin(self, h: Tensor, tokens: Tokens) -> Walk:
        if self.router is None:
            return Sequential(self, h)
        if self.soft:
            return Soft(self, self.router, h)
        together = tokens.decoding if self.joint else 0
        if not self.training and len(tokens) == max(1, together):
            return Together(self.router, h)
        return Apart(self, self.router, h, together)

    def expect(self, skipped: Sequence[float]) -> None:
        """Begin training where tokens skip each unit with these probabilities: what a profile says beforehand.

        Args:
            skipped: one for each unit, each between 0 and 1. The router is otherwise as it was: routes of a new one
                depend on no state yet.

        Raises:
            ValueError: another number of them, one that is not between 0 and 1, or mode="sequential".

        >>> policy = Jumps(units=3, width=32)
        >>> policy.expect([0.01, 0.75, 0.25])
        >>> policy.phase = "soft"
        >>> walk = policy.begin(torch.randn(5, 32), Tokens.of([5]))
        >>> for unit in range(3):
        ...     _ = walk.enter(unit, torch.randn(5, 32)), walk.leave(unit, torch.randn(5, 32))
        >>> [round(share, 2) for share in walk.expected.tolist()]
        [0.99, 0.25, 0.75]
        """
        if self.router is None:
            raise ValueError('expect is for mode="skip": in mode="sequential" nothing is skipped')
        if len(skipped) != self.units or not all(0 < each < 1 for each in skipped):
            raise ValueError(f"skipped must be {self.units} probabilities between 0 and 1, got {list(skipped)}")
        self.router.expect(skipped)

    def macs(self) -> int:
        return 0 if self.router is None else self.router.macs()

    def lean(self, amount: float) -> None:
        if self.router is None:
            super().lean(amount)
        else:
            self.router.lean(amount)

    def asked(self, shares: Tensor) -> Tensor | float:
        return 0.0 if self.router is None else 1 + shares[:-1].sum()  # at the start, and after all units but the last


class Sequential(Walk):
    """Every token runs every unit."""

    def __init__(self, policy: Policy, h: Tensor) -> None:
        super().__init__()
        if policy.training:
            self.expected = torch.ones(policy.units, dtype=torch.float32, device=h.device)

    def enter(self, unit: int, h: Tensor) -> Choice:
        return _ALL


class Together(Walk):
    """All tokens of the pass take one route, by the mean of their logits."""

    def __init__(self, router: Router, h: Tensor) -> None:
        super().__init__()
        self._units, self._pick, self._hops = router.units, router.picker(), 0
        self._nobody = Choice(h.new_zeros(len(h), dtype=torch.bool))
        self._next = self._ask(START, h)

    def enter(self, unit: int, h: Tensor) -> Choice:
        return _ALL if unit == self._next else self._nobody

    def leave(self, unit: int, h: Tensor) -> None:
        if unit == self._next:
            self._hops += 1
            self._next = self._ask(unit + 1, h)

    def _ask(self, last: int, h: Tensor) -> int:
        if last == self._units:
            return last
        self.decisions += len(h)
        return self._pick(h, last, self._hops, last)


class Apart(Walk):
    """Each token takes a route of its own; the first `together` ones share one."""

    def __init__(self, policy: Jumps, router: Router, h: Tensor, together: int) -> None:
        super().__init__()
        self._policy, self._router, self._together = policy, router, together
        tokens = len(h)
        self._next = torch.zeros(tokens, dtype=torch.int64, device=h.device)
        self._hops = torch.zeros(tokens, dtype=torch.int64, device=h.device)
        self._weight = h.new_ones(tokens, dtype=router.up.dtype) if policy.training else None
        self._shares: list[Tensor] = []
        self._entropy = h.new_zeros((), dtype=router.up.dtype)
        self._rows = h.new_zeros(tokens, dtype=torch.bool)
        self._ask(START, h, torch.arange(tokens, device=h.device))

    def enter(self, unit: int, h: Tensor) -> Choice:
        self._rows = self._next == unit
        if self._weight is None:
            return Choice(self._rows)
        weight = self._weight * self._rows
        self._shares.append(weight.mean())
        return Choice(self._rows, weight)

    def leave(self, unit: int, h: Tensor) -> None:
        last = unit + 1
        if last < self._router.units:
            places = self._rows.nonzero().squeeze(1)
            if len(places):
                self._hops[places] += 1
                self._ask(last, h[places], places)
        elif self._policy.training:
            self.expected = torch.stack(self._shares)
            self.losses["entropy"] = self._entropy / len(self._next)

    def _ask(self, last: int, h: Tensor, places: Tensor) -> None:
        self.decisions += len(places)
        z = self._router(h, last, self._hops[places], last)
        if self._together:
            group = (places < self._together).unsqueeze(1)
            z = torch.where(group, (z * group).sum(0) / group.sum().clamp(min=1), z)
        target = z.argmax(1)
        # A token that asked has no unit before `last` to run: writing in place leaves no choice of before changed.
        self._next[places] = target + last
        if self._weight is not None:
            logs = (z / self._policy.temperature).log_softmax(1)
            taken = logs.gather(1, target.unsqueeze(1)).squeeze(1)
            self._weight = self._weight.index_copy(0, places, (taken - taken.detach()).exp())
            self._entropy = self._entropy - (logs.exp() * logs).sum()


class Soft(Walk):
    """Every token runs every unit in part: as far as its routes lead there."""

    def __init__(self, policy: Jumps, router: Router, h: Tensor) -> None:
        super().__init__()
        self._policy, self._router = policy, router
        self._reached: list[Tensor] = []
        self._entropy = h.new_zeros((), dtype=router.up.dtype)
        # Of the targets from the next unit on: the probability that one is reached, and that times the hops before it.
        self._mass, self._hops = self._ask(START, h, None, None)

    def enter(self, unit: int, h: Tensor) -> Choice:
        self._reached.append(self._mass[:, 0])
        return Choice(None, self._mass[:, 0])

    def leave(self, unit: int, h: Tensor) -> None:
        last, reached = unit + 1, self._mass[:, 0]
        if last == self._router.units:
            self.expected = torch.stack([share.mean() for share in self._reached])
            self.losses["entropy"] = self._entropy / len(h)
            return
        hops = self._hops[:, 0] / reached.detach().clamp(min=1e-12) + 1
        mass, counted = self._ask(last, h, reached, hops)
        self._mass, self._hops = self._mass[:, 1:] + mass, self._hops[:, 1:] + counted

    def _ask(self, last: int, h: Tensor, reached: Tensor | None, hops: Tensor | None) -> tuple[Tensor, Tensor]:
        self.decisions += len(h)
        z = self._router(h, last, 0 if hops is None else hops, last)
        logs = (z / self._policy.temperature).log_softmax(1)
        q = logs.exp()
        entropy = -(q * logs).sum(1)
        # The entropy of a route is that of its jumps, each as often as it is asked for.
        self._entropy = self._entropy + (entropy if reached is None else reached * entropy).sum()
        mass = q if reached is None else reached.unsqueeze(1) * q
        counted = mass.detach() * (0 if hops is None else hops.unsqueeze(1))
        return mass, counted
