"""The table of matrices that every law is tried on: shapes, tiles, densities and the corners where code goes wrong.

A case names a set of tiles, not elements: `tiles()` draws which are present and `dense(dtype)` fills them, leaving
some elements of a present tile zero (detection must look at all of them) but never a whole tile.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

Fill = Literal["random", "last corner", "first corner"]
Named = TypeVar("Named", bound=Any)
Structure = Literal["random", "clustered", "banded", "power law", "one row"]


@dataclass(frozen=True)
class Case:
    """One matrix: its size in elements, its tile, and how its present tiles are chosen and filled."""

    name: str
    rows: int
    cols: int
    tile: tuple[int, int]
    density: float
    fill: Fill = "random"
    empty_rows: bool = False
    structure: Structure = "random"

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows, self.cols

    @property
    def grid(self) -> tuple[int, int]:
        """(tile_rows, tile_cols), ragged tiles counted."""
        return -(-self.rows // self.tile[0]), -(-self.cols // self.tile[1])

    def tiles(self, seed: int = 0) -> Tensor:
        """bool[tile_rows, tile_cols], a fresh draw per seed."""
        generator = torch.Generator().manual_seed(seed)
        present = torch.rand(self.grid, generator=generator) < self._chance(generator)
        if self.empty_rows:
            present[:: max(self.grid[0] - 1, 1)] = False  # the first and the last row
            present[self.grid[0] // 2] = False
        return present

    def _chance(self, generator: torch.Generator) -> Tensor | float:
        """The probability of each tile, `density` on average except where that would exceed 1."""
        if self.structure == "random":
            return self.density
        rows, cols = self.grid
        row, col = torch.arange(rows).unsqueeze(1), torch.arange(cols)
        if self.structure == "clustered":  # squares of 4 x 4 tiles that are full or empty
            coarse = torch.rand(-(-rows // 4), -(-cols // 4), generator=generator) < self.density
            return coarse[row // 4, col // 4].float()
        if self.structure == "banded":  # the tiles nearest to the diagonal
            return (((row * cols).float() / max(rows, 1) - col).abs() * 2 < self.density * cols).float()
        if self.structure == "power law":  # row r has 1 / (r + 1) of the first row's tiles, rows shuffled
            weight = 1.0 / (1 + torch.randperm(rows, generator=generator).unsqueeze(1))
            return weight * (self.density * rows / weight.sum())
        return (row == rows // 2).float()  # all in one row, whatever the density

    def mask(self, seed: int = 0) -> Tensor:
        """bool[rows, cols]: the nonzero elements; every present tile has at least one, no absent tile has any."""
        (bm, bn), (tile_rows, tile_cols) = self.tile, self.grid
        generator = torch.Generator().manual_seed(seed + 1)
        # Which element of its tile each element is, counted from the corner that every tile has even when ragged.
        row, col = torch.arange(self.rows), torch.arange(self.cols)
        if self.fill == "last corner":
            row_end = torch.clamp((row // bm + 1) * bm, max=self.rows) - 1
            col_end = torch.clamp((col // bn + 1) * bn, max=self.cols) - 1
            inside = (row == row_end)[:, None] & (col == col_end)
        else:
            inside = (row % bm == 0)[:, None] & (col % bn == 0)
            if self.fill == "random":
                inside = inside | (torch.rand(self.rows, self.cols, generator=generator) < 0.5)
        tile_of_row, tile_of_col = row // bm, col // bn
        if tile_rows * tile_cols == 0:
            return inside
        return self.tiles(seed)[tile_of_row][:, tile_of_col] & inside

    def dense(self, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
        """A matrix with these nonzeros: small integers, exact in every dtype, of both signs if it has them."""
        generator = torch.Generator().manual_seed(seed + 2)
        size = torch.randint(1, 8, self.shape, generator=generator)
        if dtype.is_signed:
            size = size * (torch.randint(0, 2, self.shape, generator=generator) * 2 - 1)
        return torch.where(self.mask(seed), size, 0).to(dtype)


CASES: tuple[Case, ...] = (
    Case("one element", 1, 1, (1, 1), 1.0),
    Case("elements", 17, 23, (1, 1), 0.3),
    Case("row tiles", 13, 40, (1, 8), 0.4),
    Case("column tiles", 40, 13, (8, 1), 0.4),
    Case("blocks", 64, 96, (16, 16), 0.3),
    Case("ragged", 37, 53, (8, 16), 0.4),
    Case("ragged, odd tile", 31, 29, (3, 5), 0.5),
    Case("ragged by one", 17, 33, (16, 32), 0.7),
    Case("one short of whole", 15, 31, (8, 16), 0.7),
    Case("tile larger than the matrix", 5, 7, (8, 16), 1.0),
    Case("last corner", 37, 53, (8, 16), 0.5, "last corner"),
    Case("last corner, odd tile", 31, 29, (3, 5), 0.5, "last corner"),
    Case("first corner", 37, 53, (8, 16), 0.5, "first corner"),
    Case("empty rows", 35, 24, (5, 4), 0.5, empty_rows=True),
    Case("no tiles", 32, 48, (8, 16), 0.0),
    Case("every tile", 32, 48, (8, 16), 1.0),
    Case("every tile, ragged", 37, 53, (8, 16), 1.0),
    Case("one row", 1, 3000, (1, 1), 0.1),
    Case("one column", 700, 1, (1, 1), 0.2),
    Case("narrow", 205, 3, (1, 1), 0.5),
    Case("one tile row, long tiles", 4, 5000, (4, 1500), 0.6),
    Case("tall tiles", 90, 70, (32, 1), 0.2),
    Case("large tiles", 130, 90, (64, 64), 0.6),
    Case("last column of uint16", 2, 65536, (1, 1), 0.001, "last corner"),
    Case("first width of int32", 2, 65537, (1, 1), 0.001),
    Case("no rows", 0, 8, (2, 2), 1.0),
    Case("no columns", 8, 0, (2, 2), 1.0),
)

DTYPES: tuple[torch.dtype, ...] = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
)  # fmt: skip
"""Every dtype that detect, gather and scatter take."""


def ids(cases: Iterable[Case] = CASES) -> list[str]:
    """Names for `pytest.mark.parametrize(..., ids=ids())`."""
    return [case.name for case in cases]


def named(kind: str, table: Iterable[Named], name: str) -> Named:
    """The one of a table with this name."""
    found = {each.name: each for each in table}
    if name not in found:
        raise KeyError(f"no {kind} named {name!r}; there are {', '.join(map(repr, found))}")
    return found[name]


def case(name: str) -> Case:
    """The case with this name.

    >>> case("ragged").grid
    (5, 4)
    """
    return named("case", CASES, name)
