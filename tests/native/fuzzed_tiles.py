"""Random arguments of the ops on tiles and on groups of rows."""

from __future__ import annotations

import random
from itertools import pairwise

import torch
from fuzzed_numbers import Arguments, integers, sizes
from torch import Tensor


def pattern(draw: random.Random, rows: int, cols: int, bm: int, bn: int) -> tuple[Tensor, Tensor]:
    """(offsets, indices) with slack, in any order within a row."""
    lists: list[list[int]] = []
    chance = draw.choice((0.0, 0.2, 0.6, 1.0))
    for _ in range(-(-rows // bm)):
        row = [column for column in range(-(-cols // bn)) if draw.random() < chance]
        if draw.random() < 0.2:
            draw.shuffle(row)
        lists.append(row)
    ends = [0]
    for row in lists:
        ends.append(ends[-1] + len(row))
    columns = [column for row in lists for column in row] + [draw.choice((0, 65535))] * draw.choice((0, 0, 3))
    return torch.tensor(ends), torch.tensor(columns, dtype=torch.int64).to(draw.choice((torch.uint16, torch.int32)))


def division(draw: random.Random, offsets: Tensor) -> Tensor:
    """Segments of every tile row, in any order, with unused ones among them."""
    segments = [(-1, 0, 0)]
    ends = offsets.tolist()
    for row, (slot, end) in enumerate(pairwise(ends)):
        while slot < end:
            stop = draw.randint(slot + 1, end)
            segments.append((row, slot, stop))
            slot = stop
    draw.shuffle(segments)
    return torch.tensor([segments])


def detect(draw: random.Random) -> Arguments:
    rows, cols, bm, bn = sizes(draw)
    x = integers(draw, rows, cols, density=draw.choice((0.0, 0.1, 1.0)))
    return {"x": x, "bm": bm, "bn": bn, "capacity": draw.choice((0, 3, rows * cols)), "ordered": True}


def gather(draw: random.Random) -> Arguments:
    rows, cols, bm, bn = sizes(draw)
    offsets, indices = pattern(draw, rows, cols, bm, bn)
    x = integers(draw, rows, cols, dtype=draw.choice((torch.float32, torch.float64, torch.int8, torch.bfloat16)))
    return {"x": x, "offsets": offsets, "indices": indices, "bm": bm, "bn": bn}


def scatter(draw: random.Random) -> Arguments:
    rows, cols, bm, bn = sizes(draw)
    offsets, indices = pattern(draw, rows, cols, bm, bn)
    values = integers(draw, len(indices), bm, bn)
    return {"values": values, "offsets": offsets, "indices": indices, "rows": rows, "cols": cols}


def transpose(draw: random.Random) -> Arguments:
    rows, cols, *_ = sizes(draw)
    offsets, indices = pattern(draw, rows, cols, 1, 1)
    return {"offsets": offsets, "indices": indices, "tile_cols": cols}


def dsd(draw: random.Random) -> Arguments:
    rows, k, bm, bk = sizes(draw)
    n = draw.choice((0, 1, 7, 33, 100))
    offsets, indices = pattern(draw, rows, k, bm, bk)
    transposed, stored = draw.random() < 0.5, draw.choice((torch.float32, torch.float64, torch.bfloat16, torch.int8))
    values = integers(draw, len(indices), *((bk, bm) if transposed else (bm, bk)), dtype=stored)
    order = scale = work = None
    if draw.random() < 0.5:
        order = torch.tensor(draw.sample(range(len(indices)), len(indices)), dtype=torch.int64)
        order = order.to(draw.choice((torch.int32, torch.int64)))
    if stored == torch.int8 or draw.random() < 0.3:
        scale = integers(draw, len(indices))
    if draw.random() < 0.5:
        work = division(draw, offsets)
    b = integers(draw, k, n, dtype=torch.float64 if stored == torch.float64 else torch.float32)
    b = b.t().contiguous().t() if draw.random() < 0.5 else b
    return {
        "values": values, "offsets": offsets, "indices": indices, "order": order, "scale": scale, "b": b, "rows": rows,
        "transposed": transposed, "column_major": draw.random() < 0.5, "work": work,
    }  # fmt: skip


def sdd(draw: random.Random) -> Arguments:
    rows, cols, bm, bn = sizes(draw)
    k, dtype = draw.choice((0, 1, 7, 33, 600)), draw.choice((torch.float32, torch.float64))
    offsets, indices = pattern(draw, rows, cols, bm, bn)
    a, b = integers(draw, rows, k, dtype=dtype), integers(draw, k, cols, dtype=dtype)
    a, b = (x.t().contiguous().t() if draw.random() < 0.5 else x for x in (a, b))
    return {"a": a, "b": b, "offsets": offsets, "indices": indices, "bm": bm, "bn": bn}


def gather_mm(draw: random.Random) -> Arguments:
    rows, k, bm, bk = sizes(draw)
    batch, n, dtype = (
        draw.choice((1, 1, 3)),
        draw.choice((0, 1, 7, 33, 100)),
        draw.choice((torch.float32, torch.float64)),
    )
    if batch > 1:
        rows = batch * bm * draw.randint(0, 2)
    offsets, indices = pattern(draw, rows, k, bm, bk)
    return {
        "a": integers(draw, rows, k, dtype=dtype), "offsets": offsets, "indices": indices, "bm": bm, "bk": bk,
        "b": integers(draw, batch, k, n, dtype=dtype), "column_major": draw.random() < 0.5,
    }  # fmt: skip


def _routes(draw: random.Random) -> tuple[int, int, Tensor, Tensor | None, Tensor | None]:
    tokens, groups = draw.choice((0, 5, 40)), draw.choice((0, 1, 4))
    ends = sorted(draw.randint(0, tokens) for _ in range(groups))
    offsets = torch.tensor([draw.choice((0, 0, ends[0])) if ends else 0, *ends])
    some = [torch.tensor(draw.sample(range(tokens), tokens), dtype=torch.int64) for _ in range(2)]
    source, target = (draw.choice((None, x, x.int())) for x in some)
    return tokens, groups, offsets, source, target


def grouped_mm(draw: random.Random) -> Arguments:
    tokens, groups, offsets, source, target = _routes(draw)
    k, n, transposed = draw.choice((0, 1, 30, 300)), draw.choice((0, 1, 40)), draw.random() < 0.5
    return {
        "x": integers(draw, tokens, k), "source": source, "target": target, "offsets": offsets,
        "weights": integers(draw, groups, *((n, k) if transposed else (k, n))), "transposed": transposed,
        "out_rows": tokens + draw.choice((0, 0, 2)),
    }  # fmt: skip


def grouped_outer(draw: random.Random) -> Arguments:
    tokens, _, offsets, source, target = _routes(draw)
    x, dy = integers(draw, tokens, draw.choice((0, 1, 30))), integers(draw, tokens, draw.choice((0, 1, 40)))
    return {"x": x, "dy": dy, "source": source, "target": target, "offsets": offsets}
