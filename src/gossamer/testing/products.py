"""The table of products that every law of the sparse products is tried on: a pattern, and a dense operand's width.

What no kernel may look at holds NaN: the slack slots of the values and the padding of ragged tiles. Slack indices hold
the largest number of their dtype, which is no address.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gossamer.pattern import Pattern
from gossamer.testing.cases import Case, Structure, named


@dataclass(frozen=True)
class Product:
    """S[rows, k] @ b[k, n] with the tiles of `case`, some of whose elements are zero."""

    case: Case
    n: int

    @property
    def name(self) -> str:
        return self.case.name

    def pattern(self, seed: int = 0, slack: int = 2) -> Pattern:
        """The tiles of the case, the slots of each row in random order, and `slack` slots that hold nonsense."""
        tiles = self.case.tiles(seed)
        generator = torch.Generator().manual_seed(seed + 3)
        rank = torch.rand(tiles.shape, generator=generator).masked_fill(~tiles, 2).argsort(dim=1)
        count = tiles.sum(1)
        columns = rank[torch.arange(tiles.shape[1]) < count.unsqueeze(1)]
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), count.cumsum(0)])
        dtype = torch.uint16 if tiles.shape[1] <= 65536 else torch.int32
        nonsense = torch.full((slack,), torch.iinfo(dtype).max)
        return Pattern(offsets, torch.cat([columns, nonsense]).to(dtype), self.case.shape, self.case.tile)

    def values(self, pattern: Pattern, s: Tensor) -> Tensor:
        """values[capacity, bm, bn] of s[rows, k] with NaN wherever nobody may look."""
        inside = pattern.pack(torch.ones_like(s)) != 0
        values = pattern.pack(s)
        return values.masked_fill(~inside, torch.nan) if values.is_floating_point() else values

    def sparse(self, dtype: torch.dtype = torch.float32, *, integers: bool = False, seed: int = 0) -> Tensor:
        """S, dense [rows, k]: integers of at most 7, or normal numbers."""
        if integers:
            return self.case.dense(dtype, seed)
        generator = torch.Generator().manual_seed(seed + 4)
        numbers = torch.randn(self.case.shape, generator=generator, dtype=torch.float64)
        return numbers.masked_fill(~self.case.mask(seed), 0).to(dtype)

    def dense(
        self, rows: int, cols: int, dtype: torch.dtype = torch.float32, *, integers: bool = False, seed: int = 0
    ) -> Tensor:
        """A dense operand [rows, cols]: integers of at most 8, or normal numbers."""
        generator = torch.Generator().manual_seed(seed + 5)
        if integers:
            return torch.randint(-8, 9, (rows, cols), generator=generator).to(dtype)
        return torch.randn(rows, cols, generator=generator, dtype=torch.float64).to(dtype)


def _product(
    name: str, rows: int, k: int, n: int, tile: tuple[int, int], density: float, structure: Structure = "random",
    *, empty_rows: bool = False,
) -> Product:  # fmt: skip
    return Product(Case(name, rows, k, tile, density, empty_rows=empty_rows, structure=structure), n)


PRODUCTS: tuple[Product, ...] = (
    _product("one element", 1, 1, 1, (1, 1), 1.0),
    _product("elements", 33, 47, 17, (1, 1), 0.2),
    _product("elements, dense", 20, 30, 40, (1, 1), 1.0),
    _product("elements, wide", 15, 64, 130, (1, 1), 0.1),
    _product("elements, one column", 50, 40, 1, (1, 1), 0.3),
    _product("4 x 4", 40, 60, 33, (4, 4), 0.25),
    _product("8 x 8", 64, 48, 64, (8, 8), 0.4),
    _product("16 x 16", 96, 128, 48, (16, 16), 0.3),
    _product("16 x 16, narrow", 96, 128, 3, (16, 16), 0.3),
    _product("16 x 16, dense", 64, 64, 31, (16, 16), 1.0),
    _product("16 x 16, ragged", 41, 57, 19, (16, 16), 0.6),
    _product("32 x 32", 96, 160, 40, (32, 32), 0.4),
    _product("32 x 32, ragged by one", 33, 65, 16, (32, 32), 0.7),
    _product("64 x 64", 200, 130, 20, (64, 64), 0.5),
    _product("128 x 128", 260, 300, 24, (128, 128), 0.6),
    _product("128 x 128 over a small matrix", 9, 11, 5, (128, 128), 1.0),
    _product("1 x 8", 30, 44, 21, (1, 8), 0.3),
    _product("8 x 1", 44, 30, 21, (8, 1), 0.3),
    _product("32 x 1", 100, 45, 36, (32, 1), 0.3),
    _product("whole rows", 40, 50, 18, (1, 50), 0.4),
    _product("whole columns", 50, 40, 18, (50, 1), 0.4),
    _product("16 x 4", 50, 30, 16, (16, 4), 0.4),
    _product("3 x 5", 31, 29, 13, (3, 5), 0.5),
    _product("clustered", 120, 130, 24, (4, 4), 0.2, "clustered"),
    _product("banded", 128, 128, 24, (8, 8), 0.2, "banded"),
    _product("power law", 150, 90, 24, (4, 4), 0.2, "power law"),
    _product("power law, elements", 90, 110, 12, (1, 1), 0.1, "power law"),
    _product("one crowded row", 130, 128, 24, (16, 16), 0.2, "one row"),
    _product("one crowded row of elements", 40, 700, 24, (1, 1), 0.2, "one row"),
    _product("empty rows", 70, 48, 9, (8, 8), 0.5, empty_rows=True),
    _product("no tiles", 32, 48, 8, (8, 16), 0.0),
    _product("no rows", 0, 8, 4, (2, 2), 1.0),
    _product("no columns", 8, 0, 4, (2, 2), 1.0),
    _product("nothing to multiply", 8, 6, 0, (2, 2), 1.0),
    _product("last column of uint16", 2, 65536, 3, (1, 1), 0.001),
    _product("first width of int32", 2, 65537, 3, (1, 1), 0.001),
    _product("many rows", 70000, 3, 2, (1, 1), 0.03),
)


def product(name: str) -> Product:
    """The product with this name.

    >>> product("whole rows").case.grid
    (40, 1)
    """
    return named("product", PRODUCTS, name)
