"""Choosing tiles and scoring them: random ones, the best ones, means over tiles whose edges may be ragged."""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor
from torch.nn.functional import pad

from gossamer import ops
from gossamer.pattern import Pattern


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


def tile_sums(x: Tensor, tile: tuple[int, int]) -> Tensor:
    """x[rows, cols] -> [tile_rows, tile_cols], the sum over each tile."""
    if tile == (1, 1):
        return x
    (rows, cols), (bm, bn) = x.shape, tile
    if rows % bm or cols % bn:
        x = pad(x, (0, -cols % bn, 0, -rows % bm))
    return x.view(x.shape[0] // bm, bm, x.shape[1] // bn, bn).sum((1, 3))


def tile_means(x: Tensor, tile: tuple[int, int]) -> Tensor:
    """x[rows, cols] -> [tile_rows, tile_cols], the mean over the elements that each tile really has; x for tile (1, 1).

    >>> tile_means(torch.tensor([[1.0, 3.0, 5.0]]), (1, 2)).tolist()
    [[2.0, 5.0]]
    """
    if tile == (1, 1):
        return x
    return tile_sums(x, tile) / tile_areas((x.shape[0], x.shape[1]), tile, x.device)


def inside(pattern: Pattern) -> Tensor:
    """bool[capacity, bm, bn]: which elements of the values are elements of the matrix: not slack, not padding."""
    keys, (rows, cols), (bm, bn) = pattern.keys(), pattern.shape, pattern.tile
    first_row = (keys // max(pattern.grid[1], 1) * bm).view(-1, 1)  # slack keys lie below the last row
    first_col = (keys % max(pattern.grid[1], 1) * bn).view(-1, 1)
    row = first_row + torch.arange(bm, device=keys.device) < rows
    col = first_col + torch.arange(bn, device=keys.device) < cols
    return (row & (keys < math.prod(pattern.grid)).view(-1, 1)).unsqueeze(2) & col.unsqueeze(1)


def best_tiles(scores: Tensor, shape: tuple[int, ...], tile: tuple[int, int], density: float) -> Pattern:
    """The round(density * tiles) tiles with the largest scores[tile_rows, tile_cols]; ties to the lower index."""
    check_density(density)
    count = round(density * scores.numel())
    if count == 0:
        raise ValueError(f"density={density} of {scores.numel()} tiles rounds to 0: nothing would be kept")
    chosen = scores.reshape(-1).sort(descending=True, stable=True).indices[:count]
    tiles = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device).index_fill_(0, chosen, True)
    return of_tiles(tiles.view(scores.shape), (shape[0], shape[1]), tile)


def random_tiles(
    shape: tuple[int, int], tile: tuple[int, int], density: float, generator: torch.Generator | None = None
) -> Pattern:
    """round(density * tiles) tiles at random, drawn on the CPU."""
    grid = (-(-shape[0] // tile[0]), -(-shape[1] // tile[1]))
    return best_tiles(torch.rand(grid, generator=generator, device="cpu"), shape, tile, density)


def of_tiles(tiles: Tensor, shape: tuple[int, int], tile: tuple[int, int]) -> Pattern:
    """The pattern with exactly these tiles: bool[tile_rows, tile_cols]."""
    whole = ops.detect(tiles, capacity=int(torch.count_nonzero(tiles)))
    return Pattern(whole.offsets, whole.indices, shape, tile)


def check_density(density: float) -> None:
    if isinstance(density, bool) or not isinstance(density, Real):
        raise TypeError(f"density must be a number, got {density!r}")
    if not 0.0 < density <= 1.0:
        raise ValueError(f"density must be in (0, 1], got {density}")


def generator_of(seed: int | None) -> torch.Generator | None:
    """A CPU generator with this seed; None for torch's global one."""
    if seed is None:
        return None
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed must be an integer or None, got {seed!r}")
    return torch.Generator().manual_seed(seed)
