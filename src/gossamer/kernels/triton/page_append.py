"""page_append: a program has one head of one page, its new tokens and those it had: a byte may be shared by both."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gossamer.kernels.triton.pages import blocks_of, load_matrix, nearest, rounded, way
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
def write_tile(at, x, t, d, fresh, live, down, columns, WAY: tl.constexpr):
    """x[tokens, width] (codes, or numbers) into a matrix of a page; `down`: whether its rows are coordinates."""
    row = tl.where(down, d[None, :], t[:, None])
    column = tl.where(down, t[:, None], d[None, :])
    mask = fresh[:, None] & live[None, :]
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
    new_keys, new_values, sources, keys, values, key_scales, value_scales, extremes, moments, offsets, lengths, table,
    block_request, block_page, count, key_heads, pool_heads, cols,
    W: tl.constexpr, WIDE: tl.constexpr, P: tl.constexpr, WAY: tl.constexpr, EXTREMES: tl.constexpr,
    MOMENTS: tl.constexpr,
):  # fmt: skip
    b, h = tl.program_id(0), tl.program_id(1)
    r = tl.load(block_request + b).to(tl.int64)
    if r >= 0:
        row, fresh, there, place = tokens_of(offsets, lengths, table, r, tl.load(block_page + b), count, cols, P)
        t, d = tl.arange(0, P), tl.arange(0, WIDE)
        live = d < W
        source = (row * key_heads + tl.load(sources + h)) * W
        tile = place * pool_heads + h
        tile_size = (W * P) // (2 if WAY == 2 else 1)
        # Coordinates that are none take the row's first number, so that they do not change its range.
        d_or_first = tl.where(live, d, 0)
        for which in tl.static_range(2):
            new = new_keys if which == 0 else new_values
            to = (keys if which == 0 else values) + tile * tile_size
            x = tl.load(
                new + source[:, None] + d_or_first[None, :], mask=fresh[:, None] & (d >= 0)[None, :], other=0
            ).to(tl.float32)
            if WAY > 0:
                scales = (key_scales if which == 0 else value_scales) + tile * 2 * P
                scale, zero = range_of(x, x, MOST=255 if WAY == 1 else 15)
                code = codes_of(x, scale, zero, MOST=255 if WAY == 1 else 15)
                tl.store(scales + t, scale.to(tl.bfloat16), mask=fresh)
                tl.store(scales + P + t, zero.to(tl.bfloat16), mask=fresh)
                write_tile(to, code, t, d, fresh, live, which == 0, P if which == 0 else W, WAY=WAY)
            else:
                write_tile(to, x, t, d, fresh, live, which == 0, P if which == 0 else W, WAY=WAY)
        if (EXTREMES > 0) | (MOMENTS > 0):
            tl.debug_barrier()
            from_page = load_matrix(keys + tile * tile_size, d, t, P, live[:, None] & there[None, :], WAY)
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
def sketch_pages(
    new_keys, sources, sketches, scales, offsets, lengths, table, block_request, block_page, count, key_heads,
    pool_heads, cols, W: tl.constexpr, E: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
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
        scale, zero = range_of(tl.minimum(low, high) + nothing, tl.maximum(low, high) + nothing, MOST=15)
        tl.store(scales + tile * 2 * P + t, scale.to(tl.bfloat16), mask=fresh)
        tl.store(scales + tile * 2 * P + P + t, zero.to(tl.bfloat16), mask=fresh)
        codes = codes_of(low, scale, zero, MOST=15) | (codes_of(high, scale, zero, MOST=15) << 4)
        to = tile * (W * P // 2) + (e // 4 * (P * 4) + e % 4)[None, :] + (t * 4)[:, None]
        tl.store(sketches + to, codes, mask=fresh[:, None] & live[None, :])


def page_append(
    new_keys: Tensor, new_values: Tensor, sources: Tensor, keys: Tensor, values: Tensor, key_scales: Tensor | None,
    value_scales: Tensor | None, stored: str, extremes: Tensor | None, moments: Tensor | None,
    sketches: Tensor | None, sketch_scales: Tensor | None, offsets: Tensor, lengths: Tensor, table: Tensor,
) -> None:  # fmt: skip
    """See `gossamer.kernels.reference.page_append`; tokens whose page is none are dropped, without a host sync."""
    count, pool_heads, width = keys.shape[:3]
    tokens, page = len(new_keys), values.shape[2]
    most = tokens // page + 2 * len(lengths)
    if not tokens or not pool_heads:
        return
    first = lengths - offsets.diff()
    pages = torch.where(offsets.diff() > 0, (lengths - 1) // page - first // page + 1, 0)
    request, number = blocks_of(pages, 1, most)
    structure = offsets, lengths, table, request, number, count, new_keys.shape[1], pool_heads, table.shape[1]
    with on_device(keys):
        append_pages[(most, pool_heads)](
            new_keys, new_values, sources, keys, values, key_scales, value_scales, extremes, moments, *structure,
            W=width, WIDE=triton.next_power_of_2(width), P=page, WAY=way(stored),
            EXTREMES=0 if extremes is None else extremes.shape[2], MOMENTS=0 if moments is None else moments.shape[2],
        )  # fmt: skip
        if sketches is not None:
            sketch_pages[(most, pool_heads)](
                new_keys, sources, sketches, sketch_scales, *structure, W=width,
                E=triton.next_power_of_2(width // 2), P=page,
            )  # fmt: skip
