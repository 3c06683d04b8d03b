"""The tiles that a layer begins with: drawn at random, or those of largest score."""

from __future__ import annotations

from numbers import Real

import torch
from torch import Tensor

from gossamer.pattern import Pattern
from gossamer.pattern.build import grid_of


def best_tiles(scores: Tensor, shape: tuple[int, int], tile: tuple[int, int], density: float) -> Pattern:
    """The round(density * tiles) tiles with the largest scores[tile_rows, tile_cols]; ties to the lower index."""
    check_density(density)
    count = round(density * scores.numel())
    if count == 0:
        raise ValueError(f"density={density} of {scores.numel()} tiles rounds to 0: nothing would be kept")
    chosen = scores.reshape(-1).sort(descending=True, stable=True).indices[:count]
    tiles = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device).index_fill_(0, chosen, True)
    return Pattern.from_tile_mask(tiles.view(scores.shape), tile, shape=shape, capacity=count)


def random_tiles(
    shape: tuple[int, int], tile: tuple[int, int], density: float, generator: torch.Generator | None = None
) -> Pattern:
    """round(density * tiles) tiles at random, drawn on the CPU."""
    return best_tiles(
        torch.rand(grid_of(shape, tile), generator=generator, dtype=torch.float32, device="cpu"), shape, tile, density
    )


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
