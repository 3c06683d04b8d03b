"""One key and one value for each token, those of the layer that it ran last: an experiment, for inference alone.

A layer that a token runs overwrites what the layers before it left of that token. While a prompt is read all tokens are
at the same layer, so a network that skips nothing sees what it always sees. Token by token it does not: the tokens
before are through, and the first layer meets the keys of the last one. The numbers of the two differ, and a model has
to be trained for it; `gossamer.routing` does not train it. Memory would be one layer's in place of all.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from gossamer.serving.attending.routed import RoutedPass
from gossamer.serving.attending.ticket import Attends, Ticket
from gossamer.serving.paging.requests import Step

_NAME = "last keys"


class LastKeys:
    """What a unit gets as past_key_values for the tokens `rows` of a pass; None: all.

    Source: our reading of the global cache of Radial Networks (arXiv 2404.04900), which gives no code.
    """

    window = None

    def __init__(self, routed: RoutedPass, slot: int, rows: Tensor | None) -> None:
        self.routed, self.index = routed, slot
        self.rows = torch.arange(routed.tokens, device=routed.text.device) if rows is None else rows

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **keywords: Any) -> tuple[Ticket, Ticket]:
        """Tickets for new states [1, key heads, tokens, width]."""
        self.routed.check(self.index, key_states, value_states)
        return Ticket(key_states, self), Ticket(value_states, self)

    def enter(self, mask: Tensor | None) -> tuple[Step, Tensor | None]:
        if mask is not None:
            raise ValueError(f"attention_mask must be None for packed tokens, got {list(mask.shape)}")
        return self.routed.step, None

    def attending(self, scale: float | None, cap: float) -> Attends:
        if cap:
            raise ValueError(f'kv="global_last" has no cap of scores, got {cap}')
        return partial(self._attend, scale)

    def _attend(self, scale: float | None, q: Tensor, keys: Tensor, values: Tensor, step: Step) -> Tensor:
        out = torch.empty_like(q)
        text, position = self.routed.text[self.rows], self.routed.position[self.rows]
        for each in text.unique().tolist():
            mine = (text == each).nonzero()[:, 0]
            place = position[mine]
            held = _held(self.routed, each, int(place.max()) + 1, keys)
            held.write(place, keys[mine], values[mine])
            seen = held.there & (torch.arange(len(held.there), device=place.device) <= place[:, None])
            group = q.shape[1] // keys.shape[1]
            every, what = (x.transpose(0, 1).repeat_interleave(group, 0) for x in (held.keys, held.values))
            found = scaled_dot_product_attention(q[mine].transpose(0, 1), every, what, attn_mask=seen, scale=scale)
            out[mine] = found.transpose(0, 1)
        return out


class Held:
    """The keys and values of one text, [tokens, heads, width], and which tokens have some."""

    def __init__(self, like: Tensor) -> None:
        self.keys = self.values = like[:0]
        self.there = torch.zeros(0, dtype=torch.bool, device=like.device)

    def reach(self, length: int) -> None:
        more = length - len(self.there)
        if more > 0:
            nothing = self.keys.new_zeros(more, *self.keys.shape[1:])
            self.keys, self.values = torch.cat([self.keys, nothing]), torch.cat([self.values, nothing])
            self.there = torch.cat([self.there, self.there.new_zeros(more)])

    def cut(self, length: int) -> None:
        self.keys, self.values, self.there = self.keys[:length], self.values[:length], self.there[:length]

    def write(self, place: Tensor, keys: Tensor, values: Tensor) -> None:
        # New tensors: a copy of a text shares the old ones.
        self.keys = self.keys.index_copy(0, place, keys)
        self.values = self.values.index_copy(0, place, values)
        self.there = self.there.index_fill(0, place, True)


def _held(routed: RoutedPass, text: int, length: int, like: Tensor) -> Held:
    held: Held = routed.memory[text].setdefault(_NAME, Held(like))
    held.reach(length)
    return held


def cut(routed: RoutedPass) -> None:
    """Forget tokens that were taken back before this pass."""
    for text, memory in enumerate(routed.memory):
        if _NAME in memory:
            memory[_NAME].cut(routed.first[text])
