"""How many pages a memory holds, and how long a text may be."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gossamer.measure import memory
from gossamer.ops.paged.pool import Stored
from gossamer.serving.geometry import Geometry
from gossamer.serving.paging.store import bytes_of_page, most_pages
from gossamer.serving.sparsity import Part, Sparsity, View

Limits = tuple[dict[View, int], int]
"""Pages of each view, and tokens of the longest text."""
SHARE = 0.5
"""Of the memory that is free, keys and values take at most so much if nobody says how much."""


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device; 0 where nothing tells."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else memory.free_memory() or 0


def pages_for(
    geometry: Geometry, sparsity: Sparsity, stored: Stored, parts: Sequence[Sequence[Part]], *, memory: int | None,
    longest: int | None, requests: int, chunk: int, device: torch.device, skips: bool = False,
) -> Limits:  # fmt: skip
    """Pages of each view, and the longest text then.

    What sees a window needs a number of pages that does not grow with the text: `requests` requests have theirs. All
    that is left is for heads that see everything, but not more than all requests at their longest can take. Where
    tokens skip layers, heads that stream need as many: a layer that few tokens take keeps the first pages, which all
    layers share.

    Args:
        memory: bytes for keys and values; None: half of what is free.
        longest: tokens of the longest text; None: what the model was made for, or less if the memory does not hold it.
        chunk: tokens of a prompt that are worked on at once, at most. skips: whether tokens may skip layers.

    Raises:
        ValueError: the memory does not hold one request of `longest` tokens.
    """
    size = bytes_of_page(geometry, sparsity, stored, parts)
    available = int(free_memory(device) * SHARE) if memory is None else memory
    page, wanted = (
        sparsity.page,
        longest or geometry.longest or available // max(sum(size.values()) // sparsity.page, 1),
    )
    streaming = {
        part.view for shape, some in zip(geometry.layers, parts, strict=True) for part in some if not shape.window
    }
    whole = {view for view in size if view.window is None or (skips and view in streaming)}
    windows = {view: requests * most_pages(view, wanted, chunk, page) for view in size if view not in whole}
    left = available - sum(size[view] * count for view, count in windows.items())
    if not whole:
        holds = wanted if left >= 0 else 0
    else:
        holds = max(left, 0) // sum(size[view] for view in whole) * page
    if holds < (wanted if longest is not None else 1):
        least = sum(
            size[view] * (-(-wanted // page) if view in whole else most_pages(view, wanted, chunk, page))
            for view in size
        )
        raise ValueError(
            f"memory of {available:,} bytes holds the keys of {holds:,} tokens beside {requests} requests' windows, "
            f"expected {wanted:,}: one request of that length takes {least:,} bytes; give more memory or a smaller "
            "max_length or max_requests"
        )
    length = min(wanted, holds)
    return windows | dict.fromkeys(whole, min(holds // page, requests * -(-length // page))), length


def least(limits: Sequence[Limits]) -> Limits:
    """What all of several can hold; heads of a view may lie on some of them only.

    >>> all_heads, window = View(None, 0), View(64, 32)
    >>> pages, longest = least([({all_heads: 9}, 500), ({all_heads: 8, window: 4}, 512)])
    >>> pages[all_heads], pages[window], longest
    (8, 4, 500)
    """
    views = dict.fromkeys(view for pages, _ in limits for view in pages)
    return {view: min(pages[view] for pages, _ in limits if view in pages) for view in views}, min(
        longest for _, longest in limits
    )
