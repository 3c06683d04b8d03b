"""A pass through a model in which each slot takes only some of the tokens, of texts whose keys lie in pages.

    routed = cache.route(batch, new, mask, device=..., dtype=...)
    past = routed.at(slot, rows)          # what a layer gets as past_key_values for the tokens at `rows`
    past = routed.at(slot, rows, known=(others, keys, values))       # with keys of others that do not run it
    routed.put(slot, text, position, keys, values)                   # keys alone, also of earlier passes' tokens

The layer runs on one packed row [1, tokens, width] with attn_implementation="gossamer" and no mask. Its tokens attend
to what the slot holds of their texts: the keys of those tokens that took it, now and in earlier passes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from gossamer.serving.attending.attend import LayerAttention
from gossamer.serving.attending.ticket import Attends, Ticket
from gossamer.serving.paging.requests import Step
from gossamer.serving.paging.store import Store


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


class KnownKeys(SlotKeys):
    """The same, where keys of further tokens are known: they lie among the others, and do not attend."""

    def __init__(
        self, routed: RoutedPass, slot: int, rows: list[int], others: list[int], keys: Tensor, values: Tensor
    ) -> None:
        super().__init__(routed, slot, rows)
        self.others, self.states = others, (keys, values)

    def enter(self, mask: Tensor | None) -> tuple[Step, Tensor | None]:
        _refuse(mask)
        every = sorted([*(self.rows or []), *self.others])
        return self.routed.store.narrow(self.routed.step, self.index, every), None

    def attending(self, scale: float | None, cap: float) -> Attends:
        return partial(self._attend, self.routed.attention(self.index, scale, cap))

    def _attend(self, attend: LayerAttention, q: Tensor, keys: Tensor, values: Tensor, step: Step) -> Tensor:
        device, own = q.device, torch.tensor(self.rows, dtype=torch.int64, device="cpu")
        places = torch.cat([own, torch.tensor(self.others, dtype=torch.int64, device="cpu")])
        order = places.argsort().to(device)
        k, v = (torch.cat(both)[order] for both in zip((keys, values), self.states, strict=True))
        self.routed.store.append(self.index, k, v, step)
        # Queries of texts with any are those of all their keys; the ones of others are zeros, and are left out again.
        asks = order < len(own)
        sizes = torch.tensor(step.counts, device="cpu")
        texts = torch.arange(len(sizes), device="cpu").repeat_interleave(sizes).to(device)
        asked = torch.zeros(len(step.counts), dtype=torch.bool, device=device).index_fill_(0, texts[asks], True)
        counts = [count if some else 0 for count, some in zip(step.counts, asked.tolist(), strict=True)]
        wide = q.new_zeros(len(places), *q.shape[1:])
        wide[asks] = q
        reads = asked[texts]
        return attend.attend(wide[reads], step.part(tuple(counts), step.lengths))[asks[reads]]


def _refuse(mask: Tensor | None) -> None:
    if mask is not None:
        raise ValueError(f"attention_mask must be None for packed tokens, got {list(mask.shape)}")


class RoutedPass:
    """One pass through a model; made by `PagedCache.route`.

    Attributes:
        tokens: how many real tokens it has, text after text; padding is left out.
        places: int64[tokens], which of the new tokens of all rows, row after row, they are; None: all of them.
        texts: the rows. decoding: the first so many have one token, which follows on what was generated.
        memory: for each text what its policies remember from pass to pass. first: for each the place of its first token
            of this pass.
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
        self.first = [length - count for length, count in zip(step.lengths, step.counts, strict=True)]

    @cached_property
    def text(self) -> Tensor:
        """int64[tokens]: of which text each is."""
        counts = torch.tensor(self.step.counts, dtype=torch.int64, device="cpu")
        return torch.arange(self.texts, device="cpu").repeat_interleave(counts).to(self.store.device)

    @cached_property
    def position(self) -> Tensor:
        """int64[tokens]: the place of each in its text."""
        before = [first - start for first, start in zip(self.first, self.step.starts, strict=False)]
        return torch.arange(self.tokens, device=self.store.device) + self.text.new_tensor(before)[self.text]

    def at(self, slot: int, rows: Tensor | None = None, known: tuple[Tensor, Tensor, Tensor] | None = None) -> SlotKeys:
        """What the layer of a slot gets as past_key_values.

        Args:
            rows: int64[n], ascending: which of the tokens run it; None: all.
            known: int64[m], ascending: tokens that do not run it, and keys and values [m, key heads, width] of theirs,
                which the slot holds from now on.

        Raises:
            ValueError: there is no such slot, or no such tokens. When the layer attends: the slot has some of them, or
                it has a window of the model's own and lacks tokens.
        """
        places = None if rows is None else self._rows("rows", rows)
        if known is None:
            return SlotKeys(self, self._slot(slot), places)
        others, keys, values = known
        found = self._rows("known", others)
        both = set(range(self.tokens) if places is None else places) & set(found)
        if both:
            raise ValueError(f"known must be tokens that do not run slot {slot}, got {sorted(both)!r:.80} of both")
        self._check_states(self._slot(slot), len(found), keys, values)
        if not found:
            return SlotKeys(self, slot, places)
        return KnownKeys(self, slot, places or [], found, keys, values)

    def put(self, slot: int, text: Tensor, position: Tensor, keys: Tensor, values: Tensor) -> None:
        """Give a slot keys of tokens that it lacks, of this pass or of earlier ones; no attention.

        Args:
            text: int64[n], ascending: of which text each is. position: int64[n], ascending in each text.
            keys, values: [n, key heads, width].

        Raises:
            ValueError: naming the argument; or the slot holds some of them. Nothing is written then.
        """
        self._check_states(self._slot(slot), position.numel(), keys, values)
        texts = text.tolist()
        if len(texts) != position.numel() or any(a > b for a, b in pairwise(texts)) or not self._has(texts):
            raise ValueError(
                f"text must be ascending numbers of {self.texts} texts, as many as positions, {position.numel()}; got "
                f"{texts!r:.80}"
            )
        if not texts:
            return
        each: list[list[int]] = [[] for _ in range(self.texts)]
        for at, place in zip(texts, position.tolist(), strict=True):
            each[at].append(place)
        self.store.append(slot, keys, values, self.store.put(self.step, slot, each))

    def _has(self, texts: list[int]) -> bool:
        return not texts or 0 <= texts[0] <= texts[-1] < self.texts

    def _check_states(self, slot: int, count: int, keys: Tensor, values: Tensor) -> None:
        shape = self.store.geometry.layers[slot]
        expected = (count, shape.key_heads, shape.width)
        for name, states in (("keys", keys), ("values", values)):
            if tuple(states.shape) != expected or states.requires_grad:
                raise ValueError(
                    f"{name} of slot {slot} must be {list(expected)} without gradient, got {list(states.shape)}"
                )

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
