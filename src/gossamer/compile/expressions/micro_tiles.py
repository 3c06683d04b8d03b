"""Micro-tiles: the regions worth finding empty, derived from the tiles of a dense kernel (PIT, SOSP 2023, section 3.2).

A dense kernel computes C[bm, bn] += A[bm, bk] * B[bk, bn]. Setting the extent of one permutation-invariant axis to 1
gives the region of the sparse operand that one index of that axis stands for; the kernel collects such regions until
its dense tile is full.

    sparse A, axis m: (1, bk)  rows gathered, rows of C scattered        sparse B, axis n: (bk, 1)
              axis k: (bm, 1)  columns of A and rows of B gathered                 axis k: (1, bn)

A tile is (rows, columns) in elements of the sparse operand; an extent of 0 stands for the whole of that dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gossamer.compile.expressions.axes import analyse
from gossamer.planner.tiles import Tile

Order = Literal["row", "column"]

MATMUL = "C[m,n] += A[m,k] * B[k,n]"
SECTOR = 32
"""Bytes of the smallest memory transaction of NVIDIA GPUs."""
CACHE_LINE = 64
"""Bytes of a CPU's."""


@dataclass(frozen=True)
class MicroTile:
    """A micro-tile and what it asks of the sparse operand's layout.

    Attributes:
        axis: "m", "k" or "n": what one micro-tile is one index of.
        tile: (rows, columns) of the sparse operand.
        order: how the operand must lie for a micro-tile to be contiguous; None for a single element.
        run: elements of a micro-tile that then follow one another.
    """

    axis: str
    tile: Tile
    order: Order | None
    run: int

    def fills(self, element_size: int, transaction: int) -> bool:
        """Does one micro-tile fill a memory transaction of so many bytes? 0 extents (whole dimensions) do."""
        return self.run == 0 or self.run * element_size >= transaction


def micro_tiles(bm: int, bk: int, bn: int, *, sparse: Literal["A", "B"] = "A") -> tuple[MicroTile, ...]:
    """The micro-tiles of a dense kernel with tile bm x bk x bn, one for each skippable axis of the sparse operand.

    >>> [(u.axis, u.tile, u.order) for u in micro_tiles(32, 64, 32)]
    [('m', (1, 64), 'row'), ('k', (32, 1), 'column')]
    >>> [(u.axis, u.tile) for u in micro_tiles(32, 64, 16, sparse="B")]
    [('k', (1, 16)), ('n', (64, 1))]
    """
    extents = {"m": bm, "k": bk, "n": bn}
    for name, extent in extents.items():
        if extent < 1:
            raise ValueError(f"b{name} must be at least 1, got {extent}")
    verdict = analyse(MATMUL, sparse)
    operand = next(operand for operand in verdict.expression.operands if operand.name == sparse)
    out = []
    for axis in operand.axes:
        if not verdict[axis].skippable:
            continue
        rows, cols = (1 if other == axis else extents[other] for other in operand.axes)
        order: Order | None = "row" if cols > 1 else "column" if rows > 1 else None
        out.append(MicroTile(axis, (rows, cols), order, max(rows, cols)))
    return tuple(out)
