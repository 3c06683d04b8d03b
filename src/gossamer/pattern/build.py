"""From dense masks, scores and ids to `(offsets, indices)`: plain torch, static shapes, no device sync.

    present   = [[1, 0, 1],         offsets = [0, 2, 2, 3]     row i owns indices[offsets[i]:offsets[i + 1]]
                 [0, 0, 0],         indices = [0, 2, 1, 0]     capacity 4: the last entry is slack
                 [0, 1, 0]]

A present tile's slot is the number of present tiles before it in row-major order, a running sum of the mask. Writing
each tile's column to its slot, and every absent or overflowing tile's to one spare slot that is then cut off, needs
no size that depends on the data (unlike `nonzero`).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from gossamer.pattern.check import require


def index_dtype(tile_cols: int) -> torch.dtype:
    """The narrowest index type that can number `tile_cols` columns."""
    if tile_cols <= 65536:
        return torch.uint16
    if tile_cols > 2**31:
        raise ValueError(
            f"indices are at most int32, which names 2**31 tile columns, got {tile_cols}: take wider tiles"
        )
    return torch.int32


def grid_of(shape: tuple[int, int], tile: tuple[int, int]) -> tuple[int, int]:
    """The number of tile rows and tile columns; a ragged last tile counts as one."""
    return (shape[0] + tile[0] - 1) // tile[0], (shape[1] + tile[1] - 1) // tile[1]


def any_in_tile(mask: Tensor, tile: tuple[int, int]) -> Tensor:
    """bool[rows, cols] -> bool[tile_rows, tile_cols]: is any element of the tile true?"""
    if tile == (1, 1):
        return mask
    (rows, cols), (bm, bn) = mask.shape, tile
    tile_rows, tile_cols = grid_of((rows, cols), tile)
    padded = pad(mask, (0, tile_cols * bn - cols, 0, tile_rows * bm - rows))
    return padded.view(tile_rows, bm, tile_cols, bn).any(dim=3).any(dim=1)


def count_rows(tiles: Tensor) -> Tensor:
    """bool[tile_rows, tile_cols] -> offsets int64[tile_rows + 1]."""
    return pad(tiles.sum(dim=1, dtype=torch.int64).cumsum(0), (1, 0))


def columns_of(tiles: Tensor, capacity: int) -> Tensor:
    """bool[tile_rows, tile_cols] -> indices[capacity], row-major; slack is 0, tiles past the capacity are left out."""
    tile_rows, tile_cols = tiles.shape
    flat = tiles.reshape(-1)
    slot = torch.where(flat, flat.cumsum(0) - 1, capacity).clamp(max=capacity)
    column = torch.arange(tile_cols, device=tiles.device).expand(tile_rows, tile_cols).reshape(-1)
    indices = torch.zeros(capacity + 1, dtype=torch.int64, device=tiles.device).scatter_(0, slot, column)
    return indices[:capacity].to(index_dtype(tile_cols))


def from_keys(keys: Tensor, tile_rows: int, tile_cols: int, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """Sorted tile numbers `row * tile_cols + col`, then slack (`tile_rows * tile_cols`) -> (offsets, indices).

    Indices have the narrowest dtype, or the given one.
    """
    starts = torch.arange(tile_rows + 1, device=keys.device) * tile_cols
    return torch.searchsorted(keys, starts), (keys % max(tile_cols, 1)).to(dtype or index_dtype(tile_cols))


def route(ids: Tensor, n: int, name: str = "ids") -> tuple[Tensor, Tensor]:
    """ids[tokens, k], each below n, negative = nowhere -> (offsets[n + 1], int32[tokens * k]), tokens ascending.

    `name` is what errors call the ids. The dtype does not depend on the number of tokens, which a graph may leave open.
    """
    tokens, k = ids.shape
    nowhere = n * tokens
    if nowhere >= 2**63:
        raise ValueError(f"n must be less than 2**63 / {tokens} for {tokens} tokens, got {n}")
    wide = ids.to(torch.int64)  # before anything else: n need not fit the dtype of the ids
    require(
        (wide < n).all(),
        lambda: f"{name} must be below n={n}, got {int(ids.max())}",
        f"{name} must be below n={n}",
    )
    token = torch.arange(tokens, device=ids.device).unsqueeze(1)
    keys = torch.where((wide >= 0) & (wide < n), wide * tokens + token, nowhere).reshape(-1).sort().values
    if k > 1:
        repeated = (keys[1:] == keys[:-1]) & (keys[1:] < nowhere)
        require(
            ~repeated.any(),
            lambda: (
                f"{name} must not name one destination twice in a row: token {int(keys[1:][repeated][0]) % tokens} does"
            ),
            f"{name} must not name one destination twice in a row",
        )
    return from_keys(keys, n, tokens, torch.int32)


def largest(scores: Tensor, k: int) -> Tensor:
    """scores[tile_rows, tile_cols] -> indices[tile_rows, k] of the k largest, ascending; ties go to the lower index.

    A stable sort, because `torch.topk` leaves the choice among ties open and devices differ.
    """
    order = scores.sort(dim=1, descending=True, stable=True).indices[:, :k]
    return order.sort(dim=1).values.to(index_dtype(scores.shape[1]))
