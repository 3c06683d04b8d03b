"""page_append: a program has one head of one page. Codes of keys, all else, and then summaries of what the page holds
are written by kernels of their own: together they would need more registers than there are.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gossamer.kernels.triton.pages import blocks_of, load_keys, nearest, rounded, way
from gossamer.kernels.triton.rows import on_device


@triton.jit
def range_of(low, high, MOST: tl.constexpr):
    """Scale and zero of codes for rows [tokens, width] of numbers from low to high; NaN makes all of a row NaN."""
    bad = tl.sum((low != low).to(tl.int32), axis=1) > 0
    nothing = tl.where(bad, float("nan"), 0.0)
    zero = rounded(tl.min(low, axis=1) + nothing, UP=False)
    return rounded((tl.max(high, axis=1) - zero) / MOST, UP=True), zero


@triton.jit
def codes_of(x, scale, zero, MOST: tl.constexpr):
    ratio = (x - zero[:, None]) / tl.where(scale > 0, scale, 1.0)[:, None]
    near = tl.floor(ratio)
    rest = ratio - near
    up = (rest > 0.5) | ((rest == 0.5) & ((near - 2 * tl.floor(near / 2)) == 1))  # to even
    code = tl.where(up, near + 1, near)
    code = tl.where((scale > 0)[:, None] & (code > 0), tl.minimum(code, MOST), 0.0)
    return code.to(tl.uint8)


@triton.jit
def write_tile(at, x, row, column, columns, mask, WAY: tl.constexpr):
    """x, codes or numbers, into a matrix of a page."""
    if WAY == 2:
        # A byte has two elements of its row, `half` apart. They are written one after the other, beside what is there.
        half = columns // 2
        for part in tl.static_range(2):
            here = mask & (column // half == part)
            byte = tl.load(at + row * half + column % half, mask=here, other=0)
            byte = ((byte & 0xF0) | x) if part == 0 else ((byte & 0x0F) | (x << 4))
            tl.store(at + row * half + column % half, byte, mask=here)
            tl.debug_barrier()
    else:
        if at.dtype.element_ty == tl.bfloat16:
            x = nearest(x)
        tl.store(at + row * columns + column, x.to(at.dtype.element_ty), mask=mask)


@triton.jit
def tokens_of(offsets, lengths, table, r, number, count, cols, P: tl.constexpr):
    """Tokens of a page of request r: their rows among the new ones, which are new, which there are then; the page."""
    begin, length = tl.load(offsets + r), tl.load(lengths + r)
    first = length - (tl.load(offsets + r + 1) - begin)
    p = first // P + number
    place = tl.load(table + r * cols + p, mask=p < cols, other=-1).to(tl.int64)
    at = p * P + tl.arange(0, P)
    there = at < length
    # All of them vectors: the interpreter makes integers of a vector and a scalar.
    fresh = (at >= first) & there & (place + 0 * at >= 0) & (place + 0 * at < count)
    return begin + at - first, fresh, there, tl.where((place >= 0) & (place < count), place, 0)


@triton.jit
def append_pages(
    new_keys, new_values, sources, keys, values, value_scales, offsets, lengths, table, block_request, block_page,
    count, key_heads, pool_heads, cols, W: tl.constexpr, WIDE: tl.constexpr, P: tl.constexpr, WAY: tl.constexpr,
):  # fmt: skip
    """Values, and keys that are no codes."""
    b, h = tl.program_id(0), tl.program_id(1)
    r = tl.load(block_request + b).to(tl.int64)
    if r >= 0:
        row, fresh, _, place = tokens_of(offsets, lengths, table, r, tl.load(block_page + b), count, cols, P)
        t, d = tl.arange(0, P), tl.arange(0, WIDE)
        live = d < W
        source = (row * key_heads + tl.load(sources + h)) * W
        tile = place * pool_heads + h
        tile_size = (W * P) // (2 if WAY == 2 else 1)
        # Coordinates that are none take the row's first number, so that they do not change its range.
        d_or_first = tl.where(live, d, 0)
        at = source[:, None] + d_or_first[None, :]
        whole = fresh[:, None] & (d >= 0)[None, :]
        mask = fresh[:, None] & live[None, :]
        x = tl.load(new_values + at, mask=whole, other=0).to(tl.float32)
        to = values + tile * tile_size
        if WAY > 0:
            scale, zero = range_of(x, x, MOST=255 if WAY == 1 else 15)
            tl.store(value_scales + tile * 2 * P + t, scale.to(tl.bfloat16), mask=fresh)
            tl.store(value_scales + tile * 2 * P + P + t, zero.to(tl.bfloat16), mask=fresh)
            code = codes_of(x, scale, zero, MOST=255 if WAY == 1 else 15)
            write_tile(to, code, t[:, None], d[None, :], W, mask, WAY=WAY)
        else:
            write_tile(to, x, t[:, None], d[None, :], W, mask, WAY=0)
            x = tl.load(new_keys + at, mask=whole, other=0).to(tl.float32)
            write_tile(keys + tile * tile_size, x, d[None, :], t[:, None], P, mask, WAY=0)


@triton.jit
def summarize_pages(
    keys, key_scales, extremes, moments, offsets, lengths, table, block_request, block_page, count, pool_heads, cols,
    W: tl.constexpr, BD: tl.constexpr, P: tl.constexpr, WAY: tl.constexpr, EXTREMES: tl.constexpr,
    MOMENTS: tl.constexpr,
):  # fmt: skip
    """A program has BD coordinates of the keys of a page."""
    b, h = tl.program_id(0), tl.program_id(1)
    r = tl.load(block_request + b).to(tl.int64)
    if r >= 0:
        _, fresh, there, place = tokens_of(offsets, lengths, table, r, tl.load(block_page + b), count, cols, P)
        t, d = tl.arange(0, P), tl.program_id(2) * BD + tl.arange(0, BD)
        live = d < W
        tile = place * pool_heads + h
        from_page = load_keys(keys, tile, d, t, W, P, live[:, None] & there[None, :], WAY)
        if WAY > 0:
            by = tl.load(key_scales + tile * 2 * P + t, mask=there, other=0).to(tl.float32)
            zero = tl.load(key_scales + tile * 2 * P + P + t, mask=there, other=0).to(tl.float32)
            from_page = from_page * by[None, :] + zero[None, :]
        for j in tl.static_range(EXTREMES):
            inside = (t // (P // EXTREMES) == j) & there
            high = tl.max(tl.where(inside[None, :], from_page, -float("inf")), axis=1)
            low = tl.min(tl.where(inside[None, :], from_page, float("inf")), axis=1)
            changed = tl.sum((inside & fresh).to(tl.int32), axis=0)
            to = extremes + (tile * EXTREMES + j) * 2 * W
            tl.store(to + d, rounded(high, UP=True).to(tl.bfloat16), mask=live & (changed + 0 * d > 0))
            tl.store(to + W + d, rounded(low, UP=False).to(tl.bfloat16), mask=live & (changed + 0 * d > 0))
        for j in tl.static_range(MOMENTS):
            inside = (t // (P // MOMENTS) == j) & there
            number = tl.sum(inside.to(tl.float32), axis=0)
            mean = tl.sum(tl.where(inside[None, :], from_page, 0.0), axis=1) / number
            apart = tl.where(inside[None, :], from_page - mean[:, None], 0.0)
            changed = tl.sum((inside & fresh).to(tl.int32), axis=0)
            to = moments + (tile * MOMENTS + j) * 2 * W
            tl.store(to + d, nearest(mean).to(tl.bfloat16), mask=live & (changed + 0 * d > 0))
            tl.store(
                to + W + d,
                nearest(tl.sum(apart * apart, axis=1) / number).to(tl.bfloat16),
                mask=live & (changed + 0 * d > 0),
            )


@triton.jit
def code_keys(
    new_keys, sources, planes, scales, offsets, lengths, table, block_request, block_page, count, key_heads,
    pool_heads, cols, W: tl.constexpr, E: tl.constexpr, P: tl.constexpr, PLANES: tl.constexpr,
):  # fmt: skip
    """Keys as codes in planes, those that attention reads or sketches of them."""
    MOST: tl.constexpr = 255 if PLANES == 2 else 15
    b, h = tl.program_id(0), tl.program_id(1)
    r = tl.load(block_request + b).to(tl.int64)
    if r >= 0:
        row, fresh, _, place = tokens_of(offsets, lengths, table, r, tl.load(block_page + b), count, cols, P)
        t, e = tl.arange(0, P), tl.arange(0, E)
        tile = place * pool_heads + h
        # Byte e has coordinate `lower` in its lower half, and the fourth after it in its upper. Coordinates that are
        # none take the first number, so that they do not change the range.
        lower = e // 4 * 8 + e % 4
        live = lower < W
        at = new_keys + ((row * key_heads + tl.load(sources + h)) * W)[:, None] + tl.where(live, lower, 0)[None, :]
        low = tl.load(at, mask=fresh[:, None] & (e >= 0)[None, :], other=0).to(tl.float32)
        high = tl.load(at + 4, mask=fresh[:, None] & (e >= 0)[None, :], other=0).to(tl.float32)
        nothing = (low - low) + (high - high)
        scale, zero = range_of(tl.minimum(low, high) + nothing, tl.maximum(low, high) + nothing, MOST=MOST)
        tl.store(scales + tile * 2 * P + t, scale.to(tl.bfloat16), mask=fresh)
        tl.store(scales + tile * 2 * P + P + t, zero.to(tl.bfloat16), mask=fresh)
        low, high = codes_of(low, scale, zero, MOST=MOST), codes_of(high, scale, zero, MOST=MOST)
        to = planes + tile * (PLANES * (W * P // 2)) + (e // 4 * (P * 4) + e % 4)[None, :] + (t * 4)[:, None]
        mask = fresh[:, None] & live[None, :]
        if PLANES == 2:
            tl.store(to, (low >> 4) | (high & 0xF0), mask=mask)
            tl.store(to + W * P // 2, (low & 0x0F) | (high << 4), mask=mask)
        else:
            tl.store(to, low | (high << 4), mask=mask)


def page_append(
    keys: Tensor, values: Tensor, heads: Tensor, pool_keys: Tensor, pool_values: Tensor, key_scales: Tensor | None,
    value_scales: Tensor | None, stored: str, extremes: Tensor | None, moments: Tensor | None,
    sketches: Tensor | None, sketch_scales: Tensor | None, offsets: Tensor, lengths: Tensor, table: Tensor,
) -> None:  # fmt: skip
    """See `gossamer.kernels.reference.page_append`; tokens whose page is none are dropped, without a host sync."""
    count, pool_heads, page = pool_values.shape[:3]
    tokens, width = len(keys), keys.shape[2]
    most = tokens // page + 2 * len(lengths)
    if not tokens or not pool_heads:
        return
    first = lengths - offsets.diff()
    pages = torch.where(offsets.diff() > 0, (lengths - 1) // page - first // page + 1, 0)
    request, number = blocks_of(pages, 1, most)
    requests, of_pages = (offsets, lengths, table, request, number, count), (pool_heads, table.shape[1])
    structure = *requests, keys.shape[1], *of_pages
    sizes = {"W": width, "P": page}
    wide = triton.next_power_of_2(width)
    with on_device(pool_keys):
        for planes, scales in ((pool_keys, key_scales), (sketches, sketch_scales)):
            if planes is not None and scales is not None:
                code_keys[(most, pool_heads)](
                    keys, heads, planes, scales, *structure, E=wide // 2, PLANES=planes.shape[2], **sizes
                )
        append_pages[(most, pool_heads)](
            keys, values, heads, pool_keys, pool_values, value_scales, *structure, WIDE=wide, WAY=way(stored), **sizes
        )
        if extremes is not None or moments is not None:
            summarize_pages[(most, pool_heads, triton.cdiv(width, 32))](
                pool_keys, key_scales, extremes, moments, *requests, *of_pages, BD=32, WAY=way(stored),
                EXTREMES=0 if extremes is None else extremes.shape[2],
                MOMENTS=0 if moments is None else moments.shape[2], **sizes,
            )  # fmt: skip
