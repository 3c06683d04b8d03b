"""What the store keeps of each text, and what one pass through the model works on."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from gossamer.ops.paged.pool import Batch
from gossamer.serving.paging.kept import Kept
from gossamer.serving.sparsity import View


@dataclass(frozen=True, eq=False)
class Chosen:
    """Pages that one request reads in one layer, int32[heads, count], and its length when it chose them."""

    pages: Tensor
    length: int


@dataclass(eq=False)
class Request:
    """One text.

    Attributes:
        length: tokens that lie in pages.
        tables: for each view its pages in order; -1 for pages that were given back.
        chosen: for each (slot, part of it) that chooses, what it reads.
        kept: for each slot what it holds; empty while all hold all.
        memory: what those who decide about its tokens remember from pass to pass.
        token_budget: tokens that its heads read where they choose; 0: all; None: as all texts of the store.
        outdated: whether other weights than the present ones made some of its keys.
    """

    length: int = 0
    tables: dict[View, list[int]] = field(default_factory=dict)
    chosen: dict[tuple[int, int], Chosen] = field(default_factory=dict)
    kept: list[Kept] = field(default_factory=list)
    memory: dict[str, Any] = field(default_factory=dict)
    token_budget: int | None = None
    outdated: bool = False


@dataclass(frozen=True, eq=False)
class Batches:
    """All requests of a pass as ops take them; the first ones, which decode; and the others."""

    every: Batch
    decoding: int

    @cached_property
    def ones(self) -> Batch:
        every, count = self.every, self.decoding
        if count == every.requests:
            return every
        return Batch(every.offsets[: count + 1], every.lengths[:count], every.table[:count])

    @cached_property
    def others(self) -> Batch:
        every, count = self.every, self.decoding
        if not count:
            return every
        starts = every.offsets[count:]
        return Batch(starts - starts[0], every.lengths[count:], every.table[count:])


@dataclass(frozen=True, eq=False)
class Step:
    """What one pass through the model works on: new tokens of some requests.

    Attributes:
        requests, counts: who, and how many new tokens each has; those that decode one come first.
        lengths: how many tokens each has with these; in the part of the pass that a slot takes, how many the slot has.
        decoding: how many of them decode.
        batches: for each view all of them, as ops take them.
        uneven: whether slots hold different tokens, so that each has to be asked.
        parts: those that slots took, by counts and lengths: many slots often take the same.
    """

    requests: tuple[Request, ...]
    counts: tuple[int, ...]
    lengths: tuple[int, ...]
    decoding: int
    batches: dict[View, Batches]
    uneven: bool = False
    parts: dict[tuple[tuple[int, ...], tuple[int, ...]], Step] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        return sum(self.counts)

    @cached_property
    def starts(self) -> list[int]:
        """The first token of each request, of all new ones; and behind them how many there are."""
        return [0, *accumulate(self.counts)]

    def part(self, counts: tuple[int, ...], lengths: tuple[int, ...]) -> Step:
        """The same pass with fewer new tokens, or fewer before them; requests that have no new ones are left out."""
        if counts == self.counts and lengths == self.lengths:
            return self
        found = self.parts.get((counts, lengths))
        if found is None:
            found = self.parts[counts, lengths] = self._part(counts, lengths)
        return found

    def _part(self, counts: tuple[int, ...], lengths: tuple[int, ...]) -> Step:
        which = [at for at, count in enumerate(counts) if count]
        counts, lengths = tuple(counts[at] for at in which), tuple(lengths[at] for at in which)
        decoding, batches = sum(at < self.decoding for at in which), {}
        device = next(iter(self.batches.values())).every.lengths.device
        offsets, held = (torch.tensor(x, dtype=torch.int64, device=device) for x in ([0, *accumulate(counts)], lengths))
        for view, batch in self.batches.items():
            table = batch.every.table
            if len(which) < len(self.requests):
                table = table[torch.tensor(which, dtype=torch.int64, device=device)]
            batches[view] = Batches(Batch(offsets, held, table), decoding)
        return Step(tuple(self.requests[at] for at in which), counts, lengths, decoding, batches, self.uneven)
