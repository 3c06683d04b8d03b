"""Matrices with zeros, and the baselines' own formats of them."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from gossamer.bench.section import Settings
from gossamer.pattern import Pattern

Tile = tuple[int, int]

DENSE = "dense"  # the baseline of most sections: the fastest engine


def dtype_of(settings: Settings) -> torch.dtype:
    """What the products of a device are measured in."""
    return torch.bfloat16 if settings.device == "cuda" else torch.float32


def square(settings: Settings) -> tuple[int, int]:
    """(m = k, n) of the sections with one size."""
    return (256, 64) if settings.quick else (4096, 4096) if settings.device == "cuda" else (2048, 256)


def blocks(settings: Settings) -> tuple[int, ...]:
    """Sides of the square tiles that sections with one size go through."""
    return (16, 32, 64, 128) if settings.device == "cuda" else (1, 4, 8, 16, 32, 64)


def normal(rows: int, cols: int, settings: Settings, seed: int = 1) -> Tensor:
    """A dense operand."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, cols, generator=generator).to(settings.device, dtype_of(settings))


def draw(rows: int, cols: int, tile: Tile, density: float, settings: Settings) -> tuple[Tensor, Pattern]:
    """A matrix of which round(density * tiles) tiles, drawn uniformly, are nonzero; and the pattern of those."""
    generator = torch.Generator().manual_seed(0)
    grid = (-(-rows // tile[0]), -(-cols // tile[1]))
    present = torch.zeros(grid[0] * grid[1], dtype=torch.bool)
    present[torch.randperm(present.numel(), generator=generator)[: round(density * present.numel())]] = True
    mask = present.view(grid).repeat_interleave(tile[0], 0).repeat_interleave(tile[1], 1)[:rows, :cols]
    dense = torch.randn(rows, cols, generator=generator) * mask
    return dense.to(settings.device, dtype_of(settings)), Pattern.from_mask(mask, tile).to(settings.device)


def torch_csr(dense: Tensor) -> Tensor:
    """torch's CSR of the same matrix; torch warns that the layout is in beta, which a benchmark knows."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return dense.to_sparse_csr()


def torch_bsr(dense: Tensor, tile: Tile) -> Tensor:
    """torch's block-sparse rows of the same matrix."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return dense.to_sparse_bsr(tile)


def scipy_csr(dense: Tensor) -> Any | None:
    """scipy's CSR, or None where scipy is not installed (its rows are then left out)."""
    try:
        from scipy import sparse
    except ImportError:
        return None
    return sparse.csr_matrix(dense.numpy())
