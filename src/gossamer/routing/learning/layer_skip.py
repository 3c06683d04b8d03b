"""Training in which a model learns to end early: layers are dropped, and the text is foretold from early layers too.

With L layers, step t of T, p the highest rate, s the scale of exits and R how many steps an exit waits for its turn,

    x[l+1] = x[l] + M f(x[l]),  M = 0 for a text with the rate  p S(t) (2^(l / (L-1)) - 1)
    loss   = sum over l of w(t, l) CE(head(x[l+1])),  w(t, l) = C(t, l) e(l) / sum over i of C(t, i) e(i)
    e(l)   = s (0 + 1 + ... + l) for l < L-1,  e(L-1) = L-1 + s (0 + 1 + ... + L-2)
    C(t, l) = 1 where l = t mod R, modulo R, and for the last layer, else 0

S is 1, or 2^(t / (T-1)) - 1 for a model that is trained from nothing. The norm and the head are the model's own: states
of early layers pass through them as further texts of the batch, so no family needs code here.

Source: Elhoushi et al., LayerSkip, 2024 (arXiv 2404.16710), sections 4.1 and 4.2, with the rotational curriculum.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gossamer.routing.call import first, with_first
from gossamer.routing.learning.batches import IGNORED, labels_of
from gossamer.routing.learning.objective import Outputs, outputs
from gossamer.routing.policies.fixed import EarlyExit
from gossamer.routing.policies.policy import Choice, Policy, Tokens, Walk
from gossamer.routing.radial import Radial


@dataclass(frozen=True)
class LayerSkip:
    """How layers are dropped and exits weighed; the defaults are the paper's for a trained model of 7 B.

    Args:
        dropout: p, the rate of the last layer, in [0, 1]; 0: none is dropped.
        exits: s, the scale of the loss of early exits; 0: there is none.
        every: R: in each step one of so many layers has an exit, in turn; 1: all have.
        rising: whether dropout rises over the steps (S).

    Raises:
        ValueError: an argument is out of its range.

    >>> [round(LayerSkip(dropout=0.2).rate(layer, 5, 0.0), 3) for layer in range(5)]
    [0.0, 0.038, 0.083, 0.136, 0.2]
    >>> LayerSkip(exits=0.5, every=2).weights(1, 4)              # layers 1 and 3: 0.5 and 3 + 0.5 * 3
    {1: 0.1, 3: 0.9}
    """

    dropout: float = 0.1
    exits: float = 0.2
    every: int = 8
    rising: bool = False

    def __post_init__(self) -> None:
        if not (isinstance(self.dropout, (int, float)) and 0 <= self.dropout <= 1):
            raise ValueError(f"dropout must be a rate in [0, 1], got {self.dropout!r}")
        if not (isinstance(self.exits, (int, float)) and math.isfinite(self.exits) and self.exits >= 0):
            raise ValueError(f"exits must be a number of at least 0, got {self.exits!r}")
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 1:
            raise ValueError(f"every must be an integer of at least 1, got {self.every!r}")

    def rate(self, layer: int, layers: int, progress: float) -> float:
        """With which probability a text skips a layer; progress: t / (T - 1)."""
        share = 2**progress - 1 if self.rising else 1.0
        return self.dropout * share * (2 ** (layer / max(layers - 1, 1)) - 1)

    def weights(self, step: int, layers: int) -> dict[int, float]:
        """What the loss behind each layer weighs in a step, of those that have one; they add up to 1."""
        each = {
            layer: self.exits * layer * (layer + 1) / 2
            for layer in range(layers - 1)
            if layer % self.every == step % self.every
        }
        each[layers - 1] = max(layers - 1, 1) + self.exits * (layers - 2) * (layers - 1) / 2
        total = sum(each.values())
        return {layer: weight / total for layer, weight in each.items() if weight}


def check_exits(radial: Radial, budget: float | None) -> None:
    """ValueError for what this cannot train."""
    if not isinstance(radial.policy, EarlyExit):
        raise ValueError(
            f"layer_skip is for the policy EarlyExit, whose exits it trains, got {type(radial.policy).__name__}"
        )
    if budget is not None:
        raise ValueError(f"budget must be None with layer_skip, where exits stay where they are, got {budget}")


def terms(radial: Radial, batch: Mapping[str, Tensor], how: LayerSkip, step: int, steps: int) -> tuple[Outputs, Any]:
    """One pass: (what the whole model says, a function of its own loss -> the parts of the loss of all exits).

    The function gives {"text": ..., "exits": ...}, where "exits" is left out of a step without any.
    """
    layers = radial.stack.layers
    weights = how.weights(step, len(layers))
    policy, rates = radial.policy, [how.rate(at, len(layers), step / max(steps - 1, 1)) for at in range(len(layers))]
    radial.policy = _Dropped(policy, [unit.layer for unit in radial.units], rates)
    early = [layer for layer in weights if layer < len(layers) - 1]
    try:
        with _beside(layers, early):
            out = outputs(radial, batch)
    finally:
        radial.policy = policy
    texts = len(batch["input_ids"])
    logits, labels = out.logits.split(texts), labels_of(batch).flatten()

    def parts(text: Tensor) -> dict[str, Tensor]:
        if not early:
            return {"text": text}
        said = [
            weights[layer] * cross_entropy(each[:, :-1].float().flatten(0, 1), labels, ignore_index=IGNORED)
            for layer, each in zip(early, logits[1:], strict=True)
        ]
        return {"text": weights[len(layers) - 1] * text, "exits": torch.stack(said).sum()}

    return Outputs(logits[0], out.hidden[:texts]), parts


@contextmanager
def _beside(layers: Any, early: list[int]) -> Iterator[None]:
    """Inside, what follows the stack gets the states behind these layers too, as further texts."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, args: Any, out: Any) -> None:
        kept.append(first(out))

    def join(module: nn.Module, args: Any, out: Any) -> Any:
        return with_first(out, torch.cat([first(out), *kept]))

    handles = [layers[at].register_forward_hook(keep) for at in early]
    if early:
        handles.append(layers[-1].register_forward_hook(join))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Dropped(Policy):
    """Each text skips each layer, whole, with the rate of that layer."""

    def __init__(self, policy: Policy, layers: list[int], rates: list[float]) -> None:
        super().__init__(policy.units, policy.width)
        self.layers, self.rates = layers, rates

    def begin(self, h: Tensor, tokens: Tokens) -> Walk:
        return _Drops(self, h, tokens)


class _Drops(Walk):
    def __init__(self, policy: _Dropped, h: Tensor, tokens: Tokens) -> None:
        super().__init__()
        self._policy, self._tokens = policy, tokens
        self._runs: dict[int, Tensor] = {}  # by layer: its attention and its MLP go together
        self.expected = 1 - torch.tensor(
            [policy.rates[layer] for layer in policy.layers], dtype=torch.float32, device=h.device
        )

    def enter(self, unit: int, h: Tensor) -> Choice:
        layer = self._policy.layers[unit]
        if not self._policy.rates[layer]:
            return Choice()
        if layer not in self._runs:
            self._runs[layer] = (
                torch.rand(self._tokens.texts, dtype=torch.float32, device=h.device) >= self._policy.rates[layer]
            )
        return Choice(self._runs[layer][self._tokens.text])
