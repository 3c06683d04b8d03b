"""Tiles of the sparse operand of a product: (rows, columns) in elements; 0 stands for the whole of that dimension."""

from __future__ import annotations

from typing import Literal

from gossamer.pattern.check import check_pair

Tile = tuple[int, int]


def resolve(tile: Tile, shape: tuple[int, int]) -> Tile:
    """The tile in elements: extents of 0 become the whole dimension (at least 1).

    >>> resolve((1, 0), (4, 6))
    (1, 6)
    """
    rows, cols = check_pair("tile", tile, 0)
    return rows or max(shape[0], 1), cols or max(shape[1], 1)


def axis_of(tile: Tile, shape: tuple[int, int], sparse: Literal["a", "b"] = "a") -> str:
    """What a tile of the sparse operand skips along: "m", "k", "n", or "block" when it is longer than 1 both ways.

    >>> axis_of((1, 0), (4, 6)), axis_of((32, 1), (64, 64)), axis_of((32, 1), (64, 64), "b"), axis_of((8, 8), (64, 64))
    ('m', 'k', 'n', 'block')
    """
    rows, cols = resolve(tile, shape)
    first, second = ("m", "k") if sparse == "a" else ("k", "n")
    if rows == 1:
        return first
    return second if cols == 1 else "block"
