"""Run the units of a stack for those tokens that chose them.

A pass with gradients runs every token, or where decisions are hard and keys sparse those of each text that run; a pass
without reads and writes the pages of a cache, and all tokens of a unit lie in one row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.routing.call import Call, first, with_first
from gossamer.routing.masks import some_keys, weighed_keys
from gossamer.routing.policies.policy import Choice, Policy, Tokens, Walk
from gossamer.routing.stack import Unit


@dataclass(eq=False)
class Run:
    """What one pass did.

    Attributes:
        tokens: those of the pass. walk: the policy's, with its losses.
        rows: for each unit who ran it, bool[tokens]; None: all.
        ran: for each unit how many.
    """

    tokens: Tokens
    walk: Walk
    rows: list[Tensor | None] = field(default_factory=list)
    ran: list[int] = field(default_factory=list)

    @property
    def depth(self) -> float:
        """Units that a token ran, in the mean."""
        return sum(self.ran) / max(len(self.tokens), 1)


class Pass(ABC):
    """One pass of a batch through the units, which come in order.

    Args:
        units: those of the stack. policy: who decides.
        results: for each unit how many things its module returns, of which states are the first; None: states alone.
        adapters: for each unit what a token gets that skips it; None: nothing.
        sink: so many tokens at the beginning of each text run every unit, whatever the policy says.
    """

    def __init__(
        self, units: Sequence[Unit], policy: Policy, results: Sequence[int | None], adapters: nn.ModuleList | None,
        sink: int,
    ) -> None:  # fmt: skip
        self.units, self.policy, self.results, self.adapters, self.sink = units, policy, results, adapters, sink
        self.first: Tensor | None = None
        self.run: Run | None = None

    def __call__(self, at: int, forward: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
        """Run unit `at`, whose own forward is given, for who chose it."""
        call = Call.of(args, keywords, type(self.units[at].module).__name__)
        if at == 0:
            tokens = self.begin(call)
            first = tokens.position < self.sink
            self.first = first if self.sink and bool(first.any()) else None
            self.run = Run(tokens, self.policy.begin(self.real(call.states), tokens))
        run = self.run
        if run is None or len(run.ran) != at:
            done = "none" if run is None else f"{len(run.ran)}"
            raise RuntimeError(f"unit {at} was called when {done} of the units before it had run in this pass")
        choice = self._with_first(run.walk.enter(at, self.real(call.states)))
        run.rows.append(choice.rows)
        out, states = self.work(at, forward, call, choice)
        run.walk.leave(at, self.real(states))
        return out

    def _with_first(self, choice: Choice) -> Choice:
        """A choice by which the first tokens run the unit."""
        if self.first is None or (choice.rows is None and choice.weight is None):
            return choice
        rows = None if choice.rows is None else choice.rows | self.first
        return Choice(rows, None if choice.weight is None else choice.weight.masked_fill(self.first, 1.0))

    @abstractmethod
    def begin(self, call: Call) -> Tokens:
        """The tokens of the pass, on its first call."""

    @abstractmethod
    def real(self, states: Tensor) -> Tensor:
        """States [batch, tokens, width] as [real tokens, width]."""

    @abstractmethod
    def work(self, at: int, forward: Callable[..., Any], call: Call, choice: Choice) -> tuple[Any, Tensor]:
        """The unit's result, and the states after it as the policy sees them."""

    def empty(self, at: int) -> Any:
        """What a unit's module returns, without states, where nobody called it."""
        count = self.results[at]
        return None if count is None else (None,) * count

    def failed(self) -> None:  # noqa: B027 - a pass without a cache leaves nothing behind
        """The pass ended in its middle."""

    def skipped(self, at: int, states: Tensor) -> Tensor:
        """What a token adds to its state where it skips a unit that has an adapter."""
        assert self.adapters is not None
        added: Tensor = self.adapters[at](states)
        return added


def is_branch(unit: Unit) -> bool:
    """Whether the module's result is added to the states by its layer, or is the states."""
    return unit.kind != "block"


class DensePass(Pass):
    """A pass with gradients.

    Args:
        sparse: tokens see the keys of those that ran the unit alone; else of all.
        pad: 2D mask of the batch, 0 for padding; None: no padding.
    """

    def __init__(
        self, units: Sequence[Unit], policy: Policy, results: Sequence[int | None], adapters: nn.ModuleList | None,
        sink: int, *, sparse: bool, pad: Tensor | None,
    ) -> None:  # fmt: skip
        super().__init__(units, policy, results, adapters, sink)
        self.sparse = sparse
        self.seen = None if pad is None or bool(pad.all()) else pad.bool()

    def begin(self, call: Call) -> Tokens:
        batch, length = call.states.shape[:2]
        device = call.states.device
        if self.seen is None:
            return Tokens.of([length] * batch, device=device)
        if self.seen.shape != (batch, length):
            raise ValueError(f"attention_mask must have shape {[batch, length]}, got {list(self.seen.shape)}")
        return Tokens.of(self.seen.sum(1).tolist(), device=device)

    def real(self, states: Tensor) -> Tensor:
        return states.flatten(0, 1) if self.seen is None else states[self.seen]

    def whole(self, values: Tensor, states: Tensor, padding: float) -> Tensor:
        """Values [real tokens] as [batch, tokens]."""
        if self.seen is None:
            return values.view(states.shape[:2])
        out = values.new_full(states.shape[:2], padding)
        return out.masked_scatter(self.seen, values)

    def work(self, at: int, forward: Callable[..., Any], call: Call, choice: Choice) -> tuple[Any, Tensor]:
        assert self.run is not None
        unit, branch = self.units[at], is_branch(self.units[at])
        chosen, total = choice.rows, len(self.run.tokens)
        count = total if chosen is None else int(chosen.sum())
        self.run.ran.append(count)
        rows = None if chosen is None or count == total else self.whole(chosen, call.states, False)
        weight = None if choice.weight is None else self.whole(choice.weight, call.states, 1.0).to(call.states.dtype)
        if rows is None:
            changed = {}
            if self.sparse and unit.kind != "mlp" and chosen is None and weight is not None:
                changed["attention_mask"] = weighed_keys(call.mask, weight)
            result = call.run(forward, **changed)
            out = first(result)
        elif self.sparse or unit.kind == "mlp":
            result, out = self._some(at, forward, call, rows, branch)
        else:
            result = call.run(forward)
            out = torch.where(rows[:, :, None], first(result), 0 if branch else call.states)
        if weight is not None:
            # The weight is 1 in number after a hard decision, and then this changes no bit.
            out = out + (weight - 1)[:, :, None] * (out if branch else out - call.states)
        if self.adapters is not None and (rows is not None or weight is not None):
            share = weight if weight is not None else rows.to(out.dtype)  # type: ignore[union-attr]
            out = out + (1 - share)[:, :, None] * self.skipped(at, call.states)
        return with_first(result, out), out + call.states if branch else out

    def _some(self, at: int, forward: Callable[..., Any], call: Call, rows: Tensor, branch: bool) -> tuple[Any, Tensor]:
        """A unit that some tokens run, with each other's keys alone: what the module returns for all of them."""
        nothing = torch.zeros_like(call.states) if branch else call.states
        counts = rows.sum(1)
        most = int(counts.max())
        if most == 0:
            return self.empty(at), nothing
        # The tokens of each text that run come first, in their order.
        index = (~rows).to(torch.uint8).argsort(dim=1, stable=True)[:, :most]
        valid = torch.arange(most, device=rows.device) < counts[:, None]

        def take(x: Tensor) -> Tensor:
            return x.gather(1, index.view(*index.shape, *[1] * (x.dim() - 2)).expand(-1, -1, *x.shape[2:]))

        changed = call.by_token(take)
        if "attention_mask" in call.keywords and not (call.mask is None and bool(valid.all())):
            changed["attention_mask"] = some_keys(call.mask, index, valid)
        some = take(call.states)
        result = call.run(forward, some, **changed)
        out = torch.where(valid[:, :, None], first(result), take(nothing))
        return result, nothing.scatter(1, index[:, :, None].expand_as(out), out)
