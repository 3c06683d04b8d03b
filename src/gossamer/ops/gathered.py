"""gather_mm in autograd: a product that reads only some tiles of a, and gradients that read and write only those.

    c = (a at P) b        da = dc b^T at P, zero elsewhere        db = (a at P)^T dc

Where a tile is a whole row, da is again a product over rows and db is one outer product of the rows that are present.
Otherwise da is sampled (sdd) and scattered, and db multiplies gathered tiles (dsd). A batch is one block-diagonal
matrix: tile columns of matrix i are shifted by i matrices, and the dense operands lie one below the other.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from gossamer.ops.autograd import Differentiable, save
from gossamer.ops.grouped import GroupedOuter
from gossamer.ops.products import Dsd, Sdd
from gossamer.ops.registration import Backend, in_float32, register
from gossamer.ops.tiles import Gather, Scatter, transpose_on
from gossamer.pattern.algebra import slot_rows
from gossamer.pattern.build import index_dtype


def _fake(a: Tensor, offsets: Tensor, indices: Tensor, bm: int, bk: int, b: Tensor, column_major: bool) -> Tensor:
    rows, n = a.shape[0], b.shape[2]
    return b.new_empty(n, rows).t() if column_major else b.new_empty(rows, n)


gather_mm_on = register(
    "gather_mm",
    "(Tensor a, Tensor offsets, Tensor indices, SymInt bm, SymInt bk, Tensor b, bool column_major) -> Tensor",
    _fake,
    strided=(5,),
    half=in_float32(like=0),
)


class GatherMm(Differentiable):
    """a[rows, k], b[batch, k, n] -> c[rows, n]; a is `batch` matrices one below the other."""

    name, operands = "matmul", (0, 5)

    @staticmethod
    def compute(
        a: Tensor, offsets: Tensor, indices: Tensor, bm: int, bk: int, b: Tensor, column_major: bool,
        backend: Backend | None,
    ) -> Tensor:  # fmt: skip
        return gather_mm_on(backend)(a, offsets, indices, bm, bk, b, column_major)

    @staticmethod
    def forward(
        ctx: Any, a: Tensor, offsets: Tensor, indices: Tensor, bm: int, bk: int, b: Tensor, column_major: bool,
        backend: Backend | None,
    ) -> Tensor:  # fmt: skip
        save(ctx, a, offsets, indices, b)
        ctx.tile, ctx.backend = (bm, bk), backend
        return GatherMm.compute(a, offsets, indices, bm, bk, b, column_major, backend)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        a, offsets, indices, b = ctx.saved_tensors
        whole_rows = ctx.tile[0] == 1 and ctx.tile[1] >= a.shape[1] > 0 and min(a.shape[0], b.shape[2]) > 0
        gradients = _by_rows if whole_rows else _by_tiles
        grad_a, grad_b = gradients(
            a, offsets, indices, ctx.tile, b, grad, ctx.needs_input_grad[0], ctx.needs_input_grad[5], ctx.backend
        )
        return grad_a, None, None, None, None, grad_b, None, None


def _by_rows(
    a: Tensor, offsets: Tensor, indices: Tensor, tile: tuple[int, int], b: Tensor, grad: Tensor, need_a: bool,
    need_b: bool, backend: Backend | None,
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    grad_a = grad_b = None
    if need_a:
        grad_a = GatherMm.call(grad, offsets, indices, 1, b.shape[2], b.mT, False, backend)
    if need_b:
        # The one column of the grid lists its tiles, which are the rows present, matrix after matrix.
        present = transpose_on(backend)(offsets, indices, 1)[1]
        starts = offsets[:: max(a.shape[0] // b.shape[0], 1)]
        grad_b = GroupedOuter.call(a, grad, present.to(torch.int32), starts, 1, False, backend)
    return grad_a, grad_b


def _by_tiles(
    a: Tensor, offsets: Tensor, indices: Tensor, tile: tuple[int, int], b: Tensor, grad: Tensor, need_a: bool,
    need_b: bool, backend: Backend | None,
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    (rows, k), (bm, bk), batch = a.shape, tile, b.shape[0]
    tile_cols, placed, height = (k + bk - 1) // bk, indices, k
    stacked = b[0]
    if batch > 1:
        height = tile_cols * bk  # whole tiles, so that no tile reaches into the next matrix
        stacked = pad(b, (0, 0, 0, height - k)).reshape(batch * height, b.shape[2])
        matrix = slot_rows(offsets, indices.shape[0]) // max((offsets.shape[0] - 1) // batch, 1)
        placed = (indices.to(torch.int64) + matrix * tile_cols).to(index_dtype(batch * tile_cols))
    index = offsets, placed, None
    grad_a = grad_b = None
    if need_a:
        values = Sdd.call(grad, stacked.t(), bm, bk, backend, *index, None, None, None, None)
        grad_a = Scatter.call(values, offsets, indices, rows, k, backend)
    if need_b:
        transposed = transpose_on(backend)(offsets, placed, batch * tile_cols)
        values = Gather.call(a, offsets, indices, bm, bk, backend)
        below = Dsd.call(values, grad, None, rows, batch * height, True, False, backend, *index, *transposed, None)
        grad_b = below.view(batch, height, b.shape[2])[:, :k]
    return grad_a, grad_b
