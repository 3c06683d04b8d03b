"""page_append: new keys and values into the pages of their requests."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.ops.paged.pool import Batch, PagePool
from gossamer.ops.registration import Backend, check_backend, register

page_append_on = register(
    "page_append",
    "(Tensor new_keys, Tensor new_values, Tensor sources, Tensor(a!) keys, Tensor(b!) values, Tensor(c!)? key_scales, "
    "Tensor(d!)? value_scales, str stored, Tensor(e!)? extremes, Tensor(f!)? moments, Tensor(g!)? sketches, "
    "Tensor(h!)? sketch_scales, Tensor offsets, Tensor lengths, Tensor table) -> ()",
)


def page_append(
    keys: Tensor,
    values: Tensor,
    pool: PagePool,
    batch: Batch,
    *,
    heads: Tensor | None = None,
    backend: Backend | None = None,
) -> None:
    """Write new keys and values into their pages, sketch the keys, and summarize the stretches that changed.

    Summaries are of the numbers that attention will read, after rounding or coding, and of the whole stretch: nothing
    is left of who had the page before.

    Args:
        keys, values: floats [tokens, key heads, width]; keys after their position was turned into them (RoPE).
        pool: written in place; head h holds the model's key head heads[h].
        batch: whose tokens these are; each page that is written belongs to one request.
        heads: int64[pool.heads]; None: the first ones.
        backend: None for the kernels of the pool's device; "cpu", "triton" or "reference" to insist.

    Raises:
        TypeError, ValueError: naming the argument; nothing is written then. RuntimeError: keys or values require a
            gradient.

    Source: the paged cache of LServe (arXiv 2502.14866), section 3.5.

    >>> pool, batch = PagePool.allocate(2, 1, 16), Batch.of([3], [3], [[1]])
    >>> page_append(torch.ones(3, 1, 16), torch.zeros(3, 1, 16), pool, batch)
    >>> float(pool.keys[1, 0, 5, 2])
    1.0
    """
    check_backend(backend, "pool", pool.keys)
    for name, x in (("keys", keys), ("values", values)):
        if not x.is_floating_point() or x.dim() != 3 or x.shape[2] != pool.width:
            raise ValueError(f"{name} must be floats [tokens, heads, {pool.width}], got {x.dtype}{list(x.shape)}")
    page_append_on(backend)(
        keys.float(), values.float(), heads_or_first(heads, pool, keys.shape[1]), *pool.numbers, pool.extremes,
        pool.moments, pool.sketches, pool.sketch_scales, batch.offsets, batch.lengths, batch.table,
    )  # fmt: skip


def heads_or_first(heads: Tensor | None, pool: PagePool, of: int, group: int = 1) -> Tensor:
    """int64[pool.heads]: those given, or every `group`-th of `of`."""
    if heads is None:
        if pool.heads * group > of:
            raise ValueError(f"pool has {pool.heads} heads; expected at most {of // group}")
        return torch.arange(pool.heads, device=pool.keys.device) * group
    if not isinstance(heads, Tensor) or heads.dtype != torch.int64 or tuple(heads.shape) != (pool.heads,):
        raise ValueError(f"heads must be int64[{pool.heads}], one for each head of the pool, got {heads!r:.60}")
    return heads
