"""What the ops on pages refuse before their kernels look: few comparisons, for a decoding step calls each of them."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.ops.checks import described
from gossamer.ops.paged.pool import Batch, PagePool
from gossamer.ops.registration import Backend, check_backend
from gossamer.pattern import Pattern


def check_pages(pool: PagePool, batch: Batch, backend: Backend | None) -> None:
    if not isinstance(pool, PagePool):
        raise TypeError(f"pool must be a gossamer.ops.PagePool, got {type(pool).__name__}")
    check_batch(batch)
    check_backend(backend, "pool", pool.keys)


def check_batch(batch: Batch) -> None:
    if not isinstance(batch, Batch):
        raise TypeError(f"batch must be a gossamer.ops.Batch, got {type(batch).__name__}")


def check_rows(name: str, x: Tensor, width: int, rows: str = "tokens") -> None:
    """Floats [rows, heads, width]."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    if not x.is_floating_point() or x.dim() != 3 or x.shape[2] != width:
        raise ValueError(f"{name} must be floats [{rows}, heads, {width}], got {described(x)}")


def heads_or_first(heads: Tensor | None, pool: PagePool, name: str, of: int, group: int = 1) -> Tensor:
    """int64[pool.heads]: those given, or every `group`-th of the `of` heads of the argument called `name`."""
    if heads is None:
        if pool.heads > of:
            raise ValueError(f"{name} must have at least the {pool.heads} heads of pool, or heads say which, got {of}")
        if pool.heads * group > of:
            raise ValueError(
                f"group must be at most {of // pool.heads} for {of} heads of {name} and {pool.heads} of pool, got "
                f"{group}"
            )
        return torch.arange(pool.heads, device=pool.keys.device) * group
    if not isinstance(heads, Tensor) or heads.dtype != torch.int64 or tuple(heads.shape) != (pool.heads,):
        raise ValueError(f"heads must be int64[{pool.heads}], one for each head of the pool, got {heads!r:.60}")
    return heads


def lists_of(lists: Pattern | None) -> tuple[Tensor | None, Tensor | None, int]:
    """Offsets, pages and tokens of a block, as the op takes them, of a Pattern with a row for each block and head."""
    if lists is None:
        return None, None, 2**40
    if not isinstance(lists, Pattern):
        raise TypeError(f"lists must be a gossamer.Pattern or None, got {type(lists).__name__}")
    if lists.tile[1] != 1:
        raise ValueError(f"lists must have tiles (tokens of a block, 1), got {lists.tile}")
    pages = lists.indices.flatten().to(torch.int32)
    return lists.row_offsets(), pages, lists.tile[0]
