"""One layer with grouped heads: its keys and values in pages, and as torch's tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

import gossamer as gs
from gossamer.bench.section import Settings
from gossamer.ops.paged.pool import PAGE, STRETCH, Stored
from gossamer.ops.paged.scores import PageScore

HEADS, GROUP, WIDTH = 8, 4, 128  # key heads, query heads of each, numbers of a head


@dataclass(frozen=True, eq=False)
class Layer:
    """Keys and values [1, heads, length, width] in float32 and bfloat16."""

    keys: Tensor
    values: Tensor

    @classmethod
    def drawn(cls, length: int) -> Layer:
        generator = torch.Generator().manual_seed(0)
        return cls(*(torch.randn(1, HEADS, length, WIDTH, generator=generator) for _ in range(2)))

    @property
    def length(self) -> int:
        return self.keys.shape[2]

    def pool(
        self, stored: Stored, heads: slice = slice(None), by: PageScore | None = None
    ) -> tuple[gs.ops.PagePool, gs.ops.Batch]:
        """Some of the heads in pages that lie in any order, with what ranks them so; and the request that has them."""
        keys, values = (x[0, heads].transpose(0, 1).contiguous() for x in (self.keys, self.values))
        count = -(-self.length // PAGE)
        pool = gs.ops.PagePool.allocate(
            count, keys.shape[1], WIDTH, stored=stored, extremes=STRETCH if by == "extremes" else None,
            moments=STRETCH if by == "moments" else None, sketched=by == "keys",
        )  # fmt: skip
        order = torch.randperm(count, generator=torch.Generator().manual_seed(1)).tolist()
        batch = gs.ops.Batch.of([self.length], [self.length], [order])
        gs.ops.page_append(keys, values, pool, batch)
        return pool, batch


def newest(batch: gs.ops.Batch) -> gs.ops.Batch:
    """The request with its last token as the only new one."""
    return gs.ops.Batch(torch.tensor([0, 1]), batch.lengths, batch.table)


def queries(tokens: int) -> Tensor:
    """[tokens, query heads, width]."""
    return torch.randn(tokens, HEADS * GROUP, WIDTH, generator=torch.Generator().manual_seed(2))


def grouped(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Decoding in two products of all query heads that share a key head: what torch does best on a CPU."""
    scores = (q.view(1, HEADS, GROUP, WIDTH) @ keys.mT) * WIDTH**-0.5
    return torch.softmax(scores, -1) @ values


def torch_attention(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Causal, over all keys, with a query for each."""
    return sdpa(q.transpose(0, 1)[None], keys, values, is_causal=True, enable_gqa=True)


def lengths(settings: Settings, *full: int) -> tuple[int, ...]:
    return (256, 512) if settings.quick else full
