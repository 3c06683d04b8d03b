"""Sparse times dense: the tiles of S, each times its band of rows of b, added up per tile row."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.kernels.reference._slots import accumulator, bands, check_places, inside, laid_out, slots, sum_rows


def dsd(
    values: Tensor,
    offsets: Tensor,
    indices: Tensor,
    order: Tensor | None,
    scale: Tensor | None,
    b: Tensor,
    rows: int,
    transposed: bool,
    column_major: bool,
    work: Tensor | None,
) -> Tensor:
    """values[capacity, bm, bk], b[k, n] -> c[rows, n] = S @ b, in b's dtype.

    The tile of slot s is `values[order[s]] * scale[order[s]]`; `transposed`: values are stored as [capacity, bk, bm].
    Only rows of b under a present tile are read. `work` divides the work and changes no number here: ignored.
    """
    row, column, present = slots(offsets, indices, -(-b.shape[0] // values.shape[1 if transposed else 2]))
    place = torch.arange(indices.numel(), device=b.device)
    if order is not None:
        check_places(order, present, indices.numel(), "order")
        place = torch.where(present, order.to(torch.int64), 0)
    kind = accumulator(b.dtype)
    tiles = values[place].to(kind)
    if scale is not None:
        tiles = tiles * scale[place].to(kind).view(-1, 1, 1)
    if transposed:
        tiles = tiles.transpose(1, 2)
    _, bm, bk = tiles.shape
    whole = present.view(-1, 1, 1) & inside(row, column, (bm, bk), (rows, b.shape[0]))
    products = tiles.masked_fill(~whole, 0) @ bands(b.to(kind), bk)[column]
    return laid_out(sum_rows(products, row, present, rows).to(b.dtype), column_major)
