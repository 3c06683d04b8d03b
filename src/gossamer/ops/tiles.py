"""detect, gather, scatter, transpose: which tiles of a matrix are present, and what they hold.

    detect      tile (r, c) is present  <=>  some element of it is not zero        (-0.0 is zero, NaN is not)
    gather      values[s, i, j] = x[row(s) * bm + i, indices[s] * bn + j]          (PIT's SRead)
    scatter     dense[row(s) * bm + i, indices[s] * bn + j] = values[s, i, j]      (PIT's SWrite), zero elsewhere
    transpose   tile (c, r) of the transposed pattern, at slot s, is the transpose of values[order[s]]

gather and scatter are each other's transpose, so the backward of each is the other, to any order.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from gossamer.ops.autograd import Differentiable, save
from gossamer.ops.index import check_grid, check_pattern, check_values
from gossamer.ops.registration import Backend, check_backend, register
from gossamer.ops.transforms import check_transforms
from gossamer.pattern import Overflow, Pattern
from gossamer.pattern.build import grid_of, index_dtype
from gossamer.pattern.check import check_capacity, check_matrix, check_overflow, check_pair, room_for

_DTYPES = frozenset(
    (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
     torch.uint8, torch.bool)
)  # fmt: skip


def _fake_detect(x: Tensor, bm: int, bn: int, capacity: int, ordered: bool) -> tuple[Tensor, Tensor]:
    tile_rows, tile_cols = grid_of((x.shape[0], x.shape[1]), (bm, bn))
    return x.new_empty(tile_rows + 1, dtype=torch.int64), x.new_empty(capacity, dtype=index_dtype(tile_cols))


detect_on = register(
    "detect", "(Tensor x, SymInt bm, SymInt bn, SymInt capacity, bool ordered) -> (Tensor, Tensor)", _fake_detect
)


def detect(
    x: Tensor,
    tile: tuple[int, int] = (1, 1),
    *,
    ordered: bool = True,
    capacity: int | None = None,
    overflow: Overflow = "error",
    backend: Backend | None = None,
) -> Pattern:
    """Which tiles of x hold a nonzero. No gradient; no device sync with `overflow="error"`.

    Args:
        x: [rows, cols], float64/32/16, bfloat16, any int up to 64 bits, uint8 or bool. A batch [b, rows, cols] is
            `x.flatten(0, 1)` when `bm` divides `rows`: its tile rows stay apart.
        tile: (bm, bn) in elements; tiles at the lower and right edge may be ragged.
        ordered: columns ascending within a row; False allows any order (on a GPU one pass less over the flags).
        capacity: index entries to allocate. None means one for every tile of the grid, which cannot overflow: gather
            then allocates as much as x. Give the most you expect, to pay only for that.
        overflow: when more than `capacity` tiles are present: "error" raises RuntimeError (on a GPU an assertion on
            the device, without a sync), "grow" detects again with more capacity, "dense" returns every tile; the
            last two read the count on the host.
        backend: None for the kernels of x's device; "cpu", "triton" or "reference" to insist.

    Returns:
        Pattern with `offsets` and `indices` on x's device.

    Raises:
        TypeError: x is not a strided tensor of a listed dtype. ValueError: a malformed argument, named.
        RuntimeError: overflow, or kernels that are not installed.

    Source: online sparsity detection of PIT (SOSP 2023, section 3.3).

    >>> x = torch.zeros(4, 6)
    >>> x[0, 5] = x[3, 2] = 1
    >>> p = detect(x, (2, 2), backend="reference")
    >>> p.offsets.tolist(), p.indices[: p.nnz].tolist()
    ([0, 1, 2], [2, 1])
    """
    check_matrix("x", x)
    if x.dtype not in _DTYPES:
        raise TypeError(f"x must be a float, an integer of up to 64 bits, uint8 or bool, got {x.dtype}")
    check_transforms("gossamer.ops.detect", x)
    bm, bn = check_pair("tile", tile, 1)
    check_capacity(capacity)
    check_overflow(overflow)
    check_backend(backend, "x", x)
    shape = (x.shape[0], x.shape[1])
    tile_rows, tile_cols = grid_of(shape, (bm, bn))
    every_tile = tile_rows * tile_cols
    wanted = every_tile if capacity is None else capacity
    op = detect_on(backend)
    offsets, indices = op(x.detach(), bm, bn, wanted, ordered)
    room, dense = room_for(offsets[-1], wanted, overflow, every_tile)
    if dense:
        return Pattern.full(shape, (bm, bn), device=x.device)
    if room != wanted:
        offsets, indices = op(x.detach(), bm, bn, room, ordered)
    return Pattern(offsets, indices, shape, (bm, bn))


def _fake_gather(x: Tensor, offsets: Tensor, indices: Tensor, bm: int, bn: int) -> Tensor:
    return x.new_empty(indices.shape[0], bm, bn)


def _fake_scatter(values: Tensor, offsets: Tensor, indices: Tensor, rows: int, cols: int) -> Tensor:
    return values.new_empty(rows, cols)


gather_on = register(
    "gather", "(Tensor x, Tensor offsets, Tensor indices, SymInt bm, SymInt bn) -> Tensor", _fake_gather
)
scatter_on = register(
    "scatter", "(Tensor values, Tensor offsets, Tensor indices, SymInt rows, SymInt cols) -> Tensor", _fake_scatter
)


class Gather(Differentiable):
    name, operands = "gather", (0,)

    @staticmethod
    def compute(x: Tensor, offsets: Tensor, indices: Tensor, bm: int, bn: int, backend: Backend | None) -> Tensor:
        return gather_on(backend)(x, offsets, indices, bm, bn)

    @staticmethod
    def forward(ctx: Any, x: Tensor, offsets: Tensor, indices: Tensor, *rest: Any) -> Tensor:
        save(ctx, offsets, indices)
        ctx.shape, ctx.backend = x.shape, rest[-1]
        return Gather.compute(x, offsets, indices, *rest)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return Scatter.call(grad, *ctx.saved_tensors, *ctx.shape, ctx.backend), *[None] * 5


class Scatter(Differentiable):
    name, operands = "scatter", (0,)

    @staticmethod
    def compute(
        values: Tensor, offsets: Tensor, indices: Tensor, rows: int, cols: int, backend: Backend | None
    ) -> Tensor:
        return scatter_on(backend)(values, offsets, indices, rows, cols)

    @staticmethod
    def forward(ctx: Any, values: Tensor, offsets: Tensor, indices: Tensor, *rest: Any) -> Tensor:
        save(ctx, offsets, indices)
        ctx.tile, ctx.backend = values.shape[1:], rest[-1]
        return Scatter.compute(values, offsets, indices, *rest)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return Gather.call(grad, *ctx.saved_tensors, *ctx.tile, ctx.backend), *[None] * 5


def check_operand(name: str, x: Tensor, pattern: Pattern) -> None:
    """Refuse a tensor whose dtype no kernel moves or that lives on another device than the pattern."""
    if x.is_complex() or x.element_size() not in (1, 2, 4, 8):
        raise TypeError(f"{name} must have a real dtype of 1, 2, 4 or 8 bytes an element, got {x.dtype}")
    if x.device != pattern.device:
        raise ValueError(f"{name} must be on the pattern's device {pattern.device}, got {x.device}")


def gather(x: Tensor, pattern: Pattern, *, backend: Backend | None = None) -> Tensor:
    """Copy the present tiles of x, in slot order. Differentiable to any order; the backward is `scatter`.

    Args:
        x: [rows, cols] of the pattern's shape and device, any real dtype of 1, 2, 4 or 8 bytes. A batch is
            `x.flatten(0, 1)` with the pattern of the flattened matrix.
        pattern: the tiles to copy; read at face value on a GPU; see `pattern.validate()`.
        backend: None for the kernels of x's device; "cpu", "triton" or "reference" to insist.

    Returns:
        values [capacity, bm, bn], contiguous; slack slots and the padding of ragged tiles are zero.

    Raises:
        TypeError, ValueError: naming the argument. RuntimeError: kernels that are not installed.

    >>> pattern = Pattern.from_mask(torch.eye(2).bool())
    >>> gather(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), pattern, backend="reference").flatten()
    tensor([1., 4.])
    """
    check_matrix("x", x)
    check_pattern(pattern)
    if tuple(x.shape) != tuple(pattern.shape):
        raise ValueError(f"x must have the pattern's shape {tuple(pattern.shape)}, got {tuple(x.shape)}")
    check_operand("x", x, pattern)
    check_backend(backend, "x", x)
    return Gather.call(x, pattern.row_offsets(), pattern.indices.reshape(-1), *pattern.tile, backend)


def scatter(values: Tensor, pattern: Pattern, *, backend: Backend | None = None) -> Tensor:
    """Write tiles to their places. Differentiable to any order; the backward is `gather`.

    Args:
        values: [capacity, bm, bn] on the pattern's device, any real dtype of 1, 2, 4 or 8 bytes. What slack slots
            and the padding of ragged tiles hold does not matter.
        pattern: where the tiles go; read at face value on a GPU; see `pattern.validate()`.
        backend: None for the kernels of the values' device; "cpu", "triton" or "reference" to insist.

    Returns:
        dense [rows, cols], contiguous; absent tiles are zero.

    Raises:
        TypeError, ValueError: naming the argument. RuntimeError: kernels that are not installed.

    >>> pattern = Pattern.from_mask(torch.eye(2).bool())
    >>> scatter(torch.tensor([[[1.0]], [[4.0]]]), pattern, backend="reference")
    tensor([[1., 0.],
            [0., 4.]])
    """
    check_pattern(pattern)
    check_values(values, pattern)
    check_operand("values", values, pattern)
    check_backend(backend, "values", values)
    return Scatter.call(values, pattern.row_offsets(), pattern.indices.reshape(-1), *pattern.shape, backend)


class Transposed(NamedTuple):
    """What products with S^T need beside the values of S.

    Attributes:
        pattern: the tiles of S^T, rows ascending within each tile row, as many slots as S has.
        order: int32[capacity], the slot in S of each slot of S^T; `order[s] = s` in the slack.
        work: int64[parts, segments, 3] | None, a work partition of products with S^T (see `dsd`).
    """

    pattern: Pattern
    order: Tensor
    work: Tensor | None = None


def _fake_transpose(offsets: Tensor, indices: Tensor, tile_cols: int) -> tuple[Tensor, Tensor, Tensor]:
    capacity = indices.shape[0]
    return (
        offsets.new_empty(tile_cols + 1),
        indices.new_empty(capacity, dtype=index_dtype(offsets.shape[0] - 1)),
        indices.new_empty(capacity, dtype=torch.int32),
    )


transpose_on = register(
    "transpose", "(Tensor offsets, Tensor indices, SymInt tile_cols) -> (Tensor, Tensor, Tensor)", _fake_transpose
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
