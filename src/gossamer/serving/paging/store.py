"""The memory of keys and values: pools for the heads of each layer, and for each request its pages and its length.

    store = Store(geometry, sparsity, stored, parts, {view: pages of it}, device)
    request = store.open()
    step = store.extend([request], [1000])        # pages for 1000 new tokens, to be written and read in each layer
    store.trim([request])                         # windows moved on: what nobody sees is given back
    store.close(request)

All heads that see alike, of all layers, share the numbers of their pages: a request takes a page in all their pools at
once. So a page table is one for a view, not one for a layer.

A slot is one list of keys: a layer, or one of the several times that tokens may pass through it. Tokens may skip slots.
Each slot then has its own length of a request, in `kept`, and fills the first of the request's pages:

    store.separate(step)
    part = store.narrow(step, 3, [0, 1, 5])       # the tokens of the pass that slot 3 takes
"""

from __future__ import annotations

import copy
from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from gossamer.ops.paged.append import page_append
from gossamer.ops.paged.pool import Batch, PagePool, Stored, page_bytes
from gossamer.serving.geometry import Geometry
from gossamer.serving.paging.kept import Kept
from gossamer.serving.paging.pages import OutOfPages, Pages
from gossamer.serving.paging.requests import Batches, Request, Step
from gossamer.serving.sparsity import Part, Sparsity, View


class Store:
    """Pools and page tables of a model.

    Args:
        geometry, sparsity: which heads there are and what is kept of their pages.
        stored: how keys and values are stored. parts: what the heads of each layer see, of `sparsity.parts(geometry)`.
        pages: how many pages each view has; see `views`.

    Raises:
        ValueError: a view without its number of pages.
    """

    def __init__(
        self, geometry: Geometry, sparsity: Sparsity, stored: Stored, parts: Sequence[Sequence[Part]],
        pages: dict[View, int], device: torch.device | str = "cpu",
    ) -> None:  # fmt: skip
        self.geometry, self.sparsity = geometry, sparsity
        self.device = torch.device(device)
        self.stored = stored
        self.parts = parts
        missing = set(views(self.parts)) - pages.keys()
        if missing:
            raise ValueError(f"pages must say how many each view has, and lacks {missing}")
        self.pages = {view: Pages(count) for view, count in pages.items()}  # of heads on other ranks too
        self.pools = [
            [self._pool(part, layer, pages[part.view]) for part in parts] for layer, parts in enumerate(self.parts)
        ]
        self.heads = [[part.heads.to(self.device) for part in parts] for parts in self.parts]
        self.requests: set[Request] = set()
        windows = [shape.window for shape in geometry.layers]
        self._streaming = {  # the slots whose heads see a window of what the slot holds, and not of the text
            view: [at for at, some in enumerate(parts) if windows[at] is None and any(p.view == view for p in some)]
            for view in self.pages if view.window is not None
        }  # fmt: skip

    def _pool(self, part: Part, layer: int, count: int) -> PagePool:
        width = self.geometry.layers[layer].width
        return part.pool(count, width, self.sparsity, self.stored, self.device)

    @property
    def nbytes(self) -> int:
        """Bytes of all pools."""
        return sum(pool.nbytes for pools in self.pools for pool in pools)

    def open(self) -> Request:
        """A request without tokens."""
        request = Request(tables={view: [] for view in self.pages})
        self.requests.add(request)
        return request

    def close(self, request: Request) -> None:
        """Give all its pages back.

        Raises:
            ValueError: it is not open.
        """
        if request not in self.requests:
            raise ValueError("the request is not open")
        self.requests.discard(request)
        for view, table in request.tables.items():
            self.pages[view].release(page for page in table if page >= 0)
            table.clear()
        for each in (request.chosen, request.kept, request.memory):
            each.clear()
        request.length = 0

    def needed(self, request: Request, count: int) -> dict[View, int]:
        """Pages that `count` more tokens take in each view, with copies of those that are shared and not full."""
        page = self.sparsity.page
        return {
            view: -(-(request.length + count) // page) - len(table) + len(self._copied(request, view, count))
            for view, table in request.tables.items()
        }

    def _copied(self, request: Request, view: View, count: int) -> list[int]:
        """Which pages of a request its next `count` tokens may be written to, and are others' too."""
        if not count:
            return []
        page, table, pages = self.sparsity.page, request.tables[view], self.pages[view]
        ends = {len(kept) for kept in request.kept} or {request.length}
        written = {at for end in ends for at in range(end // page, min(-(-(end + count) // page), len(table)))}
        return [at for at in written if table[at] >= 0 and pages.shared(table[at])]

    def extend(self, requests: Sequence[Request], counts: Sequence[int], decoding: int = 0) -> Step:
        """Pages for new tokens, whose keys and values are written by `LayerAttention`.

        Args:
            decoding: so many requests, the first ones, decode: each has one token, which chooses what it reads.

        Raises:
            OutOfPages, ValueError: nothing was taken then.
        """
        if any(count != 1 for count in counts[:decoding]):
            raise ValueError(f"the first {decoding} requests decode one token each, got counts {list(counts)}")
        wanted = [self.needed(request, count) for request, count in zip(requests, counts, strict=True)]
        for view, pages in self.pages.items():
            total = sum(each[view] for each in wanted)
            if total > pages.free:
                raise OutOfPages(f"{total} pages are needed and {pages.free} of {pages.count} are free")
        for request, count in zip(requests, counts, strict=True):
            self._extend(request, count)
        lengths = [request.length for request in requests]
        batches = {}
        for view in self.pages:
            tables = [request.tables[view] for request in requests]
            batches[view] = Batches(Batch.of(list(counts), lengths, tables, self.device), decoding)
        uneven = any(request.kept for request in requests)
        step = Step(tuple(requests), tuple(counts), tuple(lengths), decoding, batches, uneven)
        if uneven:
            self.separate(step)
        return step

    def _extend(self, request: Request, count: int) -> None:
        page = self.sparsity.page
        for view, table in request.tables.items():
            pages = self.pages[view]
            for at in self._copied(request, view, count):
                self._own(request, view, at)
            table.extend(pages.take(-(-(request.length + count) // page) - len(table)))
        request.length += count

    def _own(self, request: Request, view: View, at: int) -> int:
        """Have a copy of a shared page in its place."""
        table, pages = request.tables[view], self.pages[view]
        (copied,) = pages.take(1)
        self._copy(view, table[at], copied)
        pages.release(table[at : at + 1])
        table[at] = copied
        return copied

    def separate(self, step: Step) -> None:
        """From this pass on slots hold different tokens of its requests; each has to be asked, by `narrow`."""
        for request, count in zip(step.requests, step.counts, strict=True):
            if not request.kept:
                request.kept = [Kept(request.length - count) for _ in self.parts]

    def narrow(self, step: Step, slot: int, rows: Sequence[int] | None = None) -> Step:
        """The part of a pass that a slot takes: its pages have room for the keys, which are to be written now.

        Args:
            rows: which of the tokens of the step, ascending; None: all.

        Raises:
            ValueError: the slot has these tokens, or some behind them, already; or it has the model's own window, which
                is one of positions, and lacks tokens. Nothing is taken then.
        """
        taken, window = [], self.geometry.layers[slot].window
        for request, count, start in zip(step.requests, step.counts, step.starts, strict=False):
            before = request.length - count
            mine = range(before, request.length) if rows is None else _positions(rows, start, count, before)
            if mine and mine[0] <= request.kept[slot].last:
                raise ValueError(
                    f"slot {slot} was given the token at {mine[0]} of a text, and holds keys up to "
                    f"{request.kept[slot].last}: each slot takes the tokens of a pass in one call"
                )
            if window is not None and mine:
                self._check_window(slot, window, request, mine)
            taken.append(mine)
        return self._take(step, slot, taken)

    def put(self, step: Step, slot: int, positions: Sequence[Sequence[int]]) -> Step:
        """The part of a pass in which a slot is given keys alone, of earlier tokens too, which are to be written now.

        Args:
            positions: for each request places in its text, ascending.

        Raises:
            ValueError: there is no such token, or the slot has it. Nothing is taken then.
        """
        for request, mine in zip(step.requests, positions, strict=True):
            if not len(mine):
                continue
            if not 0 <= mine[0] <= mine[-1] < request.length or any(a >= b for a, b in pairwise(mine)):
                raise ValueError(
                    f"position must be ascending places among the {request.length} tokens of a text, got {mine!r:.80}"
                )
            if held := request.kept[slot].has(mine):
                raise ValueError(f"slot {slot} holds the keys of tokens {held!r:.80} already")
            window = self.geometry.layers[slot].window
            if window is not None:
                self._check_window(slot, window, request, mine)
        for row, (count, mine) in enumerate(zip(step.counts, positions, strict=True)):
            if len(mine):
                self._own_late(step, row, slot, len(mine) + count)
        return self._take(step, slot, positions)

    def _own_late(self, step: Step, row: int, slot: int, count: int) -> None:
        """Have pages of its own for keys that come late, and for those of the pass, which move on by as many: `extend`,
        which did not know of them, left such pages shared."""
        request, page = step.requests[row], self.sparsity.page
        end = len(request.kept[slot])
        for view in {part.view for part in self.parts[slot]}:
            table = request.tables[view]
            for at in range(end // page, min(-(-(end + count) // page), len(table))):
                if self.pages[view].shared(table[at]):
                    if not self.pages[view].free:
                        self.grow(view, self.pages[view].count * 3 // 2 + 1)
                    step.batches[view].every.table[row, at] = self._own(request, view, at)
                    step.parts.clear()

    def _take(self, step: Step, slot: int, taken: Sequence[Sequence[int]]) -> Step:
        for request, mine in zip(step.requests, taken, strict=True):
            request.kept[slot].add(mine)
        lengths = tuple([len(request.kept[slot]) for request in step.requests])
        return step.part(tuple([len(mine) for mine in taken]), lengths)

    def _check_window(self, slot: int, window: int, request: Request, mine: Sequence[int]) -> None:
        """A window of the model's own counts positions: a token must lie where it would if none had been skipped."""
        kept = request.kept[slot]
        if kept.more or mine[0] != kept.whole or mine[-1] != kept.whole + len(mine) - 1:
            raise ValueError(
                f"slot {slot} has a window of {window} tokens by their positions, and lacks tokens before {mine[-1]}: "
                "layers with a window of the model's own take all tokens"
            )
        page = self.sparsity.page
        for part in self.parts[slot]:
            if -1 in request.tables[part.view][kept.whole // page : -(-(kept.whole + len(mine)) // page)]:
                raise ValueError(f"tokens {list(mine)!r:.80} come too late for the window of {window} of slot {slot}")

    def append(self, slot: int, keys: Tensor, values: Tensor, step: Step) -> None:
        """Write the new keys and values [tokens, key heads, width] of a step, or of the part that the slot takes."""
        keys, values = (x.detach().float().contiguous() for x in (keys, values))
        for at, part in enumerate(self.parts[slot]):
            every = step.batches[part.view].every
            page_append(keys, values, self.pools[slot][at], every, heads=self.heads[slot][at])

    def trim(self, requests: Sequence[Request]) -> None:
        """Give back the pages that no token to come sees."""
        page = self.sparsity.page
        for request in requests:
            for view, table in request.tables.items():
                if view.window is None:
                    continue
                held = min(self._held(request.kept, view, request.length))
                first, at = -(-view.sink // page), view.first_seen(held) // page - 1
                while at >= first and table[at] >= 0:
                    self.pages[view].release(table[at : at + 1])
                    table[at] = -1
                    at -= 1

    def _held(self, kept: Sequence[Kept], view: View, length: int) -> set[int]:
        """How many tokens slots hold whose heads see such a window of them."""
        return {len(kept[slot]) for slot in self._streaming[view]} if kept and self._streaming[view] else {length}

    def fork(self, request: Request) -> Request:
        """Another request with the same tokens; pages are shared until one of the two writes."""
        other = self.open()
        other.length, other.chosen = request.length, dict(request.chosen)
        other.token_budget, other.outdated = request.token_budget, request.outdated
        other.kept, other.memory = [kept.copy() for kept in request.kept], copy.deepcopy(request.memory)
        for view, table in request.tables.items():
            self.pages[view].share(page for page in table if page >= 0)
            other.tables[view] = list(table)
        return other

    def crop(self, request: Request, count: int) -> None:
        """Take the last `count` tokens away.

        Raises:
            ValueError: as `cropped`.
        """
        kept = self.cropped(request, count)
        length = request.length - count
        for view, table in request.tables.items():
            whole = -(-length // self.sparsity.page)
            self.pages[view].release(each for each in table[whole:] if each >= 0)
            del table[whole:]
        request.length, request.kept = length, kept
        request.chosen.clear()

    def cropped(self, request: Request, count: int) -> list[Kept]:
        """What slots would hold without the last `count` tokens.

        Raises:
            ValueError: there are not so many, a window would move back over pages that were given back, or a slot was
                given keys of a token that stays after those of one that goes.
        """
        if not 0 <= count <= request.length:
            raise ValueError(f"count must be from 0 to the {request.length} tokens of the request, got {count}")
        page, length = self.sparsity.page, request.length - count
        kept = [each.cropped(length) for each in request.kept]
        for view, table in request.tables.items():
            ends = {length} if view.window is None else {length} | self._held(kept, view, length)
            if any(-1 in table[view.first_seen(end) // page : -(-end // page)] for end in ends):
                raise ValueError(
                    f"{count} tokens cannot be taken away: what a window of {view.window} sees then is gone"
                )
        return kept

    def grow(self, view: View, count: int) -> None:
        """Have `count` pages of a view, with what they hold."""
        self.pages[view].grow(count)
        for layer, parts in enumerate(self.parts):
            for at, part in enumerate(parts):
                if part.view == view:
                    larger = self._pool(part, layer, count)
                    for old, new in zip(self.pools[layer][at].tensors, larger.tensors, strict=True):
                        new[: old.shape[0]] = old
                    self.pools[layer][at] = larger

    def _copy(self, view: View, source: int, target: int) -> None:
        for parts, pools in zip(self.parts, self.pools, strict=True):
            for part, pool in zip(parts, pools, strict=True):
                if part.view == view:
                    for each in pool.tensors:
                        each[target] = each[source]


def _positions(rows: Sequence[int], start: int, count: int, before: int) -> list[int]:
    """The places in a text of the `rows` that are its new tokens, which begin at row `start` and at place `before`."""
    first = bisect_left(rows, start)
    return [row - start + before for row in rows[first : bisect_left(rows, start + count, lo=first)]]


def views(parts: Sequence[Sequence[Part]]) -> list[View]:
    """What the heads of all layers see, each once."""
    return list(dict.fromkeys(part.view for layer in parts for part in layer))


def bytes_of_page(
    geometry: Geometry, sparsity: Sparsity, stored: Stored, parts: Sequence[Sequence[Part]]
) -> dict[View, int]:
    """Bytes that one page of each view takes, in all layers together."""
    taken: dict[View, int] = {}
    for shape, some in zip(geometry.layers, parts, strict=True):
        for part in some:
            one = page_bytes(part.heads.numel(), shape.width, stored, **part.kept(sparsity))
            taken[part.view] = taken.get(part.view, 0) + one
    return taken


def most_pages(view: View, tokens: int, chunk: int, page: int) -> int:
    """Pages that a request of `tokens` needs at most in a view when no more than `chunk` of them are new at once."""
    whole = -(-tokens // page)
    if view.window is None:
        return whole
    return min(whole, -(-view.sink // page) + -(-(view.window + chunk) // page) + 1)
