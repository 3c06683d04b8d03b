"""One training step of a classifier with constant fan-in: block of labels by block, by one of two routes.

"gather" (`fan_in_gather`) reads the rows of x^T that a label names, at the rate of the caches; "dense" (`fan_in_dense`)
multiplies whole tiles on tensor cores, cols / k times the products at many times the rate. A block goes through three
products: the logits, which become gradients where they lie; the gradient by x, which every program adds to a partial
sum of its own; the gradient by the values, which the optimizer uses up at once. Partial sums are added in their order,
so there are no atomics and the bits are the same on every run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from gossamer.kernels.counter import step_key
from gossamer.kernels.reference._slots import check_places, demand
from gossamer.kernels.triton import fan_in_dense, fan_in_gather
from gossamer.kernels.triton.launch import power, precision
from gossamer.kernels.triton.rows import on_device

ELEMENTS = 2048  # of an accumulator: 16 registers for each thread of 4 warps, beside addresses and what is loaded
TILE_ELEMENTS = 6 << 20  # of a dense tile: 24 MiB, which the L2 of a large GPU holds
GRADIENT_ELEMENTS = 4 << 20  # of the gradients by a block's logits: 16 MiB
PARTIAL_BYTES = 64 << 20  # of all partial sums of the gradient by x
MOST_PARTS = 64
# Multiply-adds a second of gathering, by the caches of an H200, over those of its dense products: a cost model (of
# loads of 4 bytes at 128 bytes a clock and multiprocessor), not yet a measurement.
GATHERED_OVER_DENSE = {"tf32": 16 / 300, "ieee": 16 / 50}
TENSOR_ROWS = 16  # a product takes the time of so many rows, if it has fewer


def route_of(batch: int, cols: int, k: int, group: int, tensor: str) -> str:
    """ "gather" or "dense", by what each costs: k products at the rate of gathering or cols at that of dense products.

    A group gathers once for all of its labels and is dense after that, so it never needs a tile of all columns.
    """
    dense = cols * max(1.0, TENSOR_ROWS / max(batch, 1)) * GATHERED_OVER_DENSE[tensor]
    return "gather" if group > 1 or k <= dense else "dense"


@triton.jit
def mark(places, g, count, begin, end, BLOCK: tl.constexpr):
    """g[places - begin] = 1 for those within [begin, end)."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    place = tl.load(places + i, mask=i < count, other=-1)
    here = (place >= begin) & (place < end)
    tl.store(g + tl.where(here, place - begin, 0), tl.full([BLOCK], 1, g.dtype.element_ty), mask=here)


@triton.jit
def add_parts(partial, total, elements, parts, BLOCK: tl.constexpr):
    """total[i] = the sum of partial[part, i], in order of parts."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    each = tl.zeros([BLOCK], dtype=tl.float32)
    at = partial + i
    for _ in range(0, parts):
        each += tl.load(at, mask=i < elements, other=0)
        at += elements
    tl.store(total + i, each, mask=i < elements)


@dataclass
class Step:
    """The operands of a step, what is constant in it, and room for one block."""

    xt: Tensor
    values: Tensor
    indices: Tensor
    bias: Tensor | None
    states: tuple[Tensor | None, ...]
    group: int
    loss: str
    optimizer: str
    scale: float
    numbers: tuple[Any, ...]  # from the halves of the random key to eps, as the kernels take them
    rests: bool
    block: int
    parts: int
    g: Tensor
    partial: Tensor
    losses: Tensor
    tile: Tensor | None

    def run_block(self, begin: int, end: int, positives: Tensor) -> None:
        """The step of labels [begin, end)."""
        batch = self.xt.shape[1]
        self.g.zero_()
        if positives.numel():
            grid = (triton.cdiv(positives.numel(), 256),)
            mark[grid](positives, self.g, positives.numel(), begin * batch, end * batch, BLOCK=256)
        (self.gather if self.tile is None else self.dense)(begin, end)

    def gather(self, begin: int, end: int) -> None:
        (cols, batch), k, group = self.xt.shape, self.values.shape[1], self.group
        bb = power(batch, 16, 32 if group > 1 else 128)
        br = group if group > 1 else power(end - begin, 1, ELEMENTS // bb)
        rows = triton.cdiv(end - begin, br)
        shared = {"BR": br, "BB": bb, "BK": 16, "GROUP": group, "PRECISION": precision(self.xt)}
        fan_in_gather.gather_logits[(rows, triton.cdiv(batch, bb))](
            self.xt, self.values, self.indices, self.bias, self.g, self.losses, begin, end, batch, k, self.scale,
            LOSS=self.loss, **shared,
        )  # fmt: skip
        members = min(group, 32)
        blocks = triton.cdiv(end - begin, members)
        fan_in_gather.spread[(self.parts, triton.cdiv(batch, 32))](
            self.values, self.indices, self.g, self.partial, begin, end, batch, k, cols, blocks,
            triton.cdiv(blocks, self.parts), GROUP=group, MEMBERS=members, BB=32, num_warps=1,
        )  # fmt: skip
        shared["BK"] = 16 if group > 1 else 8
        fan_in_gather.gather_update[(rows,)](
            self.xt, self.values, self.indices, self.bias, *self.states, self.g, begin, end, batch, k, *self.numbers,
            OPTIMIZER=self.optimizer, RESTS=self.rests, **shared,
        )  # fmt: skip

    def dense(self, begin: int, end: int) -> None:
        assert self.tile is not None
        (cols, batch), k, rows = self.xt.shape, self.values.shape[1], end - begin
        cdiv, kind = triton.cdiv, precision(self.xt)
        self.tile.zero_()
        fan_in_dense.densify[(cdiv(rows, 128),)](self.values, self.indices, self.tile, begin, end, k, cols, BR=128)
        bb = power(batch, 16, 64)
        fan_in_dense.dense_logits[(cdiv(rows, 64), cdiv(batch, bb))](
            self.xt, self.tile, self.bias, self.g, self.losses, begin, end, batch, cols, self.scale,
            BM=64, BN=bb, BK=32, LOSS=self.loss, PRECISION=kind,
        )  # fmt: skip
        fan_in_dense.dense_spread[(cdiv(cols, 64), cdiv(batch, bb), self.parts)](
            self.tile, self.g, self.partial, rows, batch, cols, cdiv(cdiv(rows, self.parts), 16) * 16,
            BM=64, BN=bb, BK=16, PRECISION=kind,
        )  # fmt: skip
        fan_in_dense.dense_sample[(cdiv(rows, 64), cdiv(cols, 64))](
            self.xt, self.tile, self.g, rows, batch, cols, BM=64, BN=64, BK=bb if bb < 32 else 32, PRECISION=kind
        )
        fan_in_dense.dense_update[(cdiv(rows, 32),)](
            self.tile, self.values, self.indices, self.bias, *self.states, self.g, begin, end, batch, k, cols,
            *self.numbers, BR=32, BB=32, BK=power(k, 1, 32), OPTIMIZER=self.optimizer, RESTS=self.rests,
        )  # fmt: skip


def fan_in_step(
    x: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None, states: list[Tensor], positives: Tensor,
    group: int, loss: str, optimizer: str, lr: float, weight_decay: float, beta1: float, beta2: float, eps: float,
    scale: float, step: int, seed: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """See `gossamer.kernels.reference.fan_in_step`."""
    (batch, cols), k = x.shape, values.shape[1]
    route = route_of(batch, cols, k, group, precision(x))
    rule = group, loss, optimizer, lr, weight_decay, beta1, beta2, eps, scale, step, seed
    return step_by(route, x, values, indices, bias, states, positives, *rule)


def _room(route: str, xt: Tensor, *rest: Any) -> Step:
    """A step with room for one block, whose size and parts follow from sizes alone."""
    values, indices, bias, states, group, loss, optimizer, scale, numbers = rest
    (cols, batch), (labels, _) = xt.shape, values.shape
    most = TILE_ELEMENTS // max(cols, 1) if route == "dense" else GRADIENT_ELEMENTS // batch
    block = min(max(most // 64, 1) * 64, -(-labels // 64) * 64)  # whole groups
    parts = max(1, min(MOST_PARTS, PARTIAL_BYTES // (4 * xt.numel() + 1), block // group))
    each = {"sgd": 0, "momentum": 1, "adam": 2}[optimizer]
    of_values, of_bias = ((*some, None, None)[:2] for some in (states[:each], states[each:]))
    rests = optimizer == "sgd" and numbers[3] == 0  # nothing but a gradient to go by: zero changes nothing
    return Step(
        xt, values, indices, bias, (*of_values, *of_bias), group, loss, optimizer, scale, numbers, rests, block, parts,
        xt.new_empty(block, batch), xt.new_zeros(parts, cols, batch),
        xt.new_zeros(block * -(-batch // 16), dtype=torch.float64),
        xt.new_empty(block, cols) if route == "dense" else None,
    )  # fmt: skip


def step_by(
    route: str, x: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None, states: list[Tensor],
    positives: Tensor, group: int, loss: str, optimizer: str, lr: float, weight_decay: float, beta1: float,
    beta2: float, eps: float, scale: float, step: int, seed: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The same by the route that is named: "gather", or "dense" for a group of 1."""
    (batch, cols), labels = x.shape, len(values)
    check_places(indices.to(torch.int64), torch.ones_like(indices, dtype=torch.bool), cols, "indices")
    demand((positives[1:] > positives[:-1]).all(), "positives must ascend")
    check_places(positives, torch.ones_like(positives, dtype=torch.bool), labels * batch, "positives")
    if labels == 0 or batch == 0:
        return torch.zeros_like(x), x.new_zeros((), dtype=torch.float64)
    adam = optimizer == "adam"
    key = step_key(seed, step)
    numbers = (
        *((half + 2**31) % 2**32 - 2**31 for half in (key, key >> 32)),
        lr / (1 - beta1**step) if adam else lr, lr * weight_decay if adam else weight_decay, beta1, 1 - beta1, beta2,
        1 - beta2, 1 / math.sqrt(1 - beta2**step) if adam else 1.0, eps,
    )  # fmt: skip
    s = _room(route, x.t().contiguous(), values, indices, bias, states, group, loss, optimizer, scale, numbers)
    with on_device(x):
        for begin in range(0, labels, s.block):
            s.run_block(begin, min(begin + s.block, labels), positives)
        grad = torch.empty_like(s.xt)
        if grad.numel():
            add_parts[(triton.cdiv(grad.numel(), 1024),)](s.partial, grad, grad.numel(), s.parts, BLOCK=1024)
    return grad.t().contiguous(), s.losses.sum()
