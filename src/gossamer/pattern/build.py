"""From dense masks, scores and ids to `(offsets, indices)`: static shapes, no device sync (numpy on a CPU, else torch).

    present   = [[1, 0, 1],         offsets = [0, 2, 2, 3]     row i owns indices[offsets[i]:offsets[i + 1]]
                 [0, 0, 0],         indices = [0, 2, 1, 0]     capacity 4: the last entry is slack
                 [0, 1, 0]]

A present tile's slot is the number of present tiles before it in row-major order, a running sum of the mask. Writing
each tile's column to its slot, and every absent or overflowing tile's to one spare slot that is then cut off, needs
no size that depends on the data (unlike `nonzero`).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from gossamer.pattern.check import check_pair, is_open, require, sized


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


def shape_of(name: str, x: Tensor, tile: tuple[int, int], shape: tuple[int, int] | None) -> tuple[int, int]:
    """The shape in elements of a matrix that has one tile for each entry of x; None for whole tiles."""
    grid = (x.shape[0], x.shape[1])
    if shape is None:
        return grid[0] * tile[0], grid[1] * tile[1]
    shape = check_pair("shape", shape, 0)
    if grid_of(shape, tile) != grid:
        raise ValueError(f"{name} must have one entry per tile, {grid_of(shape, tile)}, got {grid}")
    return shape


def any_in_tile(mask: Tensor, tile: tuple[int, int]) -> Tensor:
    """bool[rows, cols] -> bool[tile_rows, tile_cols]: is any element of the tile true?"""
    if tile == (1, 1):
        return mask
    (rows, cols), (bm, bn) = mask.shape, tile
    tile_rows, tile_cols = grid_of((rows, cols), tile)
    padded = pad(mask, (0, tile_cols * bn - cols, 0, tile_rows * bm - rows))
    return padded.view(tile_rows, bm, tile_cols, bn).any(dim=3).any(dim=1)


def tile_areas(shape: tuple[int, int], tile: tuple[int, int], device: torch.device | str = "cpu") -> Tensor:
    """int64[tile_rows, tile_cols]: elements of each tile inside the matrix; one number [1, 1] when none is ragged.

    >>> tile_areas((3, 4), (2, 2)).tolist(), tile_areas((4, 4), (2, 2)).tolist()
    ([[4, 4], [2, 2]], [[4]])
    """
    if shape[0] % tile[0] == 0 and shape[1] % tile[1] == 0:
        return torch.tensor([[tile[0] * tile[1]]], device=device)
    sides = []
    for size, side in zip(shape, tile, strict=True):
        first = torch.arange(0, size, side, device=device)
        sides.append((size - first).clamp(max=side))
    return torch.outer(*sides)


def tile_means(x: Tensor, tile: tuple[int, int]) -> Tensor:
    """x[rows, cols] -> [tile_rows, tile_cols], the mean over the elements that each tile really has; x for tile (1, 1).

    >>> tile_means(torch.tensor([[1.0, 3.0, 5.0]]), (1, 2)).tolist()
    [[2.0, 5.0]]
    """
    if tile == (1, 1):
        return x
    (rows, cols), (bm, bn) = x.shape, tile
    if rows % bm or cols % bn:
        x = pad(x, (0, -cols % bn, 0, -rows % bm))
    sums = x.view(x.shape[0] // bm, bm, x.shape[1] // bn, bn).sum((1, 3))
    return sums / tile_areas((rows, cols), tile, x.device)


def full(tile_rows: int, tile_cols: int, device: torch.device | str | None) -> tuple[Tensor, Tensor]:
    """(offsets, indices) of every tile."""
    dtype = index_dtype(tile_cols)  # first: it refuses what no memory could hold
    columns = torch.arange(tile_cols, device=device).to(dtype).repeat(tile_rows)
    return torch.arange(tile_rows + 1, device=device) * tile_cols, columns


def _is_plain(x: Tensor) -> bool:
    """May numpy read it, in a tenth of the time? Not what a graph records, nor what a device would have to send."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._len_torch_dispatch_stack():
        return False
    return type(x) is Tensor and x.device.type == "cpu" and not torch._C._functorch.is_functorch_wrapped_tensor(x)


def count_rows(tiles: Tensor) -> Tensor:
    """bool[tile_rows, tile_cols] -> offsets int64[tile_rows + 1]."""
    plain = _is_plain(tiles)
    counts = torch.from_numpy(np.count_nonzero(tiles.numpy(), axis=1)) if plain else tiles.sum(1, dtype=torch.int64)
    return pad(counts.cumsum(0), (1, 0))


def columns_of(tiles: Tensor, capacity: int) -> Tensor:
    """bool[tile_rows, tile_cols] -> indices[capacity], row-major; slack is 0, tiles past the capacity are left out."""
    tile_rows, tile_cols = tiles.shape
    flat = tiles.reshape(-1)
    if _is_plain(tiles):
        found = torch.from_numpy(np.flatnonzero(tiles.numpy())[:capacity] % max(tile_cols, 1))
        return pad(found, (0, capacity - found.numel())).to(index_dtype(tile_cols))
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


def check_ids(ids: Tensor, n: int) -> None:
    if not isinstance(ids, Tensor) or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise TypeError(f"ids must be an integer tensor, got {getattr(ids, 'dtype', type(ids).__name__)}")
    if ids.dim() not in (1, 2):
        raise ValueError(f"ids must have shape [tokens] or [tokens, k], got {tuple(ids.shape)}")
    if n < 0:
        raise ValueError(f"n must be at least 0, got {n}")


def route(ids: Tensor, n: int, name: str = "ids") -> tuple[Tensor, Tensor]:
    """ids[tokens, k], each below n, negative = nowhere -> (offsets[n + 1], int32[tokens * k]), tokens ascending.

    `name` is what errors call the ids. The dtype does not depend on the number of tokens, which a graph may leave open.
    """
    tokens, k = ids.shape
    nowhere = n * tokens
    if not is_open(nowhere) and nowhere >= 2**63:
        raise ValueError(f"n must be less than 2**63 / {tokens} for {tokens} tokens, got {n}")
    if k == 1 and _is_plain(ids):
        return _route_one(ids.numpy().reshape(-1), n, name)
    wide = ids.to(torch.int64)  # before anything else: n need not fit the dtype of the ids
    require(
        (wide < n).all(),
        lambda: f"{name} must be below n={n}, got {int(ids.max())}",
        f"{name} must be below {sized('n', n)}",
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


def _route_one(ids: np.ndarray, n: int, name: str) -> tuple[Tensor, Tensor]:
    """`route` for one destination a token, in a tenth of the time."""
    if ids.size and int(ids.max()) >= n:
        raise ValueError(f"{name} must be below n={n}, got {int(ids.max())}")
    wide = ids.astype(np.int64)
    wide[wide < 0] = n
    order = np.argsort(wide, kind="stable").astype(np.int32)
    offsets = np.searchsorted(wide[order], np.arange(n + 1))
    order[offsets[n] :] = 0  # slack
    return torch.from_numpy(offsets), torch.from_numpy(order)


def largest(scores: Tensor, k: int) -> Tensor:
    """scores[tile_rows, tile_cols] -> indices[tile_rows, k] of the k largest, ascending; ties go to the lower index.

    A stable sort, because `torch.topk` leaves the choice among ties open and devices differ.
    """
    if not 0 <= k <= scores.shape[1]:
        raise ValueError(f"k must be between 0 and the {scores.shape[1]} tile columns, got {k}")
    order = scores.sort(dim=1, descending=True, stable=True).indices[:, :k]
    return order.sort(dim=1).values.to(index_dtype(scores.shape[1]))
