"""transpose: the index of the transposed pattern, and where each of its tiles has its values.

tile (c, r) of the transposed pattern, at slot s, is the transpose of values[order[s]]
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gossamer.ops._index import check_grid, check_pattern
from gossamer.ops._register import Backend, check_backend, register
from gossamer.pattern import Pattern
from gossamer.pattern.build import index_dtype


class Transposed(NamedTuple):
    """What products with S^T need beside the values of S.

    Attributes:
        pattern: the tiles of S^T, rows ascending within each tile row, as many slots as S has.
        order: int32[capacity], the slot in S of each slot of S^T; `order[s] = s` in the slack.
        work: int64[parts, segments, 3] | None, a division of labour for products with S^T (see `dsd`).
    """

    pattern: Pattern
    order: Tensor
    work: Tensor | None = None


def _fake(offsets: Tensor, indices: Tensor, tile_cols: int) -> tuple[Tensor, Tensor, Tensor]:
    capacity = indices.shape[0]
    return (
        offsets.new_empty(tile_cols + 1),
        indices.new_empty(capacity, dtype=index_dtype(offsets.shape[0] - 1)),
        indices.new_empty(capacity, dtype=torch.int32),
    )


transpose_on = register(
    "transpose", "(Tensor offsets, Tensor indices, SymInt tile_cols) -> (Tensor, Tensor, Tensor)", _fake
)


def transpose(pattern: Pattern, *, backend: Backend | None = None) -> Transposed:
    """Index the transposed pattern without moving a value. No device sync.

    Products with S^T, and the gradients of the dense operand of products with S, go down the columns of S. They make
    this index when they need it; make it once and pass it as `transposed=` where a pattern outlives a product.

    Args:
        pattern: any; read at face value on a GPU; see `pattern.validate()`.
        backend: None for the kernels of the pattern's device; "cpu", "triton" or "reference" to insist.

    Raises:
        TypeError, ValueError: naming the argument. RuntimeError: kernels that are not installed.

    >>> p = Pattern.from_mask(torch.tensor([[False, True], [True, True]]))
    >>> t = transpose(p, backend="reference")
    >>> t.pattern.indices.tolist(), t.order.tolist()
    ([1, 0, 1], [1, 0, 2])
    """
    check_pattern(pattern)
    check_grid(pattern)
    check_backend(backend, "pattern", pattern.indices)
    offsets, indices, order = transpose_on(backend)(pattern.row_offsets(), pattern.indices.reshape(-1), pattern.grid[1])
    (rows, cols), (bm, bn) = pattern.shape, pattern.tile
    return Transposed(Pattern(offsets, indices, (cols, rows), (bn, bm)), order)
