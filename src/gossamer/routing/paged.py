"""Passes without gradients: keys lie in the pages of a cache, and the tokens that run a unit in one row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.routing.call import Call, first, with_first
from gossamer.routing.execute import Pass, is_branch
from gossamer.routing.keys import Keys
from gossamer.routing.policies.policy import Choice, Policy, Tokens
from gossamer.routing.stack import Unit
from gossamer.serving.paged_cache import PagedCache


class PagedPass(Pass):
    """A pass through the pages of a cache.

    Args:
        keys: what tokens leave in the units that they skip. cache: of the model; what the model hands its layers is not
            used, since each unit gets what holds its own keys.
    """

    def __init__(
        self, units: Sequence[Unit], policy: Policy, results: Sequence[int | None], adapters: nn.ModuleList | None,
        sink: int, *, keys: Keys, cache: PagedCache,
    ) -> None:  # fmt: skip
        super().__init__(units, policy, results, adapters, sink)
        self.keys, self.cache = keys, cache
        self.places: Tensor | None = None

    def begin(self, call: Call) -> Tokens:
        batch, length = call.states.shape[:2]
        routed = self.cache.route(batch, length, call.mask, device=call.states.device, dtype=call.states.dtype)
        self.places = routed.places
        self.keys.begin(routed)
        return Tokens(routed.text, routed.position, routed.texts, routed.decoding, routed.memory)

    def failed(self) -> None:
        if self.run is not None and len(self.run.ran) < len(self.units) and not self.run.walk.finished:
            self.cache.spoil()

    def real(self, states: Tensor) -> Tensor:
        flat = states.reshape(-1, states.shape[2])
        return flat if self.places is None else flat[self.places]

    def work(self, at: int, forward: Callable[..., Any], call: Call, choice: Choice) -> tuple[Any, Tensor]:
        assert self.run is not None
        unit, total = self.units[at], len(self.run.tokens)
        rows = None if choice.rows is None else choice.rows.nonzero()[:, 0]
        if rows is not None and rows.numel() == total:
            rows = None
        count = total if rows is None else rows.numel()
        self.run.ran.append(count)
        one_row = self.places is None and (call.states.shape[0] == 1 or unit.kind == "mlp")
        if rows is None and choice.weight is None and one_row:
            return self._all(at, forward, call)
        return self._some(at, forward, call, rows, count, choice.weight)

    def _all(self, at: int, forward: Callable[..., Any], call: Call) -> tuple[Any, Tensor]:
        """Every token, which lie in one row already."""
        unit = self.units[at]
        if unit.kind == "mlp":
            result = call.run(forward)
        else:
            result = call.run(forward, cache=self.keys.past(at, None, forward, call, self._rows_of), **_no_mask(call))
        return result, first(result) + call.states if is_branch(unit) else first(result)

    def _some(
        self, at: int, forward: Callable[..., Any], call: Call, rows: Tensor | None, count: int, weight: Tensor | None
    ) -> tuple[Any, Tensor]:
        unit = self.units[at]
        branch = is_branch(unit)
        flat = call.states.reshape(-1, call.states.shape[2])
        index = self._rows_of(rows)
        out = torch.zeros_like(flat) if branch else flat
        result: Any = self.empty(at)
        if count:
            some = flat if index is None else flat[index]
            changed = call.by_token(lambda x: _taken(x, index))
            if unit.kind != "mlp":
                changed |= _no_mask(call)
                changed["cache"] = self.keys.past(at, rows, forward, call, self._rows_of)
            result = call.run(forward, some[None], **changed)
            new = first(result)[0]
            if weight is not None:
                share = (weight if rows is None else weight[rows])[:, None].to(new.dtype)
                new = new + (share - 1) * (new if branch else new - some)
            out = new if index is None else out.index_copy(0, index, new)
        elif unit.kind != "mlp":
            self.keys.nobody(at, forward, call, self._rows_of)
        out = self._adapted(at, flat, out, rows, weight)
        states = out.view_as(call.states)
        return with_first(result, states), states + call.states if branch else states

    def _adapted(self, at: int, flat: Tensor, out: Tensor, rows: Tensor | None, weight: Tensor | None) -> Tensor:
        """What an adapter adds for tokens that skip the unit, or run it in part."""
        if self.adapters is None or (rows is None and weight is None):
            return out
        assert self.run is not None
        share = flat.new_ones(len(self.run.tokens)) if weight is None else weight.to(flat.dtype)
        if rows is not None:
            ran = torch.zeros_like(share)
            ran[rows] = share[rows]
            share = ran
        some = (share < 1).nonzero()[:, 0]
        index = self._rows_of(some)
        return out.index_add(0, index, (1 - share[some])[:, None] * self.skipped(at, flat[index]))

    def _rows_of(self, rows: Tensor | None) -> Any:
        """Where tokens lie among [batch * tokens]; None: they are all, in order."""
        if self.places is None:
            return rows
        return self.places if rows is None else self.places[rows]


def _taken(x: Tensor, index: Tensor | None) -> Tensor:
    """Some tokens of [batch, tokens, ...] in one row."""
    flat = x.reshape(-1, *x.shape[2:])
    return (flat if index is None else flat[index])[None]


def _no_mask(call: Call) -> dict[str, Any]:
    return {"attention_mask": None} if "attention_mask" in call.keywords else {}
