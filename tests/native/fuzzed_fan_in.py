"""Random arguments of the ops on rows of equal fan-in."""

from __future__ import annotations

import random

import torch
from fuzzed_numbers import Arguments, integers, sizes

OF_VALUES = (torch.float32, torch.bfloat16)


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
    return {"out": room, "indices": draw.choice((None, taken)), "cols": cols, "seed": 5, "step": 1, "first": 0}
