"""page_choose: the pages that each head reads, by the scores of its queries."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.ops.checks import check_flag
from gossamer.ops.paged.arguments import check_batch
from gossamer.ops.paged.pool import PAGE, Batch
from gossamer.ops.registration import Backend, check_backend, register
from gossamer.ops.transforms import check_transforms


def _fake(scores: Tensor, heads: Tensor, group: int, together: bool, lengths: Tensor, count: int, page: int) -> Tensor:
    rows = heads.shape[0] * (1 if together else group)
    return scores.new_empty((scores.shape[0], rows, count), dtype=torch.int32)


page_choose_on = register(
    "page_choose",
    "(Tensor scores, Tensor heads, int group, bool together, Tensor lengths, int count, int page) -> Tensor",
    _fake,
)


def page_choose(
    scores: Tensor,
    batch: Batch,
    count: int,
    *,
    heads: Tensor | None = None,
    group: int = 1,
    together: bool = True,
    page: int = PAGE,
    backend: Backend | None = None,
) -> Tensor:
    """The `count` pages of the highest scores, ascending; of equal scores the earlier. The first page and the newest
    are always among them, if count is at least 2: a single one is the first page. NaN counts as minus infinity.

    Args:
        scores: float32[requests, query heads, pages], as from `page_scores`.
        batch: whose scores these are; each request has at least `count` pages.
        heads: int64[n]: the first query head of each key head; None: every `group`-th.
        group: query heads that share a key head.
        together: what one of a group wants most counts for all of it, who read the same pages; else each has its own.
        page: tokens of a page.
        backend: None for the kernels of the scores' device; "cpu", "triton" or "reference" to insist.

    Returns:
        int32[requests, n, count], or [requests, n * group, count] if not together.

    Raises:
        TypeError, ValueError: naming the argument.

    >>> scores = torch.tensor([[[0.0, 3, 1, 1, 0]]])
    >>> page_choose(scores, Batch.of([1], [300], [range(5)]), 4).tolist()
    [[[0, 1, 2, 4]]]
    """
    if not isinstance(scores, Tensor):
        raise TypeError(f"scores must be a torch.Tensor, got {type(scores).__name__}")
    check_transforms("gossamer.ops.page_choose", scores)
    check_batch(batch)
    check_flag("together", together)
    check_backend(backend, "scores", scores)
    if scores.dim() != 3 or scores.dtype != torch.float32 or scores.shape[0] != batch.requests:
        raise ValueError(
            f"scores must be float32 [{batch.requests}, query heads, pages], got {scores.dtype}{list(scores.shape)}"
        )
    _, query_heads, pages = scores.shape
    for name, value, most, what in (
        ("count", count, pages, f"{pages} pages of scores"),
        ("group", group, query_heads, f"{query_heads} query heads"), ("page", page, 256, "256 tokens of a page"),
    ):  # fmt: skip
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise ValueError(f"{name} must be an integer from 1 to the {what}, got {value!r}")
    if heads is None:
        heads = torch.arange(0, query_heads // group * group, group, device=scores.device)
    elif not isinstance(heads, Tensor) or heads.dtype != torch.int64 or heads.dim() != 1:
        raise TypeError(f"heads must be int64 of one dimension, or None, got {heads!r:.60}")
    return page_choose_on(backend)(scores, heads, group, together, batch.lengths, count, page)
