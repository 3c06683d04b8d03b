"""Who decides which tokens run which units: one interface for routers, expert choice, early exits and fixed routes.

    walk = policy.begin(h, tokens)
    for unit in range(policy.units):
        choice = walk.enter(unit, h)     # which tokens run it, and by what its contribution is multiplied
        h = ...
        walk.leave(unit, h)

A unit is a layer, or its attention or its MLP alone. A policy holds parameters; its walk holds what belongs to one
pass.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

Phase = Literal["soft", "hard"]


@dataclass(frozen=True, eq=False)
class Tokens:
    """The tokens of a pass, text after text, padding left out.

    Attributes:
        text: int64[tokens], ascending: of which text each is. position: int64[tokens]: its place there.
        texts: how many there are.
        decoding: the first so many texts have one token each, which follows on what was generated.
        memory: for each text what a policy remembers from pass to pass.
    """

    text: Tensor
    position: Tensor
    texts: int
    decoding: int = 0
    memory: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, counts: list[int], starts: list[int] | None = None, *, device: Any = None, decoding: int = 0) -> Tokens:
        """Texts with `counts` tokens each, the first of each at place `starts`.

        >>> Tokens.of([2, 3]).position.tolist()
        [0, 1, 0, 1, 2]
        """
        starts = [0] * len(counts) if starts is None else starts
        device = device or "cpu"
        text = torch.arange(len(counts), device=device).repeat_interleave(torch.tensor(counts, device=device))
        places = [torch.arange(start, start + count, device="cpu") for start, count in zip(starts, counts, strict=True)]
        position = torch.cat(places).to(device) if places else text
        return cls(text, position, len(counts), decoding, [{} for _ in counts])

    def __len__(self) -> int:
        return self.text.numel()


@dataclass(frozen=True, eq=False)
class Choice:
    """What the tokens of a pass do at one unit.

    Attributes:
        rows: bool[tokens]: who runs it; None: all.
        weight: float[tokens] in [0, 1]: what its contribution is multiplied by, differentiable; None: 1.
    """

    rows: Tensor | None = None
    weight: Tensor | None = None


class Walk(ABC):
    """One pass of tokens through all units.

    Attributes:
        decisions: how often a token asked the policy's networks, for counting what that costs.
        losses: further scalars of training, by name, means over tokens, to be kept small; but "entropy" is that of the
            routes in nats, which training begins by keeping large.
        finished: no token of the pass runs any unit that comes.
        expected: float[units]: the mean over tokens of the share in which each unit runs, differentiable; None outside
            of training.
    """

    decisions: int = 0
    finished: bool = False
    expected: Tensor | None = None

    def __init__(self) -> None:
        self.losses: dict[str, Tensor] = {}

    @abstractmethod
    def enter(self, unit: int, h: Tensor) -> Choice:
        """Who runs a unit; units come in order, h [tokens, width] is the state before it."""

    def leave(self, unit: int, h: Tensor) -> None:  # noqa: B027 - most policies decide on entering
        """The unit is done; h [tokens, width] is the state after it."""


class Policy(nn.Module, ABC):
    """Decides for each token of a pass.

    Args:
        units: how many there are. width: of the states.

    Attributes:
        phase: "soft": probabilities, which training begins with; "hard": decisions. In eval mode always hard.
        temperature: what logits are divided by before they are probabilities; training lowers it.
        causal: in eval mode a token's choice depends on nothing behind it, and a prompt routes as token by token.
    """

    phase: Phase = "hard"
    temperature: float = 1.0
    causal: bool = True

    def __init__(self, units: int, width: int) -> None:
        super().__init__()
        for name, value in (("units", units), ("width", width)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
        self.units, self.width = units, width

    @property
    def soft(self) -> bool:
        return self.training and self.phase == "soft"

    @abstractmethod
    def begin(self, h: Tensor, tokens: Tokens) -> Walk:
        """A pass of tokens whose states are h [tokens, width]."""

    def macs(self) -> int:
        """Multiply-adds of one decision of one token."""
        return 0

    def lean(self, amount: float) -> None:
        """Let tokens run more units, or fewer for an amount below 0, by moving what decides in eval mode.

        Raises:
            ValueError: what the policy skips is fixed.
        """
        raise ValueError(f"what a {type(self).__name__} skips is fixed, expected a policy that learned it")

    def asked(self, shares: Tensor) -> Tensor | float:
        """How often a token asks in eval mode, in the mean, when units are run in these shares, float[units]."""
        return 0.0


def predictor(width: int, hidden: int) -> nn.Sequential:
    """One number for each state: what would choose among all tokens, foretold from the token alone."""
    options: dict[str, Any] = {"device": "cpu", "dtype": torch.float32}
    return nn.Sequential(
        nn.LayerNorm(width, **options), nn.Linear(width, hidden, **options), nn.GELU(), nn.Linear(hidden, 1, **options)
    )
