"""Routes that nothing learns: units left out for good, at random, or from some unit on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from gossamer.routing.policies.policy import Choice, Policy, Tokens, Walk

Measure = Callable[[Tensor, Tensor], Tensor]
_ALL = Choice()


class Static(Policy):
    """The same units for every token.

    Args:
        units, width: as of `Policy`.
        keep: the units that run, in any order, such as the most influential ones of a profile.

    Raises:
        ValueError: `keep` names a unit that is not there, or one twice.

    >>> walk = Static(3, 8, keep=[0, 2]).begin(torch.zeros(2, 8), Tokens.of([2]))
    >>> walk.enter(0, torch.zeros(2, 8)).rows is None, walk.enter(1, torch.zeros(2, 8)).rows.tolist()
    (True, [False, False])
    """

    def __init__(self, units: int, width: int, keep: Sequence[int]) -> None:
        super().__init__(units, width)
        keep = list(keep)
        if len(set(keep)) != len(keep) or any(unit not in range(units) for unit in keep):
            raise ValueError(f"keep must name units of 0..{units - 1}, each once, got {keep}")
        self.keep = frozenset(keep)

    def begin(self, h: Tensor, tokens: Tokens) -> Walk:
        return _Same(self, self.keep, h)


class EarlyExit(Policy):
    """All units up to one, then none: a fixed one, or the one after which a token is sure.

    Args:
        units, width: as of `Policy`.
        unit: the first that is left out; tokens that grow sure exit before it. None: `units`.
        threshold: a token exits when it is surer than that; None: all exit at `unit`.
        measure: (state before a unit, after it) -> how sure each token is; "saturation": their cosine. A measure of the
            head's probabilities is CALM's "softmax".
        first: so many units run in any case.

    Raises:
        ValueError: an argument is out of its range.

    Source: Schuster et al., Confident Adaptive Language Modeling (2022), section 3; Elhoushi et al., LayerSkip (2024).
    """

    def __init__(
        self,
        units: int,
        width: int,
        unit: int | None = None,
        *,
        threshold: float | None = None,
        measure: Literal["saturation"] | Measure = "saturation",
        first: int = 1,
    ) -> None:
        super().__init__(units, width)
        unit = units if unit is None else unit
        for name, value, low in (("unit", unit, 1), ("first", first, 1)):
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= units:
                raise ValueError(f"{name} must be an integer of {low}..{units}, got {value!r}")
        if threshold is not None and not math.isfinite(threshold):
            raise ValueError(f"threshold must be a finite number or None, got {threshold!r}")
        if measure != "saturation" and not callable(measure):
            raise ValueError(f'measure must be "saturation" or a function, got {measure!r}')
        self.unit, self.threshold, self.first = unit, threshold, first
        self.measure: Measure = _saturation if measure == "saturation" else measure

    def begin(self, h: Tensor, tokens: Tokens) -> Walk:
        return _Same(self, range(self.unit), h) if self.threshold is None else _Sure(self, self.threshold, h)

    def lean(self, amount: float) -> None:
        if self.threshold is None:
            super().lean(amount)
        else:
            self.threshold += amount


class RandomSkip(Policy):
    """Each token skips each unit with the same probability: what a router must be better than.

    In training the draw is new in every pass, from torch's generator. In eval mode it follows from the seed, the unit,
    the token's place and its state at the start: the same in a prompt as token by token, in any batch.

    Args:
        units, width: as of `Policy`.
        rate: the probability, for all units or one for each.
        seed: of the draw in eval mode.

    Raises:
        ValueError: a rate is outside [0, 1], or there are not as many as units.
    """

    def __init__(self, units: int, width: int, rate: float | Sequence[float], *, seed: int = 0) -> None:
        super().__init__(units, width)
        rates = [rate] * units if isinstance(rate, (int, float)) else list(rate)
        if len(rates) != units or not all(0 <= each <= 1 for each in rates):
            raise ValueError(f"rate must be a probability or {units} of them, got {rate!r}")
        self.rates, self.seed = [float(each) for each in rates], seed

    def begin(self, h: Tensor, tokens: Tokens) -> Walk:
        return _Random(self, h, tokens)


class _Same(Walk):
    def __init__(self, policy: Policy, keep: frozenset[int] | range, h: Tensor) -> None:
        super().__init__()
        self._keep, self._nobody = keep, Choice(h.new_zeros(len(h), dtype=torch.bool))
        if policy.training:
            self.expected = torch.tensor(
                [float(unit in keep) for unit in range(policy.units)], dtype=torch.float32, device=h.device
            )

    def enter(self, unit: int, h: Tensor) -> Choice:
        return _ALL if unit in self._keep else self._nobody


class _Sure(Walk):
    def __init__(self, policy: EarlyExit, threshold: float, h: Tensor) -> None:
        super().__init__()
        self._policy, self._threshold = policy, threshold
        self._runs = h.new_ones(len(h), dtype=torch.bool)
        self._before = h
        self._shares: list[Tensor] = []

    def enter(self, unit: int, h: Tensor) -> Choice:
        if unit == self._policy.unit:
            self._runs = torch.zeros_like(self._runs)
        self._before = h
        self._shares.append(self._runs.float().mean())
        return Choice(self._runs)

    def leave(self, unit: int, h: Tensor) -> None:
        done = unit + 1
        if self._policy.first <= done < self._policy.unit:
            sure = self._policy.measure(self._before, h) > self._threshold
            self._runs = self._runs & ~sure
        if done == self._policy.units and self._policy.training:
            self.expected = torch.stack(self._shares)


class _Random(Walk):
    def __init__(self, policy: RandomSkip, h: Tensor, tokens: Tokens) -> None:
        super().__init__()
        self._policy = policy
        self._key = None if policy.training else _key(h, tokens.position, policy.seed)
        if policy.training:
            self.expected = 1 - torch.tensor(policy.rates, dtype=torch.float32, device=h.device)

    def enter(self, unit: int, h: Tensor) -> Choice:
        rate = self._policy.rates[unit]
        if self._key is None:
            return Choice(torch.rand(len(h), dtype=torch.float32, device=h.device) >= rate)
        return Choice(_uniform(_mixed(self._key + 0x632BE59BD9B4E019 * (unit + 1) % 2**62)) >= rate)


def _saturation(before: Tensor, after: Tensor) -> Tensor:
    return cosine_similarity(before, after, dim=1)


def _key(h: Tensor, position: Tensor, seed: int) -> Tensor:
    """int64[tokens] of what a token is at the start, and its place."""
    bits = h.detach().float().contiguous().view(torch.int32).long()
    key = _mixed(position.long() + seed % 2**31 * 0x9E3779B1)
    for column in bits[:, :4].unbind(1):  # few numbers tell the rows of an embedding apart
        key = _mixed(key ^ column)
    return key


def _mixed(x: Tensor) -> Tensor:
    """Bits that look random, from int64 (after SplitMix64, with arithmetic shifts)."""
    x = (x ^ (x >> 30)) * -0x40A7B892E31B1A47
    x = (x ^ (x >> 27)) * -0x6B2FB644ECCEEE15
    return x ^ (x >> 31)


def _uniform(x: Tensor) -> Tensor:
    return ((x >> 8) & 0xFFFFFF).float() / 2**24
