"""Random arguments of the ops on pages."""

from __future__ import annotations

import random

import torch
from fuzzed_numbers import Arguments, integers
from torch import Tensor


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
    of_keys = (2 // half, 4, 32, 4) if dtype == torch.uint8 else (32, 32)
    keys, values = (integers(draw, 6, 2, *sizes).abs().to(dtype) for sizes in (of_keys, (32, 32 // half)))
    scales = [integers(draw, 6, 2, 2, 32).bfloat16() if dtype == torch.uint8 else None for _ in range(2)]
    return {"keys": keys, "values": values, "key_scales": scales[0], "value_scales": scales[1], "stored": stored}


NONE: Arguments = {"sketches": None, "sketch_scales": None}


def _sketches(draw: random.Random) -> Arguments:
    return {
        "sketches": integers(draw, 6, 2, 1, 4, 32, 4).abs().to(torch.uint8),
        "sketch_scales": integers(draw, 6, 2, 2, 32).bfloat16(),
    }


def page_append(draw: random.Random) -> Arguments:
    requests, counts = _requests(draw)
    extremes = draw.choice((None, torch.zeros(6, 2, 4, 2, 32, dtype=torch.bfloat16)))
    new, pages = [integers(draw, sum(counts), 3, 32) for _ in range(2)], _pages(draw)
    return {
        "keys": new[0], "values": new[1], "heads": torch.tensor(draw.sample(range(3), 2)),
        "pool_keys": pages.pop("keys"), "pool_values": pages.pop("values"), **pages,
        "extremes": extremes, "moments": None, **(_sketches(draw) if draw.random() < 0.5 else NONE), **requests,
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


def page_key_scores(draw: random.Random) -> Arguments:
    requests, _ = _requests(draw)
    q = integers(draw, len(requests["lengths"]), 4, 32)
    q[..., 0] = 127  # eight bits are what it was
    return {
        "q": q, "heads": torch.tensor([2, 0]), "group": 2,
        "codes": integers(draw, 6, 2, draw.choice((1, 2)), 4, 32, 4).abs().to(torch.uint8),
        "scales": 2 * integers(draw, 6, 2, 2, 32).bfloat16(), "lengths": requests["lengths"],
        "table": requests["table"],
    }  # fmt: skip


def page_choose(draw: random.Random) -> Arguments:
    lengths = torch.tensor([draw.choice((65, 96, 97, 128)) for _ in range(draw.choice((0, 1, 3)))], dtype=torch.int64)
    return {
        "scores": integers(draw, len(lengths), 4, 4), "heads": torch.tensor([2, 0]), "group": 2,
        "together": draw.random() < 0.5, "lengths": lengths, "count": 3, "page": 32,
    }  # fmt: skip
