"""Slots that hold only some tokens of each text: what they attend to, by hand in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")

from gossamer.serving import SparseCache, Sparsity, hooks
from gossamer.serving.geometry import Geometry, LayerShape

SLOTS, KEY_HEADS, GROUP, WIDTH = 4, 2, 2, 16
GEOMETRY = Geometry((LayerShape(KEY_HEADS, GROUP, WIDTH, None),) * SLOTS, None)
MODULE = torch.nn.Module()
Route = Callable[[int, int, int], bool]
"""Whether the token of a text and a position takes a slot."""


def route(text: int, position: int, slot: int) -> bool:
    """The first slot takes all, the second two of three, the third few, the last none of the first text."""
    return (True, (position + text) % 3 > 0, (position * 7 + text) % 5 == 0, text > 0 and position % 2 == 0)[slot]


def states(text: int, position: int, slot: int) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value of a token, the same whenever it is asked."""
    generator = torch.Generator().manual_seed((text * 5000 + position) * SLOTS + slot)
    drawn = torch.randn(KEY_HEADS * GROUP + 2 * KEY_HEADS, WIDTH, generator=generator)
    return drawn.split([KEY_HEADS * GROUP, KEY_HEADS, KEY_HEADS])


def by_hand(query: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
    k, v = (torch.stack(x).double().repeat_interleave(GROUP, 1) for x in (keys, values))  # [keys, heads, width]
    scores = torch.einsum("hw,khw->hk", query.double(), k) * WIDTH**-0.5
    return torch.einsum("hk,khw->hw", scores.softmax(1), v)


def attend(past: Any, tokens: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """What a layer of transformers does with past_key_values, for the tokens that run it: [tokens, heads, width]."""
    q, k, v = (torch.stack(x, 1)[None] for x in zip(*tokens, strict=True))
    keys, values = past.update(k, v, 0)
    return hooks.attention(MODULE, q, keys, values, None)[0][0]


@dataclass
class Texts:
    """Rows of a cache, and what each slot of them holds by hand."""

    cache: SparseCache
    rows: list[int]  # which text each row is of
    takes: Route = route
    lengths: list[int] = field(default_factory=list)
    held: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    real: Tensor | None = None

    def __post_init__(self) -> None:
        self.lengths = [0] * len(self.rows)

    def step(self, new: Tensor) -> Any:
        """A pass with the columns new: bool[rows, columns], False for padding; checks every output of every slot."""
        self.real = new if self.real is None else torch.cat([self.real, new], 1)
        mask = None if self.real.all() else self.real.long()
        routed = self.cache.route(*new.shape, mask, device="cpu", dtype=torch.float32)
        counts = new.sum(1).tolist()
        expected = [(row, self.lengths[row] + at) for row, count in enumerate(counts) for at in range(count)]
        assert list(zip(routed.text.tolist(), routed.position.tolist(), strict=True)) == expected
        places = torch.arange(new.numel()) if routed.places is None else routed.places
        assert torch.equal(places, new.flatten().nonzero()[:, 0])
        for slot in range(SLOTS):
            rows = [at for at, (row, place) in enumerate(expected) if self.takes(self.rows[row], place, slot)]
            if not rows:
                continue  # nobody asks the slot
            own = [expected[at] for at in rows]
            tokens = [states(self.rows[row], place, slot) for row, place in own]
            every = None if len(rows) == len(expected) else torch.tensor(rows)
            found = attend(routed.at(slot, every), tokens)
            for (row, place), (query, _, _), out in zip(own, tokens, found, strict=True):
                held = self.held.setdefault((slot, row), [])
                held.append(place)
                _, keys, values = zip(*(states(self.rows[row], each, slot) for each in held), strict=True)
                torch.testing.assert_close(out.double(), by_hand(query, keys, values), atol=2e-5, rtol=2e-5)
        self.lengths = [length + count for length, count in zip(self.lengths, counts, strict=True)]
        return routed


def cache_of(**sparsity: Any) -> SparseCache:
    return SparseCache(GEOMETRY, Sparsity(**sparsity))


def columns(*counts: int, width: int | None = None, left: bool = True) -> Tensor:
    """bool[rows, columns] with so many tokens in each row, and padding before or after them."""
    new = torch.arange(width or max(counts)) < torch.tensor(counts)[:, None]
    return new.flip(1) if left else new


@pytest.mark.parametrize("left", [True, False])
def test_each_slot_attends_to_what_it_holds(left):
    """Ragged texts with padding, in chunks, then tokens one by one; the third text begins late."""
    texts = Texts(cache_of(), [0, 1, 2])
    for counts in ((150, 70, 0), (3, 1, 130), (1, 1, 1), (1, 1, 1), (0, 2, 65)):
        texts.step(columns(*counts, left=left))
    for row, request in enumerate(texts.cache.rows):
        assert request.length == texts.lengths[row]
        for slot in range(SLOTS):
            assert request.kept[slot].positions == texts.held.get((slot, row), [])
