"""What the products share: the tile row of each slot, whole tiles of a matrix, and sums of tiles that share a row."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad


def slots(offsets: Tensor, indices: Tensor, tile_cols: int) -> tuple[Tensor, Tensor, Tensor]:
    """(row, column, present) of every slot: int64, int64, bool, each [capacity]; row and column are 0 in the slack.

    Raises ValueError where an index of torch would wrap around or stop with another word: see `demand`.
    """
    slot = torch.arange(indices.numel(), device=indices.device)
    check_offsets(offsets, indices.numel())
    row = torch.searchsorted(offsets[1:], slot, right=True)
    present = slot < offsets[-1]
    column = indices.to(torch.int64)
    check_places(column, present, tile_cols, "indices")
    return torch.where(present, row, 0), torch.where(present, column, 0), present


def check_offsets(offsets: Tensor, room: int, first: int | None = 0) -> None:
    """Offsets start at `first` (None: anywhere), never decrease and end within `room`."""
    start = offsets[0] >= 0 if first is None else offsets[0] == first
    demand(start & (offsets.diff() >= 0).all(), f"offsets must start at {first or 0} and never decrease")
    demand(offsets[-1] <= room, f"offsets must end at most at {room}")


def check_places(places: Tensor, used: Tensor, bound: int, name: str) -> None:
    """Those of the places that are used lie in [0, bound)."""
    demand((~used | ((places >= 0) & (places < bound))).all(), f"{name} must be at least 0 and below {bound}")


def demand(condition: Tensor, rule: str) -> None:
    """Refuse a broken index on the host; elsewhere looking would be a sync, and under torch.compile a break."""
    if condition.device.type == "cpu" and not torch.compiler.is_compiling() and not bool(condition):
        raise ValueError(rule)


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
