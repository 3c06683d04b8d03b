"""Which pages the tokens of a prompt read: policies that look at the queries of a block and the keys before it.

    Sparsity(prefill=Antidiagonal(mass=0.9))        # the likeliest pages of each block, until they have 90 %
    Sparsity(prefill=VerticalSlash(vertical=32, slash=32))

A policy says which pages each block of queries reads, with its own page and the first of the text always among them.
Heads of a group read the same. Another policy is another class with the method `choose`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class PrefillPolicy(Protocol):
    """What heads that see everything read of it while a prompt is read."""

    @property
    def beyond(self) -> int:
        """Tokens up to which all is read."""

    def choose(self, q: Tensor, keys: Tensor, page: int, scale: float) -> Tensor:
        """The pages that each block reads.

        Args:
            q: float32[key heads, group, tokens, width], the last tokens of a text; blocks of `page` tokens, which begin
                where pages do.
            keys: float32[key heads, length, width] of the whole text.
            scale: of their products.

        Returns:
            bool[blocks, key heads, pages], nothing after a block's own page.
        """


@dataclass(frozen=True)
class Antidiagonal:
    """The pages with the most of a block's softmax, estimated from sums along antidiagonals.

    Of `stride` queries and keys each, one product stands for all: the sum of every key with the query that mirrors it.
    A block chooses by itself, so how a prompt is cut does not matter.

    Attributes:
        mass: pages are read, the likeliest first, until they have this share of the estimated softmax.
        stride: queries and keys that are summed; a divisor of the page. Work is 1 / stride of the scores.
        most: pages of a block, at most; None: as many as it takes.
        beyond: tokens up to which all pages are read.

    Source: XAttention (arXiv 2503.16428), section 2.

    Raises:
        ValueError: naming the attribute.
    """

    mass: float = 0.9
    stride: int = 16
    most: int | None = None
    beyond: int = 4096

    def __post_init__(self) -> None:
        if not 0 < self.mass <= 1:
            raise ValueError(f"mass must be above 0 and at most 1, got {self.mass}")
        if self.stride not in (1, 2, 4, 8, 16, 32):
            raise ValueError(f"stride must be a power of two up to 32, got {self.stride}")
        if self.most is not None and self.most < 2:
            raise ValueError(f"most must be at least 2 pages, the first and a block's own, or None, got {self.most}")

    def choose(self, q: Tensor, keys: Tensor, page: int, scale: float) -> Tensor:
        heads, group, tokens, width = q.shape
        pages, blocks = -(-keys.shape[1] // page), -(-tokens // page)
        stride, rows = self.stride, page // self.stride
        q = F.pad(q, (0, 0, 0, blocks * page - tokens)).reshape(heads, group, blocks * rows, stride, width)
        keys = F.pad(keys, (0, 0, 0, pages * page - keys.shape[1])).reshape(heads, 1, pages * rows, stride * width)
        scores = (q.flip(3).flatten(3) @ keys.transpose(-1, -2)) * (scale / stride)
        own = torch.arange(pages * rows - blocks * rows, pages * rows, device=q.device)
        scores = scores.masked_fill(torch.arange(pages * rows, device=q.device) > own[:, None], -math.inf)
        mass = scores.softmax(-1).view(heads, group, blocks, rows, pages, rows).sum((1, 3, 5)) / (group * rows)
        return likeliest(mass.transpose(0, 1), self.mass, self.most)


@dataclass(frozen=True)
class VerticalSlash:
    """Pages that all queries look at, and pages at distances that all look at, judged by the last queries.

    What the last `judges` tokens of a chunk attend to stands for the chunk. So how a prompt is cut matters; every chunk
    should be long beside `judges`.

    Attributes:
        vertical: pages with the most softmax, anywhere. slash: distances, in pages, with the most.
        judges: how many of the last queries are asked.
        beyond: tokens up to which all pages are read.

    Source: MInference (arXiv 2407.02490), section 3.2, by pages in place of tokens.
    """

    vertical: int = 32
    slash: int = 32
    judges: int = 64
    beyond: int = 4096

    def __post_init__(self) -> None:
        for name in ("vertical", "slash", "judges"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def choose(self, q: Tensor, keys: Tensor, page: int, scale: float) -> Tensor:
        heads, _, tokens, _ = q.shape
        length = keys.shape[1]
        pages, blocks, judges = -(-length // page), -(-tokens // page), min(self.judges, tokens)
        scores = (q[:, :, -judges:] @ keys[:, None].transpose(-1, -2)) * scale
        at, key = torch.arange(length - judges, length, device=q.device)[:, None], torch.arange(length, device=q.device)
        weights = scores.masked_fill(key > at, -math.inf).softmax(-1).sum(1)  # [heads, judges, length]
        columns = F.pad(weights.sum(1), (0, pages * page - length)).view(heads, pages, page).sum(2)
        distance = ((at - key).clamp(min=0) // page).expand(judges, length)
        slashes = weights.new_zeros(heads, pages).index_add_(1, distance.flatten(), weights.flatten(1))
        chosen = torch.zeros(blocks, heads, pages, dtype=torch.bool, device=q.device)
        best = columns.topk(min(self.vertical, pages), 1).indices
        chosen |= torch.zeros_like(columns, dtype=torch.bool).scatter_(1, best, True)
        own = torch.arange(pages - blocks, pages, device=q.device)
        for near in slashes.topk(min(self.slash, pages), 1).indices.unbind(1):
            # Keys at a distance of d pages lie in the page d before a block's own, or in the one before that.
            for back in (near, near + 1):
                place = own[:, None] - back
                hit = F.one_hot(place.clamp(min=0), pages).bool() & (place >= 0)[..., None]
                chosen |= hit
        return _held(chosen)


def likeliest(mass: Tensor, share: float, most: int | None) -> Tensor:
    """The largest of mass [blocks, heads, pages] until they have the share of it; a block's own page and the first.

    >>> likeliest(torch.tensor([[[0.1, 0.6, 0.2, 0.1]]]), 0.7, None).int().tolist()
    [[[1, 1, 0, 1]]]
    """
    held = _held(torch.zeros_like(mass, dtype=torch.bool))
    order = torch.sort(mass.masked_fill(held, math.inf), dim=2, descending=True, stable=True)
    values = mass.gather(2, order.indices)
    wanted = values.cumsum(2) - values < share
    if most is not None:
        wanted[:, :, most:] = False
    return _held(torch.zeros_like(held).scatter_(2, order.indices, wanted))


def _held(chosen: Tensor) -> Tensor:
    """With the first page and a block's own, and without what is after it."""
    blocks, _, pages = chosen.shape
    own = torch.arange(pages - blocks, pages, device=chosen.device)[:, None, None]
    page = torch.arange(pages, device=chosen.device)
    return (chosen | (page == own) | (page == 0)) & (page <= own)
