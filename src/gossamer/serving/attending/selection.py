"""Which pages a query reads: the best by score, the newest, the first; kept for some steps.

What was chosen belongs to a request and a layer, never to a row of a batch. It is chosen anew after `interval` tokens
and when a page opens, so the page that is being filled is always among the chosen.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gossamer import ops
from gossamer.ops.paged.pool import Batch, PagePool
from gossamer.pattern import Pattern
from gossamer.serving.paging.requests import Chosen, Request
from gossamer.serving.sparsity import Sparsity


@dataclass(eq=False)
class Selection:
    """Chooses for the heads of a part of a layer, and keeps the lists of the last batch.

    Attributes:
        place: the layer and the part, under which requests keep what they chose.
        sparsity: budget, interval, score and whether the heads of a group choose together.
        group: query heads that share a key head.
        scale: of products of queries and keys.
    """

    place: tuple[int, int]
    sparsity: Sparsity
    group: int
    scale: float
    refreshed: int = 0
    _of: tuple[tuple[Request, object], ...] = ()
    _lists: Pattern | None = None

    def lists(
        self, q: Tensor, pool: PagePool, batch: Batch, requests: tuple[Request, ...], lengths: tuple[int, ...],
        heads: Tensor,
    ) -> Pattern | None:  # fmt: skip
        """What each head of each request reads: all pages below the budget, the chosen ones above.

        Args:
            q: [requests, query heads, width]: their newest tokens. lengths: how many tokens each has in the layer.
            heads: int64, the first query head of each head of the pool.

        Returns:
            Rows (request, head of the pool); with select_per="q_head" (request, query head of the pool's groups). None
            if all requests read all.
        """
        page = pool.page
        many = [-(-length // page) for length in lengths]
        read = [self._read(request, pages) for request, pages in zip(requests, many, strict=True)]
        sparse = [at for at, pages in enumerate(many) if pages > read[at]]
        if not sparse:
            return None
        for count in sorted({read[at] for at in sparse}):
            stale = [at for at in sparse if read[at] == count and self._stale(requests[at], lengths[at], page, count)]
            if stale:
                self._choose(q, pool, batch, requests, lengths, stale, heads, count)
        now = tuple((request, self._made(request, *each)) for request, *each in zip(requests, many, read, strict=True))
        if self._lists is None or now != self._of:
            self._lists, self._of = self._pattern(requests, many, read, batch.table.shape[1], heads.numel()), now
        return self._lists

    def _read(self, request: Request, pages: int) -> int:
        """How many of its pages a request reads: its own budget, or that of all."""
        budget = self.sparsity.token_budget if request.token_budget is None else request.token_budget
        return min(budget // self.sparsity.page, pages) if budget else pages

    def _made(self, request: Request, pages: int, read: int) -> object:
        """What tells what a request reads from what it read before: its choice, or how many pages there are."""
        return request.chosen[self.place] if pages > read else pages

    def _stale(self, request: Request, length: int, page: int, count: int) -> bool:
        made = request.chosen.get(self.place)
        if made is None or length - made.length >= self.sparsity.interval:
            return True
        if made.pages.shape[1] != count:  # a fork of a request with another budget
            return True
        return -(-length // page) != -(-made.length // page)

    def _choose(
        self, q: Tensor, pool: PagePool, batch: Batch, requests: tuple[Request, ...], lengths: tuple[int, ...],
        stale: list[int], heads: Tensor, count: int,
    ) -> None:  # fmt: skip
        if len(stale) < len(requests):
            at = torch.tensor(stale, device=q.device)
            batch = Batch(torch.arange(len(stale) + 1, device=q.device), batch.lengths[at], batch.table[at])
            q = q[at]
        scores = ops.page_scores(
            q, pool, batch, by=self.sparsity.score, heads=heads, group=self.group, scale=self.scale
        )
        pages = ops.page_choose(
            scores, batch, count, heads=heads, group=self.group, together=self.sparsity.select_per == "kv_group",
            page=pool.page,
        )  # fmt: skip
        for row, index in enumerate(stale):
            requests[index].chosen[self.place] = Chosen(pages[row], lengths[index])
        self.refreshed += len(stale)

    def _pattern(
        self, requests: tuple[Request, ...], many: list[int], read: list[int], columns: int, heads: int
    ) -> Pattern:
        each = heads * (self.group if self.sparsity.select_per == "q_head" else 1)
        sparse = next(at for at, pages in enumerate(many) if pages > read[at])
        device, rows, counts = requests[sparse].chosen[self.place].pages.device, [], []
        for request, pages, count in zip(requests, many, read, strict=True):
            if pages > count:
                rows.append(request.chosen[self.place].pages.flatten())
            else:
                rows.append(torch.arange(pages, dtype=torch.int32, device=device).repeat(each))
            counts += [count] * each
        offsets = torch.tensor([0, *counts], device=device).cumsum(0)
        return Pattern(offsets, torch.cat(rows), (len(counts), columns), (1, 1))
