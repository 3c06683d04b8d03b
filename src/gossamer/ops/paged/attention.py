"""page_attention: softmax attention of new tokens over keys and values in pages, all of them or those of a Pattern."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.ops.checks import check_integer, check_number, described
from gossamer.ops.paged.arguments import check_pages, check_rows, heads_or_first, lists_of
from gossamer.ops.paged.pool import Batch, PagePool
from gossamer.ops.registration import Backend, register
from gossamer.ops.transforms import check_transforms
from gossamer.pattern import Pattern

page_attention_on = register(
    "page_attention",
    "(Tensor q, Tensor(a!) out, Tensor(b!)? lse, Tensor heads, int group, Tensor keys, Tensor values, "
    "Tensor? key_scales, Tensor? value_scales, str stored, Tensor offsets, Tensor lengths, Tensor table, "
    "Tensor? list_offsets, Tensor? list_pages, int list_tokens, int? window, int sink, float scale, float cap) -> ()",
)


def page_attention(
    q: Tensor,
    pool: PagePool,
    batch: Batch,
    *,
    heads: Tensor | None = None,
    group: int = 1,
    lists: Pattern | None = None,
    window: int | None = None,
    sink: int = 0,
    scale: float | None = None,
    cap: float = 0.0,
    out: Tensor | None = None,
    lse: Tensor | None = None,
    backend: Backend | None = None,
) -> Tensor:
    """Causal attention of the new tokens of each request, in prefill and in decoding alike.

    A page is read once for all query heads that share it. On a CPU the bits of a token's result depend neither on
    threads, nor on the other requests, nor on how its prompt was cut into calls, nor on pages that it does not see.

    Args:
        q: floats [tokens, query heads, width], computed in float32; or, with stored="bfloat16" on a CPU that multiplies
            bfloat16 numbers, rounded to bfloat16, as softmax weights are, for products that are added up in float32.
        pool, batch: the keys are in the pages already: `page_append` comes first.
        heads: int64[pool.heads], the first query head of each head of the pool; None: every `group`-th from 0.
        group: query heads that share a key head.
        lists: the pages to look at: rows are (block of tokens of a request, head of the pool), in the order of
            requests, blocks, heads; columns are pages of the request, ascending; the tile is (tokens of a block, 1).
            None: all.
        window: of all keys before a token, and itself, the last so many are seen ...
        sink: ... and the first so many. None: all.
        scale: of the products; None: width ** -0.5. cap: scores become cap * tanh(score / cap), if above 0.
        out: float32 like q, in which the heads of this pool are written and others left alone; None: a new one, zero
            there.
        lse: float32[tokens, query heads], which gets the logarithm of the sum of exp(score); None: not wanted.
        backend: None for the kernels of the pool's device; "cpu", "triton" or "reference" to insist.

    Returns:
        out; or without one, a tensor of q's dtype.

    Raises:
        TypeError, ValueError: naming the argument. RuntimeError: q requires a gradient.

    Source: FlashAttention's online softmax (arXiv 2205.14135); sinks and windows as in LServe (arXiv 2502.14866).

    >>> pool, batch = PagePool.allocate(1, 1, 16), Batch.of([2], [2], [[0]])
    >>> from gossamer.ops.paged.append import page_append
    >>> page_append(torch.zeros(2, 1, 16), torch.tensor([[[2.0] * 16], [[4.0] * 16]]), pool, batch)
    >>> page_attention(torch.ones(2, 1, 16), pool, batch)[:, 0, 0].tolist()
    [2.0, 3.0]
    """
    check_transforms("gossamer.ops.page_attention", q)
    check_pages(pool, batch, backend)
    check_rows("q", q, pool.width)
    check_integer("group", group, 1)
    check_integer("sink", sink, 0)
    if window is not None:
        check_integer("window", window, 1)
    scale = pool.width**-0.5 if scale is None else check_number("scale", scale)
    cap = check_number("cap", cap, 0.0)
    for name, given, shape in (("out", out, q.shape), ("lse", lse, q.shape[:2])):
        if given is None:
            continue
        if not isinstance(given, Tensor) or given.dtype != torch.float32 or given.shape != shape:
            raise ValueError(f"{name} must be float32{list(shape)}, got {described(given)}")
    chosen = heads_or_first(heads, pool, "q", q.shape[1], group)
    target = torch.zeros_like(q, dtype=torch.float32) if out is None else out
    page_attention_on(backend)(
        q.float(), target, lse, chosen, group, *pool.numbers, batch.offsets, batch.lengths, batch.table,
        *lists_of(lists), window, sink, scale, cap,
    )  # fmt: skip
    return target if out is not None else target.to(q.dtype)
