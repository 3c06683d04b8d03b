"""Random arguments, right and broken, to every op of the CPU: each call is refused, or gives the reference's answer.

Run as a program, under the sanitizers (`make test-asan`): `python fuzzed_structure.py --native FILE --trials 4000`.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

REFUSALS = (ValueError, TypeError, RuntimeError)
# Wrong numbers: near, far, and so far that a product of two is beyond 64 bits. Nothing that could be allocated.
NUMBERS = (-(2**63), -(2**50), -1, 0, 1, 2, 5, 13, 2**44, 2**50, 2**56, 2**57, 2**62, 2**63 - 1, 2**63)
ENTRIES = (-(2**63), -(2**31), -7, -1, 0, 1, 2, 3, 9, 40, 65535, 2**31 - 1, 2**31, 2**40, 2**63 - 1)
# Of the arguments, the numbers of these become addresses: they are broken inside, others only in shape and dtype.
STRUCTURE = (
    "offsets", "indices", "order", "source", "target", "work", "candidates", "taken", "lengths", "table", "heads",
    "sources", "list_offsets", "list_pages",
)  # fmt: skip
OF_VALUES = (torch.float32, torch.bfloat16)

WRITES = {
    "fan_in_step": ("values", "bias"), "fan_in_rewire": ("values", "indices", "states", "ages"),
    "fan_in_draw": ("out",), "page_append": ("keys", "values", "key_scales", "value_scales", "extremes"),
    "page_attention": ("out", "lse"),
}  # fmt: skip

Arguments = dict[str, Any]


def integers(draw: random.Random, *shape: int, dtype: torch.dtype = torch.float32, density: float = 1.0) -> Tensor:
    """Small integers, whose sums are exact in any order."""
    seed = torch.Generator().manual_seed(draw.getrandbits(31))
    x = torch.randint(-4, 5, shape, generator=seed)
    return x.mul(torch.rand(shape, generator=seed) < density).to(dtype)


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


def sizes(draw: random.Random) -> tuple[int, int, int, int]:
    """Rows, columns and a tile; sometimes enough for two threads."""
    large = draw.random() < 0.1
    rows, cols = draw.randint(0, 300 if large else 20), draw.randint(0, 300 if large else 40)
    bm, bn = draw.choice(((1, 1), (4, 4), (16, 16), (3, 5), (1, 16), (16, 1), (32, 1), (1, 400), (256, 16), (2, 20)))
    return rows, cols, bm, bn


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


def fan_in_mm(draw: random.Random) -> Arguments:
    rows, cols, *_ = sizes(draw)
    batch, k, dtype = draw.choice((0, 1, 7, 33, 100)), min(cols, 5), draw.choice((torch.float32, torch.float64))
    indices = torch.tensor([draw.sample(range(cols), k) for _ in range(rows)], dtype=torch.int64).view(rows, k)
    x = integers(draw, batch, cols, dtype=dtype)
    return {
        "x": x.t().contiguous().t() if draw.random() < 0.5 else x, "values": integers(draw, rows, k, dtype=dtype),
        "indices": indices.to(draw.choice((torch.uint16, torch.int32))),
    }  # fmt: skip


def fan_in_mm_t(draw: random.Random) -> Arguments:
    drawn = fan_in_mm(draw)
    values, indices = drawn["values"], drawn["indices"]
    dy = integers(draw, draw.choice((0, 1, 7, 33, 100)), len(values), dtype=values.dtype)
    cols = drawn["x"].shape[1]
    return {"dy": dy, "values": values, "indices": indices, "cols": cols}


def fan_in_sdd(draw: random.Random) -> Arguments:
    drawn = fan_in_mm(draw)
    x, indices = drawn["x"], drawn["indices"]
    return {"dy": integers(draw, len(x), len(indices), dtype=x.dtype), "x": x, "indices": indices}


def fan_in_step(draw: random.Random) -> Arguments:
    labels, cols, *_ = sizes(draw)
    batch, group, k = draw.choice((0, 1, 7, 33)), draw.choice((1, 16, 32)), min(cols, 5)
    rows = -(-labels // group)
    indices = torch.tensor([draw.sample(range(cols), k) for _ in range(rows)], dtype=torch.int64).view(rows, k)
    positives = torch.tensor(sorted(draw.sample(range(labels * batch), labels * batch // 3)), dtype=torch.int64)
    return {
        "x": integers(draw, batch, cols), "values": integers(draw, labels, k),
        "indices": indices.to(draw.choice((torch.uint16, torch.int32))), "bias": integers(draw, labels), "states": [],
        "positives": positives, "group": group, "loss": "hinge", "optimizer": "sgd", "lr": 0.25, "weight_decay": 0.0,
        "beta1": 0.0, "beta2": 0.0, "eps": 0.0, "scale": 1.0, "step": 1, "seed": 0,
    }  # fmt: skip


def fan_in_topk(draw: random.Random) -> Arguments:
    """Filters that ascend over all rows, so that they do wherever offsets cut them."""
    labels, cols, *_ = sizes(draw)
    batch, group, k, first = draw.choice((0, 1, 7, 33)), draw.choice((1, 16, 32)), min(cols, 5), draw.choice((0, 2**40))
    rows = -(-labels // group)
    indices = torch.tensor([draw.sample(range(cols), k) for _ in range(rows)], dtype=torch.int64).view(rows, k)
    ids, always = (sorted(draw.sample(range(labels + 9), (labels + 9) // 3)) for _ in range(2))
    cuts = sorted(draw.randint(0, len(ids)) for _ in range(batch))
    filtered = draw.random() < 0.7
    return {
        "x": integers(draw, batch, cols), "values": integers(draw, labels, k, dtype=draw.choice(OF_VALUES)),
        "indices": indices.to(draw.choice((torch.uint16, torch.int32))),
        "bias": draw.choice((None, integers(draw, labels))), "group": group, "best": draw.choice((1, 5, 40)),
        "first": first, "offsets": torch.tensor([0, *cuts]) if filtered else None,
        "ids": torch.tensor(ids) + first if filtered else None,
        "always": draw.choice((None, torch.tensor(always) + first)),
    }  # fmt: skip


def fan_in_rewire(draw: random.Random) -> Arguments:
    """Rows that ascend, and candidates that they do not have."""
    labels, cols, *_ = sizes(draw)
    group, k = draw.choice((1, 16, 32)), draw.randint(0, min(cols, 9))
    rows, spare = -(-labels // group), draw.randint(0, min(cols - k, 4))
    drawn = [draw.sample(range(cols), k + spare) for _ in range(rows)]
    kind = draw.choice((torch.uint16, torch.int32))
    indices, others = (
        torch.tensor([sorted(row[part]) for row in drawn], dtype=torch.int64).view(rows, -1 if rows else size).to(kind)
        for part, size in ((slice(k), k), (slice(k, None), spare))
    )
    chosen = draw.random() < 0.3
    return {
        "values": integers(draw, labels, k, dtype=draw.choice(OF_VALUES)), "indices": indices,
        "states": [integers(draw, labels, k) for _ in range(draw.choice((0, 1, 2)))],
        "ages": draw.choice((None, integers(draw, rows, k).abs().to(torch.uint8))),
        "candidates": others if chosen else None, "scores": integers(draw, rows, spare) if chosen else None,
        "cols": cols, "group": group, "drop": draw.choice((-1, 0, 1, 3, 40)), "threshold": 2.0,
        "everywhere": draw.random() < 0.3, "avoid_dropped": draw.random() < 0.5, "min_age": draw.choice((0, 2)),
        "init": draw.choice((0.0, 0.25)), "seed": draw.getrandbits(40), "step": 3, "first": 0,
    }  # fmt: skip


def fan_in_draw(draw: random.Random) -> Arguments:
    drawn = fan_in_rewire(draw)
    taken, cols = drawn["indices"], drawn["cols"]
    room = torch.zeros(len(taken), draw.randint(0, cols - taken.shape[1])).to(taken.dtype)
    return {"out": room, "taken": draw.choice((None, taken)), "cols": cols, "seed": 5, "step": 1, "first": 0}


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


def _geometry(draw: random.Random) -> tuple[list[tuple[int, int]], tuple[int, ...], tuple[int, ...]]:
    """Kernel, stride, padding and dilation; a size; what comes of it."""
    pairs = [tuple(draw.choice(some) for _ in "HW") for some in ((1, 2, 3, 4), (1, 1, 2, 3), (0, 1, 2), (1, 1, 2))]
    kernel, stride, padding, dilation = pairs
    size = tuple(draw.randint(1, 9) + d * (r - 1) for r, d in zip(kernel, dilation, strict=True))
    rows = [
        (i + 2 * p - d * (r - 1) - 1) // s + 1
        for i, r, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True)
    ]
    return pairs, size, tuple(rows)


def skip_conv(draw: random.Random) -> Arguments:
    pairs, size, result = _geometry(draw)
    n, c, k = draw.choice((0, 1, 3)), draw.choice((1, 7, 16, 40)), draw.choice((1, 8, 24, 70))
    transposed = draw.random() < 0.5
    (h, w), out = (result, size) if transposed else (size, result)
    x = integers(draw, n, h, w, c, density=0.4)
    bits = torch.full((n, h, w, -(-c // 32)), draw.getrandbits(30), dtype=torch.int32)
    return {
        "x": x, "packed": integers(draw, k, c, *pairs[0]), "bias": draw.choice((None, integers(draw, k))),
        "bits": draw.choice((None, bits)), "out": k, "kernel": pairs[0], "stride": pairs[1], "padding": pairs[2],
        "dilation": pairs[3], "transposed": transposed, "size": out, "relu": draw.random() < 0.5,
    }  # fmt: skip


def skip_conv_weight(draw: random.Random) -> Arguments:
    pairs, size, result = _geometry(draw)
    n, c, k = draw.choice((1, 3)), draw.choice((1, 7, 40)), draw.choice((1, 24, 70))
    bits = torch.full((n, *result, -(-k // 32)), draw.getrandbits(30), dtype=torch.int32)
    return {
        "x": integers(draw, n, *size, c, density=0.4), "dy": integers(draw, n, *result, k, density=0.4),
        "bits": draw.choice((None, bits)), "kernel": pairs[0], "stride": pairs[1], "padding": pairs[2],
        "dilation": pairs[3], "skip": draw.choice(("x", "dy")), "channels_last": draw.random() < 0.5,
    }  # fmt: skip


def relu_bits(draw: random.Random) -> Arguments:
    return {"x": integers(draw, draw.choice((0, 3)), draw.choice((0, 1, 31, 32, 70)))}


def keep_bits(draw: random.Random) -> Arguments:
    rows, cols = draw.choice((0, 3)), draw.choice((0, 1, 31, 32, 70))
    bits = torch.full((rows, -(-cols // 32)), draw.getrandbits(30), dtype=torch.int32)
    return {"x": integers(draw, rows, cols), "bits": bits}


def topk_mask(draw: random.Random) -> Arguments:
    n = draw.choice((0, 1, 64, 200))
    allowed = draw.choice((None, torch.rand(n) < 0.5))
    return {
        "scores": integers(draw, n),
        "k": draw.choice((0, 1, n)),
        "largest": draw.random() < 0.5,
        "allowed": allowed,
    }


def skip_mv(draw: random.Random) -> Arguments:
    b, c, k = draw.choice((0, 1, 3, 9)), draw.choice((0, 1, 65, 200)), draw.choice((0, 1, 257))
    return {
        "x": integers(draw, b, c, density=0.4), "w": integers(draw, c, k),
        "bias": draw.choice((None, integers(draw, k))), "threshold": draw.choice((0.0, 1.5)),
    }  # fmt: skip


def gated_mv(draw: random.Random) -> Arguments:
    b, c, k = draw.choice((0, 1, 3, 9)), draw.choice((0, 1, 65, 200)), draw.choice((0, 1, 257))
    return {
        "x": integers(draw, b, c), "w": integers(draw, k, c), "bias": draw.choice((None, integers(draw, k))),
        "gate": integers(draw, b, k, density=0.4),
    }  # fmt: skip


def open_mv(draw: random.Random) -> Arguments:
    b, c, k = draw.choice((0, 1, 3, 8)), draw.choice((0, 1, 65, 200)), draw.choice((0, 1, 9, 257))
    return {
        "x": integers(draw, b, c), "whole": integers(draw, k, c).to(torch.int8), "edges": integers(draw, 2, k).abs(),
        "bias": draw.choice((None, integers(draw, k))),
    }  # fmt: skip


def _requests(draw: random.Random) -> tuple[Arguments, list[int]]:
    """Offsets, lengths and table of requests that share six pages of 32 tokens, and how many tokens are new."""
    order, counts, lengths, rows = draw.sample(range(6), 6), [], [], []
    for _ in range(draw.choice((0, 1, 3))):
        length = draw.choice((0, 1, 31, 32, 33, 64))
        counts.append(draw.randint(0, length))
        lengths.append(length)
        rows.append([order.pop() for _ in range(-(-length // 32))])
    table = torch.tensor([[*row, *[-1] * (2 - len(row))] for row in rows], dtype=torch.int32).view(len(rows), 2)
    offsets = torch.tensor([0, *counts]).cumsum(0)
    return {"offsets": offsets, "lengths": torch.tensor(lengths, dtype=torch.int64), "table": table}, counts


def _pages(draw: random.Random) -> Arguments:
    """Six pages of two heads, all of them numbers."""
    stored = draw.choice(("float32", "bfloat16", "float16", "int8", "int4"))
    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    half, dtype = 2 if stored == "int4" else 1, kinds.get(stored, torch.uint8)
    keys, values = (integers(draw, 6, 2, 32, 32 // half).abs().to(dtype) for _ in range(2))
    scales = [integers(draw, 6, 2, 2, 32).bfloat16() if dtype == torch.uint8 else None for _ in range(2)]
    return {"keys": keys, "values": values, "key_scales": scales[0], "value_scales": scales[1], "stored": stored}


def page_append(draw: random.Random) -> Arguments:
    requests, counts = _requests(draw)
    extremes = draw.choice((None, torch.zeros(6, 2, 4, 2, 32, dtype=torch.bfloat16)))
    new = [integers(draw, sum(counts), 3, 32) for _ in range(2)]
    return {
        "new_keys": new[0], "new_values": new[1], "sources": torch.tensor(draw.sample(range(3), 2)), **_pages(draw),
        "extremes": extremes, "moments": None, **requests,
    }  # fmt: skip


def page_attention(draw: random.Random) -> Arguments:
    """Each token sees itself alone, so that results are exact; lists name its page, and others."""
    requests, counts = _requests(draw)
    block, rows = draw.choice((1, 3, 64)), []
    for count, length in zip(counts, requests["lengths"].tolist(), strict=True):
        for begin in range(0, count, block):
            own = {place // 32 for place in range(length - count + begin, length - count + min(count, begin + block))}
            rows += [sorted(own | {draw.randrange(-(-length // 32))}) for _ in range(2)]
    listed: tuple[Tensor | None, Tensor | None] = None, None
    if draw.random() < 0.5:
        ends = torch.tensor([0, *map(len, rows)]).cumsum(0)
        listed = ends, torch.tensor([page for row in rows for page in row], dtype=torch.int32)
    q = integers(draw, sum(counts), 4, 32)
    return {
        "q": q, "out": torch.zeros_like(q), "lse": torch.zeros(q.shape[:2]), "heads": torch.tensor([2, 0]), "group": 2,
        **_pages(draw), **requests, "list_offsets": listed[0], "list_pages": listed[1], "list_tokens": block,
        "window": 1, "sink": 0, "scale": 1.0, "cap": 0.0,
    }  # fmt: skip


def page_scores(draw: random.Random) -> Arguments:
    requests, _ = _requests(draw)
    return {
        "form": integers(draw, len(requests["lengths"]), 4, 64), "heads": torch.tensor([2, 0]), "group": 2,
        "summaries": integers(draw, 6, 2, 4, 2, 32).bfloat16(), "lengths": requests["lengths"],
        "table": requests["table"], "page": 32,
    }  # fmt: skip


OPS: tuple[Callable[[random.Random], Arguments], ...] = (
    detect, gather, scatter, transpose, dsd, dsd, fan_in_mm, fan_in_mm_t, fan_in_sdd, fan_in_step, fan_in_topk,
    fan_in_rewire, fan_in_draw, sdd, gather_mm, grouped_mm, grouped_outer, skip_conv,
    skip_conv_weight, relu_bits, keep_bits, topk_mask, skip_mv, gated_mv, open_mv, page_append, page_attention,
    page_scores,
)  # fmt: skip


def broken_tensor(draw: random.Random, x: Tensor, inside: bool) -> Tensor:
    """Another tensor in place of x: other contents, another size or dtype, or memory laid out in another way."""
    how = draw.choice(
        ("write", "write", "write", "rows", "dtype", "strides") if inside else ("rows", "dtype", "strides")
    )
    if how == "write" and x.numel():
        x = x.clone()
        info = torch.iinfo(x.dtype)
        for _ in range(draw.choice((1, 1, 3))):
            entry = draw.choice((*ENTRIES, draw.randint(0, 20)))
            entry = (entry - info.min) % (info.max - info.min + 1) + info.min
            flat = x.view(torch.int16) if x.dtype == torch.uint16 else x  # torch writes no single uint16
            flat.view(-1)[draw.randrange(x.numel())] = (
                entry - 65536 if x.dtype == torch.uint16 and entry > 32767 else entry
            )
    elif how == "rows" and x.dim():
        wide = x.view(torch.int16) if x.dtype == torch.uint16 else x
        wide = torch.cat([wide, wide])[: max(0, len(x) + draw.choice((-1, 1, 2)))].clone()
        x = wide.view(torch.uint16) if x.dtype == torch.uint16 else wide
    elif how == "dtype":
        x = x.to(draw.choice((torch.int16, torch.int32, torch.int64, torch.float64, torch.bfloat16)))
    elif how == "strides" and x.dim() and x.dtype != torch.uint16:
        x = torch.stack([x, x], -1)[..., 0]
    return x


def broken(draw: random.Random, arguments: Arguments) -> tuple[Arguments, str]:
    """The arguments with one of them, structure most often, not what it should be; and its name."""
    arguments = dict(arguments)
    names = [
        name
        for name, value in arguments.items()
        if value is not None and not isinstance(value, (bool, str, float, list))
    ]
    structure = [name for name in names if name in STRUCTURE]
    name = draw.choice(structure if structure and draw.random() < 0.6 else names)
    value = arguments[name]
    if isinstance(value, Tensor):
        arguments[name] = broken_tensor(draw, value, name in STRUCTURE)
    elif isinstance(value, tuple):
        changed = list(value)
        changed[draw.randrange(2)] = draw.choice(NUMBERS)
        arguments[name] = tuple(changed)
    else:
        arguments[name] = draw.choice(NUMBERS)
    return arguments, name


def answer(backend: Any, op: str, arguments: Arguments) -> tuple[Tensor, ...]:
    if op == "skip_conv":  # each backend packs for itself; the mutant is of the shape of a weight
        arguments = {**arguments, "packed": backend.skip_pack(arguments["packed"])}
    if op in WRITES:
        arguments = {name: copied(x) for name, x in arguments.items()}
    found = getattr(backend, op)(**arguments)
    found = found if isinstance(found, tuple) else () if found is None else (found,)
    written = [arguments[name] for name in WRITES.get(op, ())]
    return *found, *(each for x in written if x is not None for each in (x if isinstance(x, list) else [x]))


def copied(x: Any) -> Any:
    return [copied(each) for each in x] if isinstance(x, list) else x.clone() if isinstance(x, Tensor) else x


def same(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> bool:
    return all(
        one.dtype == two.dtype and torch.equal(one.contiguous().view(torch.uint8), two.contiguous().view(torch.uint8))
        if one.dtype == torch.uint16
        else one.dtype == two.dtype and torch.equal(one, two)
        for one, two in zip(ours, theirs, strict=True)
    )


def repeats(arguments: Arguments) -> bool:
    """Is a tile named twice? Of two in one place, scatter takes one or the other."""
    offsets, indices = arguments["offsets"].tolist(), arguments["indices"].tolist()
    rows = [indices[slot:end] for slot, end in pairwise(offsets)]
    return any(len(set(row)) < len(row) for row in rows)


def trial(seed: int) -> str:
    """One call: "right", "refused" (of broken arguments) or "no oracle"; AssertionError, or a crash, for a fault."""
    from by_name import cpu, reference

    draw = random.Random(seed)
    op = draw.choice(OPS)
    arguments = op(draw)
    is_broken, name = draw.random() < 0.7, ""
    if is_broken:
        arguments, name = broken(draw, arguments)
    torch.set_num_threads(draw.choice((1, 2)))
    try:
        ours = answer(cpu, op.__name__, arguments)
    except REFUSALS as error:
        assert is_broken and str(error), f"seed {seed}: {op.__name__} refused what is right: {error}"
        return "refused"
    if op is fan_in_topk and name in ("ids", "always"):  # a list that does not ascend says nothing
        return "no oracle"
    if op is skip_conv and name in ("out", "packed"):  # how many outputs are packed is seen in whole groups of them
        return "no oracle"
    try:
        theirs = answer(reference, op.__name__, arguments)
    except RuntimeError as error:
        if any(word in str(error) for word in ("allocate", "overflow", "padding")):  # it makes whole tiles
            return "no oracle"
        raise AssertionError(f"seed {seed}: {op.__name__} followed what the reference refuses: {error}") from error
    except (ValueError, TypeError, IndexError) as error:
        raise AssertionError(f"seed {seed}: {op.__name__} followed what the reference refuses: {error}") from error
    if op is scatter and repeats(arguments):
        return "no oracle"
    if op is page_attention and name in ("window", "sink"):  # of more than one key, results are rounded
        return "no oracle"
    assert same(ours, theirs), f"seed {seed}: {op.__name__} is wrong"
    return "right"


def run(seeds: Iterable[int]) -> Counter[str]:
    return Counter(trial(seed) for seed in seeds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--native", help="the file of the extension to test in place of the installed one")
    parser.add_argument("--trials", type=int, default=4000, help="for each instruction set")
    given = parser.parse_args()
    if given.native:
        import gossamer

        spec = importlib.util.spec_from_file_location("gossamer._native", given.native)
        gossamer._native = sys.modules["gossamer._native"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(gossamer._native)
    from gossamer import _native

    for isa in _native.available_isas():
        _native.set_isa(isa)
        print(isa, dict(run(range(given.trials))), flush=True)
