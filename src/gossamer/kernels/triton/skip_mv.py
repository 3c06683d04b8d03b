"""skip_mv and gated_mv: few rows times a matrix, of which only the rows that are needed are read.

First every segment of SEGMENT rows of w gets the list of those that are needed; then programs read what is listed, for
up to eight rows of x at once. skip_mv: a program owns a block of columns and one segment, leaves a partial sum, and a
last launch adds these in order of the segments: no atomics, no look at the host, the same bits on every run.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from gossamer.kernels.triton.launch import Blocks, check_float, launch, power
from gossamer.kernels.triton.rows import on_device

SEGMENT = 512
BATCH = 8
ROWS = 4  # of w that a program of gated_mv multiplies
ELEMENTS = 4096  # of an accumulator: 32 registers for each thread of 4 warps


@triton.jit
def list_rows(x, listed, found, used, batch, n, threshold, BATCH: tl.constexpr, SEGMENT: tl.constexpr):
    """The places of a segment where some row of x is not within `threshold` of zero; NaN is not."""
    segment, group = tl.program_id(0), tl.program_id(1)
    place = segment * SEGMENT + tl.arange(0, SEGMENT)
    needed = tl.zeros([SEGMENT], dtype=tl.int32)
    uses = tl.zeros([SEGMENT], dtype=tl.int32)
    for b in tl.static_range(BATCH):
        row = group * BATCH + b
        value = tl.load(x + row.to(tl.int64) * n + place, mask=place < tl.where(row < batch, n, 0), other=0)
        if value.dtype != tl.float64:
            value = value.to(tl.float32)
        kept = ((tl.abs(value) <= threshold) == 0).to(tl.int32)
        needed |= kept
        uses += kept
    segments = tl.num_programs(0)
    at = group * segments + segment
    slot = tl.cumsum(needed, axis=0) - needed
    tl.store(listed + at.to(tl.int64) * SEGMENT + slot, place, mask=needed != 0)
    tl.store(found + at, tl.sum(needed, axis=0))
    tl.store(used + at, tl.sum(uses, axis=0))


@triton.jit
def add_listed(
    x, w, listed, found, partials, batch, inner, columns, threshold,
    BATCH: tl.constexpr, SEGMENT: tl.constexpr, BK: tl.constexpr, BN: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """partials[group, segment, b, j] = the sum over the listed c of a segment of x[b, c] * w[c, j]."""
    segment, group = tl.program_id(1), tl.program_id(2)
    j = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    b = tl.arange(0, BATCH)
    row = group.to(tl.int64) * BATCH + b
    at = (group * tl.num_programs(1) + segment).to(tl.int64)
    count = tl.load(found + at)
    acc = tl.zeros([BATCH, BK, BN], dtype=partials.dtype.element_ty)
    for start in tl.range(0, count, BK, num_stages=STAGES):
        p = start + tl.arange(0, BK)
        c = tl.load(listed + at * SEGMENT + p, mask=p < count, other=0).to(tl.int64)
        factor = tl.load(
            x + row[:, None] * inner + c[None, :], mask=(row < batch)[:, None] & (p < count)[None, :], other=0
        )
        factor = factor.to(acc.dtype)
        weight = tl.load(
            w + c[:, None] * columns + j[None, :], mask=(p < count)[:, None] & (j < columns)[None, :], other=0
        )
        product = factor[:, :, None] * weight.to(acc.dtype)[None, :, :]
        # What this row of x drops must not meet a weight that another needs: 0 * Inf is NaN.
        kept = (tl.abs(factor) <= threshold) == 0
        acc += tl.where(kept[:, :, None], product, 0)
    to = partials + (at * BATCH + b[:, None]) * columns + j[None, :]
    tl.store(to, tl.sum(acc, axis=1), mask=(j < columns)[None, :] & (row < batch)[:, None])


@triton.jit
def add_segments(
    partials, bias, used, y, counts, batch, columns, segments, lists,
    BATCH: tl.constexpr, BN: tl.constexpr, LISTS: tl.constexpr,
):  # fmt: skip
    """y = bias + the partial sums, in order of the segments; the first program also adds up what was used."""
    row = tl.program_id(1).to(tl.int64)
    j = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    total = tl.zeros([BN], dtype=partials.dtype.element_ty)
    for segment in range(0, segments):
        at = (row // BATCH * segments + segment) * BATCH + row % BATCH
        total += tl.load(partials + at * columns + j, mask=j < columns, other=0)
    if bias is not None:
        total += tl.load(bias + j, mask=j < columns, other=0).to(total.dtype)
    tl.store(y + row * columns + j, total.to(y.dtype.element_ty), mask=j < columns)
    if (tl.program_id(0) == 0) & (tl.program_id(1) == 0):
        uses = tl.zeros([LISTS], dtype=tl.int64)
        for first in range(0, lists, LISTS):
            each = first + tl.arange(0, LISTS)
            uses += tl.load(used + each, mask=each < lists, other=0)
        tl.store(counts, tl.sum(uses, axis=0))


@triton.jit
def gate_listed(
    x, w, bias, gate, listed, found, y, batch, inner, rows, segments, per_segment,
    BATCH: tl.constexpr, SEGMENT: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, WIDE: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """y at BM listed rows of w; y is zero already."""
    group = tl.program_id(1)
    block = tl.program_id(0)
    at = (group * segments + block // per_segment).to(tl.int64)
    p = block % per_segment * BM + tl.arange(0, BM)
    count = tl.load(found + at)
    if block % per_segment * BM < count:
        here = p < count
        k = tl.load(listed + at * SEGMENT + p, mask=here, other=0).to(tl.int64)
        b = group.to(tl.int64) * BATCH + tl.arange(0, BATCH)
        exists = b < batch
        acc = tl.zeros([BATCH, BM, BK], dtype=WIDE)
        for start in tl.range(0, inner, BK, num_stages=STAGES):
            c = start + tl.arange(0, BK)
            factor = tl.load(x + b[:, None] * inner + c[None, :], mask=exists[:, None] & (c < inner)[None, :], other=0)
            weight = tl.load(w + k[:, None] * inner + c[None, :], mask=here[:, None] & (c < inner)[None, :], other=0)
            acc += factor.to(acc.dtype)[:, None, :] * weight.to(acc.dtype)[None, :, :]
        total = tl.sum(acc, axis=2)
        if bias is not None:
            total += tl.load(bias + k, mask=here, other=0).to(total.dtype)[None, :]
        place = b[:, None] * rows + k[None, :]
        opening = tl.load(gate + place, mask=exists[:, None] & here[None, :], other=0).to(total.dtype)
        tl.store(y + place, (opening * total).to(y.dtype.element_ty), mask=opening != 0)


def wide(dtype: torch.dtype) -> torch.dtype:
    """Where sums are kept."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def of_columns(batch: int, columns: int, dtype: torch.dtype) -> Iterator[Blocks]:
    """Block sizes of `add_listed`: BK rows of the list, BN columns."""
    most = 64 if batch > 4 or wide(dtype) == torch.float64 else 128
    for stages in (5, 1):  # a list gives the addresses: every other stage of the pipeline is spent on it
        bk = ELEMENTS // most // max(batch, 2)  # one row of x leaves registers for twice the addresses
        yield {"BK": bk, "BN": power(columns, 16, most), "num_warps": 4, "STAGES": stages}


def of_rows(batch: int, dtype: torch.dtype) -> Iterator[Blocks]:
    """Block sizes of `gate_listed`: BK columns of its ROWS rows."""
    bk = ELEMENTS // ROWS // batch // (2 if wide(dtype) == torch.float64 else 1)
    for stages in (4, 1):
        yield {"BK": bk, "num_warps": 4, "STAGES": stages}


def lists(x: Tensor, threshold: float) -> tuple[int, int, Tensor, Tensor, Tensor]:
    """(rows of x that share a list, groups of them, listed int32, found, used) for every group and segment."""
    rows, n = x.shape
    batch = power(rows, 1, BATCH)
    groups, segments = triton.cdiv(rows, batch), triton.cdiv(n, SEGMENT)
    listed = torch.empty(groups * segments * SEGMENT, dtype=torch.int32, device=x.device)
    found, used = torch.empty(2, groups * segments, dtype=torch.int32, device=x.device)
    list_rows[segments, groups](x, listed, found, used, rows, n, threshold, BATCH=batch, SEGMENT=SEGMENT, num_warps=8)
    return batch, groups, listed, found, used


def skip_mv(x: Tensor, w: Tensor, bias: Tensor | None, threshold: float | Tensor) -> tuple[Tensor, Tensor]:
    """(y[B, K], int64[1]); see `gossamer.kernels.reference.skip_mv`."""
    check_float("x", x)
    check_float("w", w)
    threshold = float(threshold)  # on the CPU: no look at the device
    (rows, inner), columns = x.shape, w.shape[1]
    if rows * inner == 0 or columns == 0:
        y = x.new_zeros(rows, columns)
        counts = (~(x.abs() <= threshold)).sum().reshape(1)
        return (y if bias is None else y + bias.to(x.dtype)), counts
    y = torch.empty(rows, columns, dtype=x.dtype, device=x.device)
    counts = torch.empty(1, dtype=torch.int64, device=x.device)
    with on_device(x):
        batch, groups, listed, found, used = lists(x, threshold)
        segments = found.numel() // groups
        partials = torch.empty(groups, segments, batch, columns, dtype=wide(x.dtype), device=x.device)
        launch(
            add_listed, lambda size: (triton.cdiv(columns, size["BN"]), segments, groups),
            of_columns(batch, columns, x.dtype),
            x, w, listed, found, partials, rows, inner, columns, threshold, BATCH=batch, SEGMENT=SEGMENT,
        )  # fmt: skip
        add_segments[triton.cdiv(columns, 256), rows](
            partials, bias, used, y, counts, rows, columns, segments, used.numel(), BATCH=batch, BN=256, LISTS=256,
            num_warps=4,
        )  # fmt: skip
    return y, counts


def gated_mv(x: Tensor, w: Tensor, bias: Tensor | None, gate: Tensor) -> Tensor:
    """y[B, K]; see `gossamer.kernels.reference.gated_mv`."""
    check_float("x", x)
    check_float("w", w)
    rows, inner = x.shape
    y = torch.zeros(rows, w.shape[0], dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    with on_device(x):
        batch, groups, listed, found, _ = lists(gate, 0.0)
        kind = tl.float64 if x.dtype == torch.float64 else tl.float32
        segments, per_segment = found.numel() // groups, triton.cdiv(min(w.shape[0], SEGMENT), ROWS)
        launch(
            gate_listed, lambda _: (segments * per_segment, groups), of_rows(batch, x.dtype),
            x, w, bias, gate, listed, found, y, rows, inner, w.shape[0], segments, per_segment,
            BATCH=batch, SEGMENT=SEGMENT, BM=ROWS, WIDE=kind,
        )  # fmt: skip
    return y
