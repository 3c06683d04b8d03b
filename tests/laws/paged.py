"""Keys and values in pages: arguments whose results are exact, and what they mean, a token at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

HEADS, GROUP, WIDTH, PAGE, STRETCH = 2, 2, 16, 32, 8
SOURCES = torch.tensor([2, 0])  # of the three key heads of a model


def requests(tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Offsets, lengths and table of three requests, one without new tokens, whose pages lie in any order."""
    cut = tokens // 3
    offsets = torch.tensor([0, cut, cut, tokens])
    lengths = offsets.diff() + torch.tensor([5, 3, 40])
    table = torch.full((3, 5), -7, dtype=torch.int32)
    order = iter(torch.randperm(15).tolist())
    for r, length in enumerate(lengths.tolist()):
        for page in range(-(-length // PAGE)):
            table[r, page] = next(order)
    return offsets, lengths, table


def places(offsets: Tensor, lengths: Tensor, table: Tensor) -> list[tuple[int, int, int, int]]:
    """(token, request, page of the pool, place in it) of every new token."""
    out = []
    for r in range(len(lengths)):
        begin, end = int(offsets[r]), int(offsets[r + 1])
        for token in range(begin, end):
            at = int(lengths[r]) - end + token
            out.append((token, r, int(table[r, at // PAGE]), at % PAGE))
    return out


def pool(d: Any) -> tuple[Any, ...]:
    """Keys and values of 15 pages, all of them numbers."""
    return d(15, HEADS, WIDTH, PAGE), d(15, HEADS, PAGE, WIDTH), None, None, "float32"


def append_arguments(d: Any) -> tuple[Any, ...]:
    extremes = torch.zeros(15, HEADS, PAGE // STRETCH, 2, WIDTH, dtype=torch.bfloat16)
    keys, values = d(d.rows, 3, WIDTH), d(d.rows, 3, WIDTH)
    if not d.real:  # so that four bits have a scale of 1 and a zero of -7
        keys = keys.clamp(-7, 8)
        keys[:, :, 0], keys[:, :, 1] = -7, 8
    sketches = torch.zeros(15, HEADS, 1, WIDTH // 8, PAGE, 4, dtype=torch.uint8)
    sketch_scales = torch.zeros(15, HEADS, 2, PAGE, dtype=torch.bfloat16)
    return keys, values, SOURCES, *pool(d), extremes, None, sketches, sketch_scales, *requests(d.rows)


def appended(
    new_keys: Tensor, new_values: Tensor, sources: Tensor, keys: Tensor, values: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    keys, values, extremes, sketches, sketch_scales = (x.clone() for x in (keys, values, rest[3], *rest[5:7]))
    offsets, lengths, table = rest[7:]
    changed = set()
    for token, r, page, at in places(offsets, lengths, table):
        for h, source in enumerate(sources.tolist()):
            keys[page, h, :, at], values[page, h, at] = new_keys[token, source], new_values[token, source]
            codes = (new_keys[token, source] + 7).to(torch.uint8).view(-1, 2, 4)
            sketches[page, h, 0, :, at] = codes[:, 0] + 16 * codes[:, 1]
            sketch_scales[page, h, :, at] = torch.tensor([1.0, -7.0])
        changed.add((r, page, at // STRETCH))
    for r, page, j in changed:
        begin = table[r].tolist().index(page) * PAGE + j * STRETCH
        stretch = keys[page, :, :, j * STRETCH : j * STRETCH + min(STRETCH, int(lengths[r]) - begin)]
        extremes[page, :, j, 0], extremes[page, :, j, 1] = stretch.amax(2), stretch.amin(2)
    return keys, values, extremes, sketches, sketch_scales


def attention_arguments(d: Any) -> tuple[Any, ...]:
    """Each token sees itself alone, whose weight is exactly 1."""
    q = d(d.rows, HEADS * GROUP, WIDTH)
    out, lse = torch.zeros(q.shape), torch.zeros(q.shape[:2])
    return q, out, lse, torch.tensor([2, 0]), GROUP, *pool(d), *requests(d.rows), None, None, 2**40, 1, 0, 1.0, 0.0


def attended(
    q: Tensor, out: Tensor, lse: Tensor, heads: Tensor, group: int, keys: Tensor, values: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    out, lse = out.clone(), lse.clone()
    for token, _, page, at in places(*rest[3:6]):
        for h, first in enumerate(heads.tolist()):
            for head in range(first, first + group):
                out[token, head] = values[page, h, at]
                lse[token, head] = q[token, head] @ keys[page, h, :, at]
    return out, lse


def scores_arguments(d: Any) -> tuple[Any, ...]:
    lengths, table = requests(d.rows)[1:]
    summaries = d(15, HEADS, PAGE // STRETCH, 2, WIDTH).bfloat16()
    return d(3, HEADS * GROUP, 2 * WIDTH), torch.tensor([2, 0]), GROUP, summaries, lengths, table, PAGE


def scored(
    form: Tensor, heads: Tensor, group: int, summaries: Tensor, lengths: Tensor, table: Tensor, page: int
) -> Tensor:
    scores = torch.full((*form.shape[:2], table.shape[1]), -torch.inf)
    for r, length in enumerate(lengths.tolist()):
        for p in range(-(-length // page)):
            for h, first in enumerate(heads.tolist()):
                for head in range(first, first + group):
                    filled = summaries[table[r, p], h, : -(-min(length - p * page, page) // STRETCH)].float()
                    scores[r, head, p] = (filled.flatten(1) @ form[r, head]).max()
    return scores


def key_scores_arguments(d: Any) -> tuple[Any, ...]:
    """Queries whose largest number is 127: in eight bits they are what they were."""
    lengths, table = requests(d.rows)[1:]
    q = d(3, HEADS * GROUP, WIDTH)
    if not d.real:
        q[..., 3] = 127
    codes = torch.randint(256, (15, HEADS, 1 + d.k % 2, WIDTH // 8, PAGE, 4), dtype=torch.uint8)
    return q, torch.tensor([2, 0]), GROUP, codes, 2 * d(15, HEADS, 2, PAGE).bfloat16(), lengths, table


def scored_by_keys(
    q: Tensor, heads: Tensor, group: int, planes: Tensor, scales: Tensor, lengths: Tensor, table: Tensor
) -> Tensor:
    scores = torch.full((*q.shape[:2], table.shape[1]), -torch.inf)
    for r, length in enumerate(lengths.tolist()):
        for at in range(length):
            page, t = int(table[r, at // PAGE]), at % PAGE
            for h, first in enumerate(heads.tolist()):
                codes = planes[page, h, 0, :, t]
                codes = torch.stack([codes % 16, codes // 16], 1).flatten().float()
                # Of eight bits the upper four: the middle of what they may be.
                key = (16 * codes + 7.5 if planes.shape[2] == 2 else codes) * scales[page, h, 0, t].float()
                for head in range(first, first + group):
                    score = q[r, head] @ (key + scales[page, h, 1, t].float())
                    scores[r, head, at // PAGE] = score.maximum(scores[r, head, at // PAGE])
    return scores


def choose_arguments(d: Any) -> tuple[Any, ...]:
    """Of 3 to 5 pages of three requests three are chosen; equal scores are common."""
    scores = d(3, HEADS * GROUP, 5) // 4
    scores[1, 2, 1], scores[2, 0] = torch.nan, torch.inf
    lengths = torch.tensor([5 * PAGE, 2 * PAGE + 1, 4 * PAGE - 3])
    return scores, torch.tensor([2, 0]), GROUP, d.k % 2 == 0, lengths, 3, PAGE


def chosen(scores: Tensor, heads: Tensor, group: int, together: bool, lengths: Tensor, count: int, page: int) -> Tensor:
    members = [range(head, head + group) for head in heads.tolist()]
    rows = members if together else [(head,) for some in members for head in some]
    out = torch.zeros(len(lengths), len(rows), count, dtype=torch.int32)
    for r, length in enumerate(lengths.tolist()):
        last = -(-length // page) - 1
        for row, some in enumerate(rows):
            wanted = scores[r, list(some)].nan_to_num(nan=-torch.inf).amax(0)[: last + 1].tolist()
            best = sorted(range(last + 1), key=lambda p: (p not in (0, last), -wanted[p], p))
            out[r, row] = torch.tensor(sorted(best[:count]))
    return out
