"""What random arguments of ops are made of."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

Arguments = dict[str, Any]


def integers(draw: random.Random, *shape: int, dtype: torch.dtype = torch.float32, density: float = 1.0) -> Tensor:
    """Small integers, whose sums are exact in any order."""
    seed = torch.Generator().manual_seed(draw.getrandbits(31))
    x = torch.randint(-4, 5, shape, generator=seed)
    return x.mul(torch.rand(shape, generator=seed) < density).to(dtype)


def sizes(draw: random.Random) -> tuple[int, int, int, int]:
    """Rows, columns and a tile; sometimes enough for two threads."""
    large = draw.random() < 0.1
    rows, cols = draw.randint(0, 300 if large else 20), draw.randint(0, 300 if large else 40)
    bm, bn = draw.choice(((1, 1), (4, 4), (16, 16), (3, 5), (1, 16), (16, 1), (32, 1), (1, 400), (256, 16), (2, 20)))
    return rows, cols, bm, bn
