"""Occupied fraction: of the tiles of a matrix, how many hold a nonzero. Exactly, or from a few bands of rows.

    8 x 8, nonzeros in one column        tile (1, 1): 8/64      tile (8, 1): 1/8      tile (1, 8): 8/8

The sample reads bands of whole rows, evenly spaced, once: one bit for each element. The fraction at every candidate
tile then comes from those bits, which are few, so that many candidates cost little more than one.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gossamer.pattern import Pattern
from gossamer.pattern.build import any_in_tile, grid_of
from gossamer.pattern.check import check_matrix, check_pair
from gossamer.planner.tiles import Tile, resolve

_WORD = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
_popcount = getattr(np, "bitwise_count", None)  # NumPy 2
_GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0


def occupied_fraction(x: Tensor | Pattern, tile: Tile) -> float:
    """The exact fraction of tiles that hold a nonzero (-0.0 is zero, NaN is not).

    Args:
        x: [rows, cols] of numbers or bool, or a Pattern, whose present tiles count as nonzero throughout.
        tile: (rows, columns) in elements; 0 stands for the whole dimension. Ragged edge tiles count as one each.

    Returns:
        Between 0 and 1; 0 for an empty matrix. Read on the host: a device sync.

    >>> x = torch.zeros(8, 8)
    >>> x[:, 3] = 1
    >>> [occupied_fraction(x, tile) for tile in ((1, 1), (8, 1), (1, 0))]
    [0.125, 0.125, 1.0]
    """
    if isinstance(x, Pattern):
        shape, inner = x.shape, x.tile
        outer = resolve(tile, shape)
        if outer[0] % inner[0] == 0 and outer[1] % inner[1] == 0:
            # Whole tiles of the pattern under each tile: the mask of tiles is enough, however fine the elements.
            return _mean(any_in_tile(x.to_tile_mask(), (outer[0] // inner[0], outer[1] // inner[1])))
        return _mean(any_in_tile(x.to_mask(), outer))
    check_matrix("x", x)
    mask = x if x.dtype == torch.bool else x != 0
    return _mean(any_in_tile(mask, resolve(tile, (x.shape[0], x.shape[1]))))


def _mean(tiles: Tensor) -> float:
    return int(torch.count_nonzero(tiles)) / max(tiles.numel(), 1)


def sample(x: Tensor, tiles: Sequence[Tile], *, rows: int = 256, turn: int = 0) -> tuple[float, ...]:
    """Estimate `occupied_fraction` at several tiles from about `rows` of the rows.

    Args:
        x: [rows, cols], in any layout: of a transposed view only the bands are copied. On a GPU a device sync.
        tiles: as in `occupied_fraction`. Tiles as tall as the sample or taller make the sample taller.
        rows: rows to read, in bands as tall as the tallest tile, 32 at least.
        turn: samples with turns 0, 1, 2, ... read different bands.

    Returns:
        One fraction for each tile. Exact when the sample is the whole matrix.
    """
    check_matrix("x", x)
    total, cols = x.shape
    if total == 0 or cols == 0:
        return (0.0,) * len(tiles)
    whole = [resolve(tile, (total, cols)) for tile in tiles]
    height = math.lcm(*(bm for bm, _ in whole)) if whole else 1
    height = min(height * -(-32 // height), total)
    starts = _starts(total, height, rows, turn)
    x = x.detach()
    if x.device.type != "cpu":
        masks = [x[start : start + height] != 0 for start in starts]
        hits = [torch.stack([any_in_tile(mask, tile).sum() for mask in masks]).sum() for tile in whole]
        of = [sum(math.prod(grid_of((mask.shape[0], cols), tile)) for mask in masks) for tile in whole]
        return tuple((torch.stack(hits).double() / torch.tensor(of, device=x.device)).tolist()) if whole else ()
    if not x.is_contiguous():
        x = torch.cat([x[start : start + height] for start in starts])
        starts, total = list(range(0, x.shape[0], height)), x.shape[0]
    from gossamer.kernels.cpu.flags import flags

    # The last band of a matrix that is read whole may be shorter than the others.
    last = total - starts[-1] if starts[-1] + height > total else 0
    bits = [flags(x, starts[:-1] if last else starts, height)] if not last or starts[:-1] else []
    bits += [flags(x, starts[-1:], last)] if last else []
    counts = [[_count(some.numpy().view(np.uint64), tile, cols) for some in bits] for tile in whole]
    return tuple(sum(hit for hit, _ in some) / sum(of for _, of in some) for some in counts)


def _starts(total: int, height: int, rows: int, turn: int) -> list[int]:
    bands = -(-total // height)
    wanted = min(max(round(rows / height), 1), bands)
    if wanted == bands:
        return list(range(0, total, height))
    # A step of the golden ratio: no two turns soon read the same bands, whatever period the data has.
    shift = (turn * _GOLDEN) % 1.0
    return [int((i + shift) * bands / wanted) * height for i in range(wanted)]


def _count(bits: np.ndarray, tile: Tile, cols: int) -> tuple[int, int]:
    """(tiles with a bit set, tiles) of bits[bands, rows, words]."""
    bands, rows, words = bits.shape
    bm, bn = tile
    whole = rows // bm * bm
    groups = [bits[:, :whole].reshape(bands, whole // bm, bm, words)] if whole else []
    if whole < rows:
        groups.append(bits[:, None, whole:])
    hit = of = 0
    across = grid_of((1, cols), (1, bn))[1]
    for group in groups:
        flat = np.bitwise_or.reduce(group, axis=2) if group.shape[2] > 1 else group[:, :, 0]
        of += bands * flat.shape[1] * across
        if bn >= cols:
            hit += int(np.count_nonzero(flat.any(axis=-1)))
        elif bn in _WORD:
            hit += int(np.count_nonzero(flat.view(_WORD[bn])))
        else:
            if bn == 1 and _popcount is not None:
                hit += int(_popcount(flat).sum())
                continue
            single = np.unpackbits(np.ascontiguousarray(flat).view(np.uint8), axis=-1, bitorder="little")[..., :cols]
            if bn > 1:
                single = np.logical_or.reduceat(single, np.arange(0, cols, bn), axis=-1)
            hit += int(np.count_nonzero(single))
    return hit, of


class Window:
    """The mean of the last few samples, one number for each of several tiles.

    >>> window = Window(length=2)
    >>> window.add((0.5, 1.0)), window.add((0.25, 1.0)), window.add((0.25, 0.0))
    ((0.5, 1.0), (0.375, 1.0), (0.25, 0.5))
    """

    def __init__(self, length: int = 4) -> None:
        if length < 1:
            raise ValueError(f"length must be at least 1, got {length}")
        self.samples: deque[tuple[float, ...]] = deque(maxlen=length)

    def add(self, fractions: Sequence[float]) -> tuple[float, ...]:
        """Add a sample and return the mean of those in the window."""
        fractions = tuple(fractions)
        if self.samples and len(self.samples[0]) != len(fractions):
            raise ValueError(f"expected {len(self.samples[0])} fractions, one for each tile, got {len(fractions)}")
        self.samples.append(fractions)
        return self.mean()

    def mean(self) -> tuple[float, ...]:
        """Of the samples in the window; () without any."""
        return tuple(sum(column) / len(self.samples) for column in zip(*self.samples, strict=True))


def expected_occupancy(density: float, granule: Tile, tile: Tile) -> float:
    """The fraction of tiles that hold a nonzero when granules are nonzero independently with this probability.

    `1 - (1 - density) ** g` for g granules under a tile, averaged over the positions of tiles relative to granules.

    >>> round(1 - expected_occupancy(0.05, (2, 1), (32, 1)), 4)
    0.4401
    """
    if not 0.0 <= density <= 1.0:
        raise ValueError(f"density must lie in [0, 1], got {density}")
    check_pair("granule", granule, 1), check_pair("tile", tile, 1)
    total, places = 0.0, 0
    for rows in _touched(granule[0], tile[0]):
        for cols in _touched(granule[1], tile[1]):
            total += 1.0 - (1.0 - density) ** (rows * cols)
            places += 1
    return total / places


def _touched(granule: int, tile: int) -> list[int]:
    """How many granules the tiles 0, 1, ... of one period meet along one dimension."""
    tiles = math.lcm(granule, tile) // tile
    return [(i * tile + tile - 1) // granule - i * tile // granule + 1 for i in range(tiles)]
