"""The table of ops: one row for each. `test_every_op.py` holds the laws of all rows; an op is added here by its row.

A row says what the kernels get and what that means, in plain torch, exact for integers:

    Row("dds", lambda d: (d(d.rows, d.k), ...), lambda a, ...: a.double() @ ...)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from connections import best_labels, drawn_rows, rewired_rows
from oracles import gathered, index_of, numbers, scattered, shuffled, tiles_of
from packed import (
    alone,
    alone_backward,
    masked_arguments,
    masked_backward_arguments,
    picked,
    picked_backward,
    varlen_arguments,
    varlen_backward_arguments,
)
from paged import (
    append_arguments,
    appended,
    attended,
    attention_arguments,
    choose_arguments,
    chosen,
    key_scores_arguments,
    scored,
    scored_by_keys,
    scores_arguments,
)
from torch import Tensor
from torch.nn.functional import pad

from gossamer.handles import graph_input

TILE = (3, 5)
SIZES = [(37, 53, 20), (1, 1, 1), (3, 5, 1), (0, 5, 4), (5, 0, 4), (5, 4, 0)]


@dataclass(frozen=True)
class Drawn:
    """Operands of an op: integers whose sums are exact, or normal numbers."""

    rows: int
    k: int
    n: int
    real: bool = False

    def __call__(self, *shape: int, zeros: float = 0.0) -> Tensor:
        x = torch.randn(shape) if self.real else numbers(*shape, seed=sum(shape))
        return x.where(torch.rand(shape) >= zeros, 0)

    @cached_property
    def index(self) -> tuple[Tensor, Tensor]:
        """The tiles of a matrix [rows, k]: slots in random order, slack that is no address."""
        return shuffled(torch.rand(-(-self.rows // TILE[0]), self.tile_cols) < 0.5)

    @property
    def tile_cols(self) -> int:
        return -(-self.k // TILE[1])

    @property
    def fan_in(self) -> int:
        """Elements of a row; without columns there are none."""
        return min(self.k, 7)

    @cached_property
    def columns(self) -> Tensor:
        """Of every row's elements; a row may name one twice."""
        return torch.randint(max(self.k, 1), (self.rows, self.fan_in)).to(torch.uint16)

    @cached_property
    def connections(self) -> tuple[Tensor, Tensor]:
        """uint16[rows, fan_in] and [rows, at most 4], ascending, none of both: what rows have, and might have."""
        order = torch.rand(self.rows, self.k).argsort(1)
        cut = self.fan_in
        return tuple(part.sort(1).values.to(torch.uint16) for part in (order[:, :cut], order[:, cut : cut + 4]))

    def rewiring(self, drop: int, threshold: float, everywhere: bool, avoid: bool, chosen: bool) -> tuple[Any, ...]:
        """Arguments of fan_in_rewire: weights with ties, ages of which some are protected."""
        mine, others = self.connections
        ages = torch.randint(4, mine.shape, dtype=torch.uint8)
        candidates = (others, torch.rand(others.shape)) if chosen else (None, None)
        how = self.k, 1, drop, threshold, everywhere, avoid, 1, 0.0, 7, 3, 40
        return self(*mine.shape), mine, [], ages, *candidates, *how

    @cached_property
    def filters(self) -> tuple[Tensor, Tensor, Tensor]:
        """Labels that a row of a batch must not get, and those that none gets, some of which there are not."""
        ids = [torch.randperm(self.rows + 9)[:4].sort().values for _ in range(self.n)]
        return torch.arange(self.n + 1) * 4, torch.cat([*ids, torch.zeros(0, dtype=torch.int64)]), torch.tensor([5, 8])

    @cached_property
    def groups(self) -> tuple[Tensor, Tensor]:
        """The rows in any order, and where each of four groups begins; one is empty."""
        cut = self.rows // 3
        return torch.randperm(self.rows), torch.tensor([0, cut, cut, 2 * cut, self.rows])


@dataclass(frozen=True)
class Row:
    """An op: its arguments, and what they mean: the results, then what the arguments at `writes` hold after it."""

    op: str
    arguments: Callable[[Drawn], tuple[Any, ...]]
    meaning: Callable[..., Any]
    writes: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        return self.op


def element_rows(values: Tensor, indices: Tensor, cols: int) -> Tensor:
    return torch.zeros(len(values), cols, dtype=torch.float64).scatter_add_(1, indices.long(), values.double())


def classifier(d: Drawn) -> tuple[Any, ...]:
    """A third of the labels of each row are positives; a step whose every number is exact."""
    positives = (torch.rand(d.rows, d.n) < 0.3).flatten().nonzero().squeeze(1)
    rule = ("hinge", "sgd", 0.25, 0.0, 0.0, 0.0, 0.0, 2.0, 1, 0)
    return d(d.rows, d.fan_in), d.columns, d(d.rows), [], positives, 1, *rule


def hinge_step(
    x: Tensor, values: Tensor, indices: Tensor, bias: Tensor, states: list[Tensor], positives: Tensor, *rule: Any
) -> tuple[Tensor, ...]:
    s = element_rows(values, indices, x.shape[1])
    sign = torch.full((len(values), len(x)), -1.0).double()
    sign.view(-1)[positives] = 1
    margin = (1 - sign * (s @ x.double().t() + bias.double()[:, None])).clamp(min=0)
    g = -4 * sign * margin
    dw = (g @ x.double()).gather(1, indices.long())
    return (s.t() @ g).t(), 2 * margin.square().sum(), values - dw / 4, bias - g.sum(1) / 4


def transposed(offsets: Tensor, indices: Tensor, tile_cols: int) -> tuple[Tensor, Tensor, Tensor]:
    owner = torch.repeat_interleave(torch.arange(len(offsets) - 1), offsets.diff())
    used, column = len(owner), indices[: len(owner)].long()
    order = torch.arange(len(indices))
    order[:used] = (column * len(offsets) + owner).argsort()
    row = pad(owner[order[:used]], (0, len(indices) - used))
    return pad(column.bincount(minlength=tile_cols).cumsum(0), (1, 0)), row.to(torch.uint16), order.int()


def tiles_at(shape: tuple[int, int], offsets: Tensor, indices: Tensor, tile: tuple[int, int]) -> Tensor:
    """bool[rows, cols]: the elements in a tile."""
    return scattered(torch.ones(len(indices), *tile), offsets, indices, shape) != 0


def grouped(
    x: Tensor, source: Tensor, target: Tensor, offsets: Tensor, weights: Tensor, transposed: bool, rows: int
) -> Any:
    weights = weights.mT if transposed else weights
    y = torch.zeros(rows, weights.shape[2], dtype=torch.float64)
    group = torch.repeat_interleave(torch.arange(len(weights)), offsets.diff())
    for place, g in enumerate(group.tolist()):
        y[target[place]] = x[source[place]].double() @ weights[g].double()
    return y


def outer(x: Tensor, dy: Tensor, source: Tensor, target: Tensor, offsets: Tensor) -> Tensor:
    dw = torch.zeros(len(offsets) - 1, x.shape[1], dy.shape[1], dtype=torch.float64)
    group = torch.repeat_interleave(torch.arange(len(dw)), offsets.diff())
    for place, g in enumerate(group.tolist()):
        dw[g] += x[source[place]].double().outer(dy[target[place]].double())
    return dw


def skipped(x: Tensor, w: Tensor, bias: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    kept = x.double().where(x.abs() > threshold, 0)
    return kept @ w.double() + bias.double(), (x.abs() > threshold).sum().view(1)


ROWS = (
    Row(
        "detect",
        lambda d: (d(d.rows, d.k, zeros=0.9), *TILE, d.rows * d.k + 2, True),
        lambda x, bm, bn, capacity, ordered: index_of(tiles_of(x, (bm, bn)), capacity),
    ),
    Row(
        "gather",
        lambda d: (d(d.rows, d.k), *d.index, *TILE),
        lambda x, offsets, indices, *tile: gathered(x, offsets, indices, tile),
    ),
    Row(
        "scatter",
        lambda d: (d(len(d.index[1]), *TILE), *d.index, d.rows, d.k),
        lambda values, offsets, indices, *shape: scattered(values, offsets, indices, shape),
    ),
    Row("transpose", lambda d: (*d.index, d.tile_cols), transposed),
    Row(
        "dsd",
        lambda d: (d(len(d.index[1]), *TILE), *d.index, None, None, d(d.k, d.n), d.rows, False, False, None),
        lambda values, offsets, indices, order, scale, b, rows, *_: (
            scattered(values.double(), offsets, indices, (rows, len(b))) @ b.double()
        ),
    ),
    Row(
        "sdd",
        lambda d: (d(d.rows, d.n), d(d.n, d.k), *d.index, *TILE),
        lambda a, b, offsets, indices, *tile: gathered(a.double() @ b.double(), offsets, indices, tile),
    ),
    Row(
        "gather_mm",
        lambda d: (d(d.rows, d.k), *d.index, *TILE, d(1, d.k, d.n), False),
        lambda a, offsets, indices, bm, bk, b, column_major: (
            a.double().where(tiles_at(tuple(a.shape), offsets, indices, (bm, bk)), 0) @ b[0].double()
        ),
    ),
    Row(
        "grouped_mm",
        lambda d: (d(d.rows, d.k), d.groups[0], d.groups[0].flip(0), d.groups[1], d(4, d.k, d.n), False, d.rows),
        grouped,
    ),
    Row(
        "grouped_mm",
        lambda d: (d(d.rows, d.k), d.groups[0], d.groups[0].flip(0), d.groups[1], d(4, d.n, d.k), True, d.rows),
        grouped,
    ),
    Row(
        "grouped_outer",
        lambda d: (d(d.rows, d.k), d(d.rows, d.n), d.groups[0], d.groups[0].flip(0), d.groups[1]),
        outer,
    ),
    Row(
        "fan_in_mm",
        lambda d: (d(d.n, d.k), d(d.rows, d.fan_in), d.columns),
        lambda x, values, indices: (x.double()[:, indices.long()] * values.double()).sum(2),
    ),
    Row(
        "fan_in_mm_t",
        lambda d: (d(d.n, d.rows), d(d.rows, d.fan_in), d.columns, d.k),
        lambda dy, values, indices, cols: dy.double() @ element_rows(values, indices, cols),
    ),
    Row(
        "fan_in_sdd",
        lambda d: (d(d.n, d.rows), d(d.n, d.k), d.columns),
        lambda dy, x, indices: (x.double()[:, indices.long()] * dy.double()[:, :, None]).sum(0),
    ),
    Row("fan_in_step", lambda d: (d(d.n, d.k), *classifier(d)), hinge_step, writes=(1, 3)),
    Row(
        "fan_in_topk",
        lambda d: (d(d.n, d.k), d(d.rows, d.fan_in), d.connections[0], d(d.rows), 1, 6, 5, *d.filters),
        best_labels,
    ),
    *(
        Row("fan_in_rewire", lambda d, how=how: d.rewiring(*how), rewired_rows, writes=(0, 1, 3))
        for how in (
            (2, 0.0, False, True, False),
            (3, 0.0, False, False, True),
            (-1, 3.0, False, False, False),
            (40, 0.0, True, True, False),
        )
    ),
    Row(
        "fan_in_draw",
        lambda d: (torch.zeros(d.rows, min(3, d.k - d.fan_in)).to(torch.uint16), d.connections[0], d.k, 9, 4, 40),
        drawn_rows,
        writes=(0,),
    ),
    Row("page_append", append_arguments, appended, writes=(3, 4, 8, 10, 11)),
    Row("page_attention", attention_arguments, attended, writes=(1, 2)),
    Row("page_scores", scores_arguments, scored),
    Row("page_key_scores", key_scores_arguments, scored_by_keys),
    Row("page_choose", choose_arguments, chosen),
    *(Row("varlen_attention", lambda d, how=how: varlen_arguments(d, how), alone) for how in (False, True)),
    *(
        Row("varlen_attention_backward", lambda d, how=how: varlen_backward_arguments(d, how), alone_backward)
        for how in (False, True)
    ),
    *(Row("masked_attention", lambda d, how=how: masked_arguments(d, how), picked) for how in (False, True)),
    *(
        Row("masked_attention_backward", lambda d, how=how: masked_backward_arguments(d, how), picked_backward)
        for how in (False, True)
    ),
    Row(
        "skip_mv",
        lambda d: (d(d.rows, d.k, zeros=0.6), d(d.k, d.n), d(d.n), graph_input(0.7)),
        skipped,
    ),
    Row(
        "few_rows",
        lambda d: (d(d.n, d.k), d(d.rows, d.k), d(d.rows)),
        lambda x, w, bias: x.double() @ w.double().t() + bias.double(),
    ),
    Row(
        "gated_mv",
        lambda d: (d(d.rows, d.k), d(d.n, d.k), d(d.n), d(d.rows, d.n, zeros=0.6)),
        lambda x, w, bias, gate: gate.double() * (x.double() @ w.double().t() + bias.double()),
    ),
)
