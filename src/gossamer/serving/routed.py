"""A pass through a model in which each slot takes only some of the tokens, of texts whose keys lie in pages.

    routed = cache.route(batch, new, mask, device=..., dtype=...)
    past = routed.at(slot, rows)          # what a layer gets as past_key_values for the tokens at `rows`

The layer runs on one packed row [1, tokens, width] with attn_implementation="gossamer" and no mask. Its tokens attend
to what the slot holds of their texts: the keys of those tokens that took it, now and in earlier passes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from gossamer.serving.attend import LayerAttention
from gossamer.serving.requests import Step
from gossamer.serving.store import Store
from gossamer.serving.ticket import Attends, Ticket


class SlotKeys:
    """What a layer gets as past_key_values for the tokens that take a slot."""

    def __init__(self, routed: RoutedPass, slot: int, rows: list[int] | None) -> None:
        self.routed, self.index, self.rows = routed, slot, rows

    @property
    def window(self) -> int | None:
        return self.routed.store.geometry.layers[self.index].window

    @torch.compiler.disable
    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Tickets for new states [1, key heads, tokens, width]."""
        self.routed.check(self.index, key_states, value_states)
        count = self.routed.tokens if self.rows is None else len(self.rows)
        if (key_states.shape[0], key_states.shape[2]) != (1, count):
            raise ValueError(
                f"slot {self.index} takes one row of {count} tokens in this call, got keys {list(key_states.shape)}"
            )
        return Ticket(key_states, self), Ticket(value_states, self)  # type: ignore[return-value]

    def enter(self, mask: Tensor | None) -> tuple[Step, Tensor | None]:
        """The part of the pass that the slot takes."""
        _refuse(mask)
        return self.routed.store.narrow(self.routed.step, self.index, self.rows), None

    def attending(self, scale: float | None, cap: float) -> Attends:
        return self.routed.attention(self.index, scale, cap)


def _refuse(mask: Tensor | None) -> None:
    if mask is not None:
        raise ValueError(f"attention_mask must be None for packed tokens, got {list(mask.shape)}")


class RoutedPass:
    """One pass through a model; made by `PagedCache.route`.

    Attributes:
        tokens: how many real tokens it has, text after text; padding is left out.
        places: int64[tokens], which of the new tokens of all rows, row after row, they are; None: all of them.
        texts: the rows. decoding: the first so many have one token, which follows on what was generated.
        memory: for each text what its policies remember from pass to pass.
    """

    def __init__(
        self, store: Store, step: Step, places: Tensor | None,
        attention: Callable[[int, float | None, float], LayerAttention],
        check: Callable[[int, Tensor, Tensor], None],
    ) -> None:  # fmt: skip
        self.store, self.step, self.places = store, step, places
        self.attention, self.check = attention, check
        self.tokens, self.texts, self.decoding = step.tokens, len(step.requests), step.decoding
        self.memory = [request.memory for request in step.requests]

    @cached_property
    def text(self) -> Tensor:
        """int64[tokens]: of which text each is."""
        counts = torch.tensor(self.step.counts, dtype=torch.int64)
        return torch.arange(self.texts).repeat_interleave(counts).to(self.store.device)

    @cached_property
    def position(self) -> Tensor:
        """int64[tokens]: the place of each in its text."""
        before = [
            length - count - start
            for length, count, start in zip(self.step.lengths, self.step.counts, self.step.starts, strict=False)
        ]
        return torch.arange(self.tokens, device=self.store.device) + self.text.new_tensor(before)[self.text]

    def at(self, slot: int, rows: Tensor | None = None) -> SlotKeys:
        """What the layer of a slot gets as past_key_values.

        Args:
            rows: int64[n], ascending: which of the tokens run it; None: all.

        Raises:
            ValueError: there is no such slot, or no such tokens. When the layer attends: the slot has some of them, or
                it has a window of the model's own and lacks tokens.
        """
        return SlotKeys(self, self._slot(slot), None if rows is None else self._rows("rows", rows))

    def _slot(self, slot: int) -> int:
        count = len(self.store.parts)
        if not 0 <= slot < count:
            raise ValueError(f"slot must be from 0 to {count - 1}, got {slot}")
        return slot

    def _rows(self, name: str, rows: Tensor) -> list[int]:
        if not isinstance(rows, Tensor) or rows.dtype != torch.int64 or rows.dim() != 1:
            found = f"{rows.dtype}{list(rows.shape)}" if isinstance(rows, Tensor) else type(rows).__name__
            raise ValueError(f"{name} must be int64[n], places among the {self.tokens} tokens, got {found}")
        places: list[int] = rows.tolist()
        if places and not (places[0] >= 0 and places[-1] < self.tokens and all(a < b for a, b in pairwise(places))):
            raise ValueError(f"{name} must be ascending places from 0 to {self.tokens - 1}, got {places!r:.80}")
        return places
