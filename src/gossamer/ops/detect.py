"""detect: the pattern of a dense matrix, found at run time.

tile (r, c) is present  <=>  some element of it is not zero        (-0.0 is zero, NaN is not)
"""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.ops._register import Backend, check_backend, register
from gossamer.pattern import Overflow, Pattern
from gossamer.pattern.build import grid_of, index_dtype
from gossamer.pattern.check import check_capacity, check_matrix, check_overflow, check_pair, room_for

_DTYPES = frozenset(
    (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
     torch.uint8, torch.bool)
)  # fmt: skip


def _fake(x: Tensor, bm: int, bn: int, capacity: int, ordered: bool) -> tuple[Tensor, Tensor]:
    tile_rows, tile_cols = grid_of((x.shape[0], x.shape[1]), (bm, bn))
    return x.new_empty(tile_rows + 1, dtype=torch.int64), x.new_empty(capacity, dtype=index_dtype(tile_cols))


_on = register("detect", "(Tensor x, SymInt bm, SymInt bn, SymInt capacity, bool ordered) -> (Tensor, Tensor)", _fake)


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
    bm, bn = check_pair("tile", tile, 1)
    check_capacity(capacity)
    check_overflow(overflow)
    check_backend(backend, "x", x)
    shape = (x.shape[0], x.shape[1])
    tile_rows, tile_cols = grid_of(shape, (bm, bn))
    every_tile = tile_rows * tile_cols
    wanted = every_tile if capacity is None else capacity
    op = _on(backend)
    offsets, indices = op(x.detach(), bm, bn, wanted, ordered)
    room, dense = room_for(offsets[-1], wanted, overflow, every_tile)
    if dense:
        return Pattern.full(shape, (bm, bn), device=x.device)
    if room != wanted:
        offsets, indices = op(x.detach(), bm, bn, room, ordered)
    return Pattern(offsets, indices, shape, (bm, bn))
