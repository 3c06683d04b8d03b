"""The best labels of each row of a batch: a program keeps the best of its labels, and never the scores of all.

A score and a label are one integer, its key, that orders as they do: what is best is a maximum, without ties.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gossamer.kernels.triton.fan_in_gather import group_logits, row_logits
from gossamer.kernels.triton.launch import power, precision
from gossamer.kernels.triton.rows import on_device

BLOCK = 1 << 24  # labels x batch that are looked at together
ELEMENTS = 2048  # of scores of a program: their keys take 32 registers for each thread of 4 warps
NONE = -(1 << 63)  # the key of no label


@triton.jit
def mark_listed(row, ids, mask, count, batch, begin, end, BLOCK: tl.constexpr):
    """mask[ids - begin, row] = 1 for ids within [begin, end) of a row that is there; `row` None: of every row."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    label = tl.load(ids + i, mask=i < count, other=-1)
    if row is None:
        b = i * 0 + tl.program_id(1)
    else:
        b = tl.load(row + i, mask=i < count, other=0)
    here = (label >= begin) & (label < end) & (b < batch)
    tl.store(mask + tl.where(here, (label - begin) * batch + b, 0), tl.full([BLOCK], 1, tl.int8), mask=here)


@triton.jit(do_not_specialize=["begin"])
def best_of_labels(
    xt, values, indices, bias, mask, keys, broken, begin, labels, batch, k,
    BR: tl.constexpr, BB: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, BEST: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """keys[b, program, BEST]: of the best of BR labels for each b, best first; of all of them, if BEST is BR."""
    here = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    b = tl.program_id(1) * BB + tl.arange(0, BB)
    r = begin.to(tl.int64) + here
    exists = r < labels
    if GROUP == 1:
        z = row_logits(xt, values, indices, bias, r, b, exists, batch, k, BR, BB)
    else:
        unit = begin.to(tl.int64) // GROUP + tl.program_id(0)
        z = group_logits(xt, values, indices, bias, unit, r, b, exists, batch, k, BR, BB, BK, PRECISION)
    inside = exists[:, None] & (b < batch)[None, :]
    if mask is not None:
        inside = inside & (tl.load(mask + here[:, None] * batch + b[None, :], mask=inside, other=1) == 0)
    if tl.sum(tl.sum((inside & (z != z)).to(tl.int32), 1), 0) > 0:
        tl.store(broken, 1)
    bits = (z + 0.0).to(tl.int32, bitcast=True)  # -0.0 equals 0.0
    rank = tl.where(bits < 0, -(bits & 0x7FFFFFFF), bits).to(tl.int64)
    key = tl.where(inside, (rank << 32) + (0x7FFFFFFF - here)[:, None], -0x8000000000000000)
    to = keys + (b.to(tl.int64) * tl.num_programs(0) + tl.program_id(0)) * BEST
    if BEST == BR:
        tl.store(to[None, :] + tl.arange(0, BR)[:, None], key, mask=(b < batch)[None, :])
    else:
        for i in range(0, BEST):
            most = tl.max(key, 0)
            tl.store(to + i, most, mask=b < batch)
            key = tl.where(key == most[None, :], -0x8000000000000000, key)


def fan_in_topk(
    x: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None, group: int, best: int, first: int,
    offsets: Tensor | None, ids: Tensor | None, always: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(scores, ids)[batch, best]; see `gossamer.kernels.reference.fan_in_topk`."""
    (batch, _), (labels, k) = x.shape, values.shape
    scores = x.new_full((batch, best), -torch.inf)
    found = torch.full((batch, best), -1, dtype=torch.int64, device=x.device)
    if not (labels and batch and best):
        return scores, found
    xt, broken = x.t().contiguous(), torch.zeros(1, dtype=torch.int32, device=x.device)
    excluded = _excluded(offsets, ids, always)
    bb = power(batch, 16, 32)
    br = group if group > 1 else ELEMENTS // bb
    each = best if 2 * best < br else br
    step = max(BLOCK // batch // 64, 1) * 64  # whole groups
    with on_device(x):
        for begin in range(0, labels, step):
            end = min(begin + step, labels)
            mask = _mask(excluded, batch, first + begin, first + end) if excluded else None
            programs = triton.cdiv(end - begin, br)
            keys = torch.empty(batch, programs * each, dtype=torch.int64, device=x.device)
            best_of_labels[(programs, triton.cdiv(batch, bb))](
                xt, values, indices, bias, mask, keys, broken, begin, end, batch, k,
                BR=br, BB=bb, BK=16, GROUP=group, BEST=each, PRECISION=precision(x),
            )  # fmt: skip
            here = read_keys(keys.topk(min(best, keys.shape[1]), 1).values, first + begin)
            scores, found = merged(torch.cat([scores, here[0]], 1), torch.cat([found, here[1]], 1), best)
    torch._assert_async(broken[0] == 0, "the scores of x must not be NaN, which has no rank")
    return scores, found


def _excluded(offsets: Tensor | None, ids: Tensor | None, always: Tensor | None) -> list[tuple[Tensor | None, Tensor]]:
    """(the row of each id, ids) of what rows do not get, or (None, ids) of what none gets."""
    lists: list[tuple[Tensor | None, Tensor]] = []
    if offsets is not None and ids is not None and ids.numel():
        # Beyond the last offset there may be ids that belong to no row.
        place = torch.arange(ids.numel(), device=ids.device)
        lists.append((torch.searchsorted(offsets[1:], place, right=True), ids))
    if always is not None and always.numel():
        lists.append((None, always))
    return lists


def _mask(excluded: list[tuple[Tensor | None, Tensor]], batch: int, begin: int, end: int) -> Tensor:
    """int8[labels, batch]: which of the labels [begin, end) a row does not get."""
    mask = torch.zeros(end - begin, batch, dtype=torch.int8, device=excluded[0][1].device)
    for row, ids in excluded:
        grid = triton.cdiv(ids.numel(), 256), batch if row is None else 1
        mark_listed[grid](row, ids, mask, ids.numel(), batch, begin, end, BLOCK=256)
    return mask


def read_keys(keys: Tensor, begin: int) -> tuple[Tensor, Tensor]:
    """(scores, ids) of keys of a block that begins with the label `begin`; -inf and -1 of those of no label."""
    rank = keys >> 32
    bits = torch.where(rank < 0, rank.neg() | -(1 << 31), rank).to(torch.int32)
    none = keys == NONE
    ids = begin + 0x7FFFFFFF - (keys & 0xFFFFFFFF)
    return bits.view(torch.float32).masked_fill(none, -torch.inf), ids.masked_fill(none, -1)


def merged(scores: Tensor, ids: Tensor, best: int) -> tuple[Tensor, Tensor]:
    """The best of candidates, of which equal scores lie in order of label; a label of -1 stands for none."""
    bits = (scores + 0.0).view(torch.int32).to(torch.int64)
    rank = torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits)
    place = torch.arange(scores.shape[1] - 1, -1, -1, device=scores.device)
    top = (torch.where(ids < 0, NONE, rank << 32) + place).topk(best, 1).indices
    return scores.gather(1, top), ids.gather(1, top)
