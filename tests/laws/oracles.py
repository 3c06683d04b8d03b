"""What the ops mean, said differently: walks over tiles in plain Python, dense products in float64."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import pad

from gossamer.testing import Product, assert_same_bits

Index = tuple[Tensor, Tensor]


def tiles_of(x: Tensor, tile: tuple[int, int]) -> Tensor:
    """bool[tile_rows, tile_cols]: the tiles that nonzero elements fall into."""
    tiles = torch.zeros(-(-x.shape[0] // tile[0]), -(-x.shape[1] // tile[1]), dtype=torch.bool)
    row, column = x.nonzero().unbind(1)
    tiles[row // tile[0], column // tile[1]] = True
    return tiles


def index_of(tiles: Tensor, capacity: int) -> Index:
    """What `detect` returns for these tiles: all of them counted, the first ones listed, zeros in the slack."""
    columns = tiles.nonzero()[:capacity, 1]
    listed = torch.zeros(capacity, dtype=torch.int64)
    listed[: len(columns)] = columns
    return counted(tiles), listed.to(torch.uint16 if tiles.shape[1] <= 65536 else torch.int32)


def counted(tiles: Tensor) -> Tensor:
    return pad(tiles.sum(1).cumsum(0), (1, 0))


def shuffled(tiles: Tensor, slack: int = 3) -> Index:
    """The slots of each row in random order, and slack that holds the largest number, which is no address."""
    dtype = torch.uint16 if tiles.shape[1] <= 65536 else torch.int32
    columns = [row.nonzero().flatten() for row in tiles]
    columns = [mine[torch.randperm(len(mine))] for mine in columns]
    nonsense = torch.full((slack,), torch.iinfo(dtype).max)
    return counted(tiles), torch.cat([*columns, nonsense]).to(dtype)


def index(case: Product) -> Index:
    """The slots of each row in random order, and slack that is no address."""
    pattern = case.pattern()
    return pattern.offsets, pattern.indices


def pieces(offsets: Tensor, indices: Tensor, tile: tuple[int, int]) -> Iterator[tuple[int, slice, slice]]:
    """(slot, rows, columns) of every tile, as slices of the matrix."""
    (bm, bn), listed = tile, indices.tolist()
    for row, (start, end) in enumerate(pairwise(offsets.tolist())):
        for slot in range(start, min(end, len(listed))):
            yield slot, slice(row * bm, (row + 1) * bm), slice(listed[slot] * bn, (listed[slot] + 1) * bn)


def gathered(x: Tensor, offsets: Tensor, indices: Tensor, tile: tuple[int, int]) -> Tensor:
    values = torch.zeros(len(indices), *tile, dtype=x.dtype)
    for slot, rows, columns in pieces(offsets, indices, tile):
        piece = x[rows, columns]
        values[slot, : piece.shape[0], : piece.shape[1]] = piece
    return values


def scattered(values: Tensor, offsets: Tensor, indices: Tensor, shape: tuple[int, int]) -> Tensor:
    dense = torch.zeros(shape, dtype=values.dtype)
    for slot, rows, columns in pieces(offsets, indices, tuple(values.shape[1:])):
        height, width = dense[rows, columns].shape
        dense[rows, columns] = values[slot, :height, :width]
    return dense


def covered(tiles: Tensor, shape: tuple[int, int], tile: tuple[int, int]) -> Tensor:
    """bool[rows, cols]: the elements that lie in a tile that is present."""
    return tiles.repeat_interleave(tile[0], 0)[: shape[0]].repeat_interleave(tile[1], 1)[:, : shape[1]]


def spoilt(values: Tensor, offsets: Tensor, indices: Tensor, shape: tuple[int, int]) -> Tensor:
    """values with NaN (99 in integers) wherever nobody may look: in slack and in the padding of ragged tiles."""
    within = gathered(torch.ones(shape), offsets, indices, tuple(values.shape[1:]))
    return values.masked_fill(within == 0, torch.nan if values.is_floating_point() else 99)


def numbers(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Integers whose sums are exact: at most 8, 1 where a dtype has few bits; in float64 too large for a float32."""
    most = {8: 2**18, 4: 8}.get(dtype.itemsize, 1)
    return torch.randint(-most, most + 1, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_same_numbers(actual: Tensor, expected: Tensor) -> None:
    """The bits of the exact result, but for the sign of a zero: a sum that begins at zero is never -0.0."""
    assert_same_bits(actual + 0, expected.to(actual.dtype) + 0)


def divided(offsets: Tensor, parts: int, at_random: bool, capacity: int | None = None) -> Tensor:
    """work[parts, segments, 3] that visits every slot once: in pieces dealt out at random, or in equal ranges.

    Rows are cut anywhere, and entries that name nothing lie among the others.
    """
    lists: list[list[tuple[int, int, int]]] = [[] for _ in range(parts)]
    ends = offsets.tolist()
    for row, (start, end) in enumerate(pairwise(ends)):
        while start < end:
            if at_random:
                part, stop = int(torch.randint(parts, ())), start + int(torch.randint(1, 4, ()))
            else:
                part = start * parts // ends[-1]
                stop = -(-(part + 1) * ends[-1] // parts)
            lists[part].append((row, start, min(stop, end)))
            start = lists[part][-1][2]
    work = torch.full((parts, max(map(len, lists)) + 2, 3), -1)
    for part, listed in enumerate(lists):
        if at_random:
            listed[:] = [listed[i] for i in torch.randperm(len(listed))]
        work[part, 1 : len(listed) + 1] = torch.tensor(listed, dtype=torch.int64).view(-1, 3)
    work[:, -1] = torch.tensor([-1, 9, 9])
    return work
