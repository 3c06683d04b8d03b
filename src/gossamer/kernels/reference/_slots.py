"""What the products share: the tile row of each slot, whole tiles of a matrix, and sums of tiles that share a row."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad


def slots(offsets: Tensor, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(row, column, present) of every slot: int64, int64, bool, each [capacity]; row and column are 0 in the slack."""
    slot = torch.arange(indices.numel(), device=indices.device)
    row = torch.searchsorted(offsets[1:], slot, right=True)
    present = slot < offsets[-1]
    return torch.where(present, row, 0), torch.where(present, indices.to(torch.int64), 0), present


def inside(row: Tensor, column: Tensor, tile: tuple[int, int], shape: tuple[int, int]) -> Tensor:
    """bool[capacity, bm, bn]: the elements of each slot's tile that lie within the matrix."""
    rows = row[:, None] * tile[0] + torch.arange(tile[0], device=row.device) < shape[0]
    columns = column[:, None] * tile[1] + torch.arange(tile[1], device=row.device) < shape[1]
    return rows[:, :, None] & columns[:, None, :]


def bands(x: Tensor, height: int) -> Tensor:
    """x[..., rows, cols] -> [..., bands, height, cols], zero below the last row; at least one band."""
    count = max(-(-x.shape[-2] // height), 1)
    return pad(x, (0, 0, 0, count * height - x.shape[-2])).unflatten(-2, (count, height))


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """Where sums of products are kept: float32 for the short floats, else the dtype itself."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def sum_rows(products: Tensor, row: Tensor, present: Tensor, rows: int) -> Tensor:
    """products[capacity, bm, n] added up per tile row, in order of slot -> [rows, n]; slack adds nothing."""
    _, bm, n = products.shape
    tile_rows = -(-rows // bm)
    total = products.new_zeros(tile_rows + 1, bm, n)  # one more, where the slack goes
    total.index_add_(0, torch.where(present, row, tile_rows), products)
    return total[:-1].reshape(tile_rows * bm, n)[:rows]


def laid_out(c: Tensor, column_major: bool) -> Tensor:
    """c[rows, n], contiguous, or the transposed view of a contiguous [n, rows]."""
    return c.t().contiguous().t() if column_major else c.contiguous()
