"""page_append: new keys and values into the pages of their requests."""

from __future__ import annotations

from torch import Tensor

from gossamer.ops.paged.arguments import check_pages, check_rows, heads_or_first
from gossamer.ops.paged.pool import Batch, PagePool
from gossamer.ops.registration import Backend, register
from gossamer.ops.transforms import check_transforms

page_append_on = register(
    "page_append",
    "(Tensor keys, Tensor values, Tensor heads, Tensor(a!) pool_keys, Tensor(b!) pool_values, Tensor(c!)? key_scales, "
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
    check_transforms("gossamer.ops.page_append", keys, values)
    check_pages(pool, batch, backend)
    width = pool.width
    check_rows("keys", keys, width)
    check_rows("values", values, width)
    if values.shape != keys.shape:
        raise ValueError(f"values must have the shape of keys, {list(keys.shape)}, got {list(values.shape)}")
    page_append_on(backend)(
        keys.float(), values.float(), heads_or_first(heads, pool, "keys", keys.shape[1]), *pool.numbers, pool.extremes,
        pool.moments, pool.sketches, pool.sketch_scales, batch.offsets, batch.lengths, batch.table,
    )  # fmt: skip
