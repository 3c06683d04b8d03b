"""Rewiring on a GPU: a program for each row drops the weakest connections, draws others by rank, and writes both.

How many go is counted by tensor operations, as are candidates chosen by their scores (`kernels.reference`): they are
passes over the values. What those would do row by row is a loop of sorts and searches over copies of a row; a program
has it in registers. The numbers are those of `kernels.reference`, bit for bit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gossamer.kernels.counter import step_key
from gossamer.kernels.reference import fan_in_rewire as reference
from gossamer.kernels.reference.fan_in_rewire import GROWING, STARTING, fan_in_draw
from gossamer.kernels.triton.fan_in_rules import mixed
from gossamer.kernels.triton.launch import power
from gossamer.kernels.triton.rows import on_device

__all__ = ["fan_in_draw", "fan_in_rewire"]

MOST = 1024  # connections of a row that a program sorts in registers
_ABSENT = tl.constexpr(1 << 33)  # above the key of every connection


@triton.jit
def joined(low, high):
    """The uint64 of two halves in int32."""
    return (high.to(tl.uint32, bitcast=True).to(tl.uint64) << 32) | low.to(tl.uint32, bitcast=True).to(tl.uint64)


@triton.jit
def drawn_below(key, number, n):
    """The draws of these numbers of a row's key, each below its n: the upper half of 64 random bits times n."""
    bits = mixed(key + number.to(tl.uint64) * 0x9E3779B97F4A7C15)
    wide = n.to(tl.uint64)
    return (((bits >> 32) * wide + ((bits & 0xFFFFFFFF) * wide >> 32)) >> 32).to(tl.int64)


@triton.jit
def drawn_ranks(key, n, m, at):
    """In the places at < m: m different numbers below n, by Floyd's algorithm."""
    most = n - m + at
    found = drawn_below(key, at, tl.maximum(most + 1, 1))
    drawn = at.to(tl.int64) * 0 - 1
    for j in range(0, m):
        again = tl.max((drawn == tl.sum(tl.where(at == j, found, 0), 0)).to(tl.int32), 0)
        drawn = tl.where(at == j, tl.where(again > 0, most, found), drawn)
    return drawn


@triton.jit
def move(tensor, at, to, keeps, fresh_to, comes, fresh):
    """Write what stays to its new places, and what is new beside it; all is read before any of it is written."""
    old = tl.load(tensor + at, mask=keeps, other=0)
    tl.debug_barrier()
    tl.store(tensor + to, old, mask=keeps)
    tl.store(tensor + fresh_to, fresh.to(tensor.dtype.element_ty), mask=comes)


@triton.jit(do_not_specialize=["begin", "name", "low", "high", "start_low", "start_high", "init"])
def rewire_rows(
    values, indices, first, second, ages, keys, counts, begin, name, labels, cols, k, low, high, start_low, start_high,
    init, GROUP: tl.constexpr, SLOTS: tl.constexpr, AVOID: tl.constexpr, STARTS: tl.constexpr,
):  # fmt: skip
    """Row begin + program: the counts[program] smallest keys[program, k] go; the row has the number name + program."""
    here = tl.program_id(0).to(tl.int64)
    m = tl.load(counts + here)
    if m > 0:
        row, at = begin + here, tl.arange(0, SLOTS)
        exists = at < k
        key = tl.load(keys + here * k + at, mask=exists, other=_ABSENT)
        packed = (key << 16) + at  # of equal ones the first slot goes
        last = tl.sum(tl.where(at == m - 1, tl.sort(packed), 0), 0)
        kept = exists & (packed > last)
        column = tl.load(indices + row * k + at, mask=exists, other=0).to(tl.int64)

        taken = exists if AVOID else kept
        gap = column - (tl.cumsum(taken.to(tl.int64), 0) - taken.to(tl.int64))
        free = cols - tl.sum(taken.to(tl.int64), 0)
        drawn = drawn_ranks(mixed(joined(low, high) + (name + here).to(tl.uint64)), free, m, at)
        comes = at < m
        fresh, fresh_to, to = drawn * 0, drawn * 0, tl.cumsum(kept.to(tl.int64), 0) - kept.to(tl.int64)
        for j in range(0, m):
            rank = tl.sum(tl.where(at == j, drawn, 0), 0)
            new = rank + tl.sum((taken & (gap <= rank)).to(tl.int64), 0)
            place = tl.sum((comes & (drawn < rank)).to(tl.int64), 0) + tl.sum((kept & (column < new)).to(tl.int64), 0)
            fresh, fresh_to = tl.where(at == j, new, fresh), tl.where(at == j, place, fresh_to)
            to += (kept & (column > new)).to(tl.int64)

        edge = row * k
        move(indices, edge + at, edge + to, kept, edge + fresh_to, comes, fresh)
        zero = tl.zeros([SLOTS], tl.float32)
        if ages is not None:
            move(ages, edge + at, edge + to, kept, edge + fresh_to, comes, zero)
        for member in range(0, GROUP):
            label = row * GROUP + member
            if label < labels:
                edge, start = label * k, zero
                if STARTS:
                    of = mixed(joined(start_low, start_high) + (name * GROUP + here * GROUP + member).to(tl.uint64))
                    share = mixed(of + fresh_to.to(tl.uint64) * 0x9E3779B97F4A7C15) >> 40
                    start = (share.to(tl.int32) - (1 << 23)).to(tl.float32) * (1.0 / (1 << 23)) * init
                move(values, edge + at, edge + to, kept, edge + fresh_to, comes, start)
                if first is not None:
                    move(first, edge + at, edge + to, kept, edge + fresh_to, comes, zero)
                if second is not None:
                    move(second, edge + at, edge + to, kept, edge + fresh_to, comes, zero)


def fan_in_rewire(
    values: Tensor, indices: Tensor, states: list[Tensor], ages: Tensor | None, candidates: Tensor | None,
    scores: Tensor | None, cols: int, group: int, drop: int, threshold: float, everywhere: bool, avoid_dropped: bool,
    min_age: int, init: float, seed: int, step: int, first: int,
) -> Tensor:  # fmt: skip
    """How many connections went: int64[]; see `gossamer.kernels.reference.fan_in_rewire`."""
    k = indices.shape[1]
    if candidates is not None or k > MOST:
        return reference.fan_in_rewire(
            values, indices, states, ages, candidates, scores, cols, group, drop, threshold, everywhere, avoid_dropped,
            min_age, init, seed, step, first,
        )  # fmt: skip
    moved = [*states, None, None]
    growing, starting = (_halves(step_key(seed ^ purpose, step)) for purpose in (GROWING, STARTING))
    slots = power(k, 1, MOST)

    def rewire(part: slice, keys: Tensor, m: Tensor) -> None:
        rewire_rows[(len(m),)](
            values, indices, moved[0], moved[1], ages, keys.contiguous(), m, part.start, first // group + part.start,
            len(values), cols, k, *growing, *starting, float(init), GROUP=group, SLOTS=slots, AVOID=avoid_dropped,
            STARTS=init > 0, num_warps=max(1, min(4, slots // 128)),
        )  # fmt: skip

    with on_device(values):
        return reference.in_blocks(
            rewire, values, indices, ages, None, cols, group, drop, threshold, everywhere, avoid_dropped, min_age
        )


def _halves(key: int) -> tuple[int, int]:
    """The lower and the upper half of 64 bits, as int32."""
    low, high = torch.tensor(key, device="cpu").view(1).view(torch.int32).tolist()
    return low, high
