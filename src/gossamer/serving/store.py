"""The memory of keys and values: pools for the heads of each layer, and for each request its pages and its length.

    store = Store(geometry, sparsity, stored, parts, {view: pages of it}, device)
    request = store.open()
    step = store.extend([request], [1000])        # pages for 1000 new tokens, to be written and read in each layer
    store.trim([request])                         # windows moved on: what nobody sees is given back
    store.close(request)

All heads that see alike, of all layers, share the numbers of their pages: a request takes a page in all their pools at
once. So a page table is one for a view, not one for a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gossamer.ops.paged.pool import Batch, PagePool, Stored, page_bytes
from gossamer.serving.geometry import Geometry
from gossamer.serving.pages import OutOfPages, Pages
from gossamer.serving.sparsity import Part, Sparsity, View


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
        chosen: for each (layer, part of it) that chooses, what it reads.
    """

    length: int = 0
    tables: dict[View, list[int]] = field(default_factory=dict)
    chosen: dict[tuple[int, int], Chosen] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Step:
    """What one pass through the model works on: new tokens of some requests.

    Attributes:
        requests, counts: who, and how many new tokens each has; those that decode one come first.
        decoding: how many of them decode.
        batches: for each view all of them, those that decode, and the others.
    """

    requests: tuple[Request, ...]
    counts: tuple[int, ...]
    decoding: int
    batches: dict[View, tuple[Batch, Batch, Batch]]

    @property
    def tokens(self) -> int:
        return sum(self.counts)


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
        self.pages = {view: Pages(pages[view]) for view in views(self.parts)}
        self.pools = [
            [self._pool(part, layer, pages[part.view]) for part in parts] for layer, parts in enumerate(self.parts)
        ]
        self.requests: set[Request] = set()

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
        request.chosen.clear()
        request.length = 0

    def needed(self, request: Request, count: int) -> dict[View, int]:
        """Pages that `count` more tokens take in each view, and a copy of one that is shared and not full."""
        page, needed = self.sparsity.page, {}
        for view, table in request.tables.items():
            more = -(-(request.length + count) // page) - len(table)
            partial = count > 0 and request.length % page and self.pages[view].shared(table[-1])
            needed[view] = more + bool(partial)
        return needed

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
        batches = {view: self._batches(view, requests, counts, decoding) for view in self.pages}
        return Step(tuple(requests), tuple(counts), decoding, batches)

    def _extend(self, request: Request, count: int) -> None:
        page = self.sparsity.page
        for view, table in request.tables.items():
            pages = self.pages[view]
            if count and request.length % page and pages.shared(table[-1]):
                (copy,) = pages.take(1)
                self._copy(view, table[-1], copy)
                pages.release(table[-1:])
                table[-1] = copy
            table.extend(pages.take(-(-(request.length + count) // page) - len(table)))
        request.length += count

    def _batches(
        self, view: View, requests: Sequence[Request], counts: Sequence[int], decoding: int
    ) -> tuple[Batch, Batch, Batch]:
        rows = [request.tables[view] for request in requests]
        lengths = [request.length for request in requests]
        every = Batch.of(list(counts), lengths, rows, self.device)
        if decoding == len(counts):
            return every, every, Batch.of([], [], [], self.device)
        if not decoding:
            return every, Batch.of([], [], [], self.device), every
        ones = Batch.of(list(counts[:decoding]), lengths[:decoding], rows[:decoding], self.device)
        others = Batch.of(list(counts[decoding:]), lengths[decoding:], rows[decoding:], self.device)
        return every, ones, others

    def trim(self, requests: Sequence[Request]) -> None:
        """Give back the pages that no token to come sees."""
        page = self.sparsity.page
        for request in requests:
            for view, table in request.tables.items():
                if view.window is None:
                    continue
                first, at = -(-view.sink // page), view.first_seen(request.length) // page - 1
                while at >= first and table[at] >= 0:
                    self.pages[view].release(table[at : at + 1])
                    table[at] = -1
                    at -= 1

    def fork(self, request: Request) -> Request:
        """Another request with the same tokens; pages are shared until one of the two writes."""
        other = self.open()
        other.length, other.chosen = request.length, dict(request.chosen)
        for view, table in request.tables.items():
            self.pages[view].share(page for page in table if page >= 0)
            other.tables[view] = list(table)
        return other

    def crop(self, request: Request, count: int) -> None:
        """Take the last `count` tokens away.

        Raises:
            ValueError: there are not so many, or a window would move back over pages that were given back.
        """
        if not 0 <= count <= request.length:
            raise ValueError(f"count must be from 0 to the {request.length} tokens of the request, got {count}")
        page, length = self.sparsity.page, request.length - count
        for view, table in request.tables.items():
            seen = table[view.first_seen(length) // page : -(-length // page)]
            if -1 in seen:
                raise ValueError(
                    f"{count} tokens cannot be taken away: what a window of {view.window} sees then is gone"
                )
        for view, table in request.tables.items():
            kept = -(-length // page)
            self.pages[view].release(each for each in table[kept:] if each >= 0)
            del table[kept:]
        request.length = length
        request.chosen.clear()

    def grow(self, view: View, count: int) -> None:
        """Have `count` pages of a view, with what they hold."""
        self.pages[view].grow(count)
        for layer, parts in enumerate(self.parts):
            for at, part in enumerate(parts):
                if part.view == view:
                    larger = self._pool(part, layer, count)
                    for old, new in zip(_tensors(self.pools[layer][at]), _tensors(larger), strict=True):
                        new[: old.shape[0]] = old
                    self.pools[layer][at] = larger

    def _copy(self, view: View, source: int, target: int) -> None:
        for parts, pools in zip(self.parts, self.pools, strict=True):
            for part, pool in zip(parts, pools, strict=True):
                if part.view == view:
                    for each in _tensors(pool):
                        each[target] = each[source]


def _tensors(pool: PagePool) -> list[Tensor]:
    every = (*pool.numbers[:4], pool.extremes, pool.moments)
    return [each for each in every if each is not None]


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
            kept = part.kept(sparsity)
            one = page_bytes(part.heads.numel(), shape.width, stored, **kept)  # type: ignore[arg-type]
            taken[part.view] = taken.get(part.view, 0) + one
    return taken


def most_pages(view: View, tokens: int, chunk: int, page: int) -> int:
    """Pages that a request of `tokens` needs at most in a view when no more than `chunk` of them are new at once."""
    whole = -(-tokens // page)
    if view.window is None:
        return whole
    return min(whole, -(-view.sink // page) + -(-(view.window + chunk) // page) + 1)
