"""PIT's product: a dense matrix that holds zeros, read in place, only at the tiles of a pattern."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.kernels.reference._slots import accumulator, bands, laid_out, slots, sum_rows
from gossamer.kernels.reference.gather import gather


def gather_mm(a: Tensor, offsets: Tensor, indices: Tensor, bm: int, bk: int, b: Tensor, column_major: bool) -> Tensor:
    """a[rows, k], b[batch, k, n] -> c[rows, n] = (a at the pattern's tiles, zero elsewhere) @ b.

    With batch > 1, a is `batch` matrices one below the other and no tile row straddles two of them.
    """
    row, column, present = slots(offsets, indices, -(-a.shape[1] // bk))
    matrix = torch.div(row * bm, max(a.shape[0] // b.shape[0], 1), rounding_mode="floor")
    kind = accumulator(b.dtype)
    products = gather(a, offsets, indices, bm, bk).to(kind) @ bands(b.to(kind), bk)[matrix, column]
    products = products.masked_fill(~present.view(-1, 1, 1), 0)
    return laid_out(sum_rows(products, row, present, a.shape[0]).to(b.dtype), column_major)
