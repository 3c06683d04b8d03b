"""A pattern's values, and other libraries' structures: plain torch, out of place, differentiable.

`keys` are tile numbers `row * tile_cols + col` in slot order, `tile_rows * tile_cols` in slack slots. Packing picks
tiles by number; unpacking writes them by number into a grid with one spare tile that takes the slack and is cut off.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from gossamer.pattern.build import index_dtype

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


def pack(dense: Tensor, keys: Tensor, grid: tuple[int, int], tile: tuple[int, int]) -> Tensor:
    """dense[rows, cols] -> values[capacity, bm, bn]; slack and the ragged edges' padding are zero."""
    (rows, cols), (tile_rows, tile_cols), (bm, bn) = dense.shape, grid, tile
    if tile_rows * tile_cols == 0:
        return dense.new_zeros(keys.numel(), bm, bn)
    padded = pad(dense, (0, tile_cols * bn - cols, 0, tile_rows * bm - rows)).view(tile_rows, bm, tile_cols, bn)
    present = keys < tile_rows * tile_cols
    safe = torch.where(present, keys, 0)
    picked = padded[safe // tile_cols, :, safe % tile_cols, :]
    return torch.where(present.view(-1, 1, 1), picked, torch.zeros((), dtype=dense.dtype, device=dense.device))


def unpack(values: Tensor, keys: Tensor, grid: tuple[int, int], shape: tuple[int, int]) -> Tensor:
    """values[capacity, bm, bn] -> dense[rows, cols]; absent tiles are zero."""
    (tile_rows, tile_cols), (_, bm, bn) = grid, values.shape
    tiles = values.new_zeros(tile_rows * tile_cols + 1, bm, bn).index_copy(0, keys, values)[:-1]
    dense = tiles.view(tile_rows, tile_cols, bm, bn).transpose(1, 2).reshape(tile_rows * bm, tile_cols * bn)
    return dense[: shape[0], : shape[1]].contiguous()


def tile_areas(keys: Tensor, shape: tuple[int, int], tile: tuple[int, int]) -> Tensor:
    """int64[capacity]: matrix elements under each slot's tile, ragged edges clipped, 0 in slack slots."""
    tile_cols = max((shape[1] + tile[1] - 1) // tile[1], 1)
    height = (shape[0] - keys // tile_cols * tile[0]).clamp(min=0, max=tile[0])
    width = (shape[1] - keys % tile_cols * tile[1]).clamp(min=0, max=tile[1])
    return height * width  # a slack key lies one row below the grid: height 0


def widened(tiles: Tensor, shape: tuple[int, int], tile: tuple[int, int]) -> Tensor:
    """bool[tile_rows, tile_cols] -> bool[rows, cols]: every tile's elements."""
    (rows, cols), (bm, bn) = tiles.shape, tile
    wide = tiles.view(rows, 1, cols, 1).expand(rows, bm, cols, bn).reshape(rows * bm, cols * bn)
    return wide[: shape[0], : shape[1]].contiguous()


def value_mask(keys: Tensor, grid: tuple[int, int], shape: tuple[int, int], tile: tuple[int, int]) -> Tensor:
    """bool[capacity, bm, bn]: which numbers of the values are elements of the matrix."""
    tile_cols = max(grid[1], 1)
    row = (keys // tile_cols * tile[0]).view(-1, 1) + torch.arange(tile[0], device=keys.device)
    column = (keys % tile_cols * tile[1]).view(-1, 1) + torch.arange(tile[1], device=keys.device)
    row_inside = (row < shape[0]) & (keys < grid[0] * grid[1]).view(-1, 1)
    return row_inside.unsqueeze(2) & (column < shape[1]).unsqueeze(1)


def from_bsr(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`torch.sparse_bsr` -> (offsets, indices, values)."""
    if not isinstance(matrix, Tensor) or matrix.layout != torch.sparse_bsr:
        raise TypeError(f"matrix must be a torch.sparse_bsr tensor, got {getattr(matrix, 'layout', type(matrix))}")
    if matrix.dim() != 2 or matrix.values().dim() != 3:
        raise ValueError(f"matrix must be one matrix [rows, cols], got shape {tuple(matrix.shape)}")
    values = matrix.values()
    tile_cols = matrix.shape[1] // values.shape[2]
    return matrix.crow_indices().to(torch.int64), matrix.col_indices().to(index_dtype(tile_cols)), values


def to_bsr(
    values: Tensor, keys: Tensor, grid: tuple[int, int], shape: tuple[int, int], tile: tuple[int, int]
) -> Tensor:
    """values[capacity, bm, bn] -> `torch.sparse_bsr`, which wants whole tiles, sorted columns and no slack."""
    if shape[0] % tile[0] or shape[1] % tile[1]:
        raise ValueError(f"torch.sparse_bsr needs whole tiles: shape {shape} is not a multiple of tile {tile}")
    if tuple(values.shape) != (keys.numel(), *tile):
        raise ValueError(f"values must have shape {(keys.numel(), *tile)}, got {tuple(values.shape)}")
    ordered, slots = keys.sort()
    offsets = torch.searchsorted(ordered, torch.arange(grid[0] + 1, device=keys.device) * grid[1])
    nnz = int(offsets[-1])
    return torch.sparse_bsr_tensor(
        offsets, ordered[:nnz] % max(grid[1], 1), values[slots[:nnz]], size=shape, check_invariants=True
    )


def to_block_mask(
    tiles: Tensor, shape: tuple[int, int], tile: tuple[int, int], mask_mod: Callable[..., Tensor] | None
) -> BlockMask:
    """bool[tile_rows, tile_cols] -> BlockMask whose queries are rows and whose keys are columns."""
    from torch.nn.attention.flex_attention import BlockMask

    bm, bn = tile

    def in_pattern(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        # The eager path and partial blocks look only at this function, never at the block lists.
        inside = tiles[q // bm, kv // bn]
        return inside if mask_mod is None else inside & mask_mod(b, h, q, kv)

    counts = tiles.sum(dim=1, dtype=torch.int32)[None, None]
    present_first = tiles.int().argsort(dim=1, descending=True, stable=True).to(torch.int32)[None, None]
    none, nothing = torch.zeros_like(counts), torch.zeros_like(present_first)
    partial, full = ((none, nothing), (counts, present_first))
    if mask_mod is not None:
        partial, full = full, partial
    return BlockMask.from_kv_blocks(*partial, *full, BLOCK_SIZE=tile, mask_mod=in_pattern, seq_lengths=shape)
